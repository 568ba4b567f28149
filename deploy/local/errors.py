"""What can go wrong with the local stack. Each text is one sentence that says what to do next."""

from __future__ import annotations


class LocalError(Exception):
    """A part did not start, does not answer or is not running."""


class LocalRefusal(LocalError):
    """The stack could go on, but only by changing what it must not change."""
