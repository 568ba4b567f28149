"""Why somebody may look at what is somebody else's: for a case in hand, which has to be named."""

from __future__ import annotations

import re

# A ticket of the operator's own (SUP-4711), or a case of this mesh (an event's id); more words may follow.
_CASE = re.compile(
    r"(?:[A-Z][A-Z0-9]{0,15}-[0-9]{1,12}|[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})(?:[\s:,;].*)?",
    re.DOTALL,
)


def names_a_case(reason: str) -> bool:
    """Whether `reason` begins with a ticket or a case: without one nobody reads what is raw."""
    return _CASE.fullmatch(reason.strip()) is not None
