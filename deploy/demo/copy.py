"""The demo's copy: before an account asks to be forgotten it asks for its data, fetches the package and opens it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from shared.privacy.package import manifest_of, opened

PASSPHRASE = "a passphrase that only its holder knows"  # noqa: S105 - of a made-up person
_LINK = re.compile(r"^\s*(http\S+/packages/[0-9a-f]+)\s*$", re.MULTILINE)


@dataclass(slots=True)
class Copy:
    """What is to be told of a copy. `seconds`: from the wish to the opened package; `rows`: by holder."""

    case: str
    seconds: float = 0.0
    size: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    tables: int = 0
    logged: int = 0
    """Requests in it."""
    missing: int = 0
    whole: bool = False
    """Every file is as the manifest says."""
    link: str = ""
    link_afterwards: int = 0
    """What the link answers when the deletion is confirmed."""

    @property
    def holds(self) -> bool:
        """Whether the package was whole, held something of every kind, and is gone for good."""
        return self.whole and self.logged > 0 and self.link_afterwards == 410


def link_in(text: str) -> str | None:
    """The link in a mail."""
    found = _LINK.search(text)
    return None if found is None else found[1]


async def fetch(link: str) -> tuple[int, bytes]:
    """(status, content) of what a link answers."""
    async with aiohttp.ClientSession() as session, session.get(link) as answer:
        return answer.status, await answer.read()


async def look_into(copy: Copy, link: str, asked_at: float) -> None:
    """Fetches the package and opens it, as its holder does. Raises `CannotOpen`."""
    copy.link = link
    _, raw = await fetch(link)
    manifest, copy.whole = await asyncio.to_thread(_opened, raw)
    copy.seconds, copy.size = time.monotonic() - asked_at, len(raw)
    rows: Counter[str] = Counter()
    for source in manifest["sources"]:
        rows[source["holder"]] += source["rows"]
        copy.tables += bool(source["rows"])
        if (source["holder"], source["table"]) == ("metering", "request_log"):
            copy.logged = source["rows"]
    copy.rows, copy.missing = dict(rows), len(manifest["missing"])


def _opened(raw: bytes) -> tuple[dict[str, Any], bool]:
    with opened(io.BytesIO(raw), passphrase=PASSPHRASE) as archive:
        manifest = manifest_of(archive)
        said = {name: one["sha256"] for name, one in manifest["files"].items()}
        seen = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in said}
    return manifest, said == seen
