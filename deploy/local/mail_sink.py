"""A mail server that delivers nothing: every mail becomes a file. `python -m deploy.local.mail_sink FOLDER PORT`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from deploy.local.ports import HOST

# Older ones go: nobody reads the mails of last month's demo.
KEPT = 1_000


class Keeper:
    """Takes every mail and keeps it in `folder`, byte for byte, numbered in the order in which they came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """aiosmtpd's hook: the mail is complete."""
        self.keep(envelope.original_content or b"")
        return "250 2.0.0 kept"

    def keep(self, content: bytes) -> Path:
        """Writes one mail, in one step."""
        there = mails(self.folder)
        number = int(there[-1].stem) + 1 if there else 1
        for old in there[: max(0, len(there) + 1 - KEPT)]:
            old.unlink(missing_ok=True)
        place = self.folder / f"{number:06d}.eml"
        beside = self.folder / f".{place.name}"
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        return beside.replace(place)


def mails(folder: Path) -> list[Path]:
    """The mails in `folder`, oldest first."""
    return sorted(path for path in folder.glob("*.eml") if path.stem.isdigit())


async def listen(handler: Any, port: int) -> asyncio.Server:
    """An SMTP server with that handler; port 0 takes a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: SMTP(handler, hostname="steward-mail-sink", loop=loop, decode_data=False), HOST, port
    )


async def _serve(folder: Path, port: int) -> None:
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    server = await listen(Keeper(folder), port)
    await asked.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
