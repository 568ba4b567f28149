"""Kubernetes manifests from what the code declares (`render`), and what no API server can judge about them (`verify`)."""
