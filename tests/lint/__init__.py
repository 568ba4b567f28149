"""Our own lints: mistakes that no general tool knows, each with its reason and its own test."""
