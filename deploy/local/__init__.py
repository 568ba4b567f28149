"""The local stack: Apache Kafka, PostgreSQL and every service as processes of this machine."""
