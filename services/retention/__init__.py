"""Retention: who is who, and the cases by which people are forgotten."""
