"""Whether data really ends when the policy says: topics and partitions read back, and judged."""
