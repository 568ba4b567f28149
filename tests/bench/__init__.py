"""Measurements: ratios within one run against a stated ceiling, no timed asserts."""
