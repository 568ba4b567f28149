"""Other policies: this tree's, with values changed."""

from __future__ import annotations

import re
from importlib.resources import files

from shared.policy import digest_of

TEXT = files("shared.policy").joinpath("policy.toml").read_text(encoding="utf-8")
NEW_DATE = (("version", '"2031-02-03"'), ("effective_date", "2031-02-03"))


def changed(*settings: tuple[str, str], text: str = TEXT) -> str:
    """The policy with other values: (`table.key`, TOML). A key that is not there is added; without a value it goes."""
    for where, value in settings:
        table, _, key = where.rpartition(".")
        before, header, rest = text.partition(f"\n[{table}]\n") if table else ("", "", text)
        assert header or not table, f"there is no table {table}"
        own, mark, others = rest.partition("\n[")
        line = f"{key} = {value}" if value else ""
        found = re.search(rf"(?m)^{key} = (\[[^\]]*\]|.*)$", own)
        own = own[: found.start()] + line + own[found.end() :] if found else f"{line}\n{own}"
        text = before + header + own + mark + others
    return text


def sealed(text: str) -> str:
    """The policy with the digest of its content, as if somebody had said that the change is meant."""
    return changed(("digest", f'"{digest_of(text)}"'), text=text)
