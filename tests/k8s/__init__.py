"""The cluster's files, read and run without a cluster."""
