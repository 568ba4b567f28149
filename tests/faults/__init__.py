"""The whole mesh while things break; a failure prints its seed."""
