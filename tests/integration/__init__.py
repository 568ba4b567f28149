"""One part at a time against real Kafka and real PostgreSQL."""
