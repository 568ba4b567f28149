"""The restore drill: an older copy of a service's database is put back after an erasure, and nobody comes back with it."""
