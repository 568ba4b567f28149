"""Pure code, in milliseconds: no Kafka, no PostgreSQL, no clock."""
