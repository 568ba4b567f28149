"""`python -m shared.policy [FILE]`: prints the digest for a changed policy, and checks the rest of it."""

from __future__ import annotations

import sys
from pathlib import Path

from . import PolicyError, policy_text, renewed
from .load import checked


def main(arguments: list[str]) -> int:
    """Prints the line `digest = ...` for FILE (default: the policy in force). Returns 1 when it may not be used."""
    if len(arguments) > 1:
        print("usage: python -m shared.policy [FILE]", file=sys.stderr)
        return 2
    try:
        text = Path(arguments[0]).read_text(encoding="utf-8") if arguments else policy_text()
        checked(text)
        print(f'digest = "{renewed(text)}"')
    except (PolicyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
