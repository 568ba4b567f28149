"""Kubernetes: the manifests that the code declares, and the tools that read them."""
