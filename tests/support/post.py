"""A mail server for tests: the stack's own sink in this process, which also refuses, defers and hangs up when told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

from aiosmtpd.smtp import SMTP, Envelope, Session

from deploy.local.mail_sink import Keeper, listen, mails
from deploy.local.ports import HOST

Trouble = Literal[
    "refuse recipient",  # 550 to RCPT
    "defer recipient",  # 451 to RCPT
    "refuse sender",  # 550 to MAIL: about us
    "refuse text",  # 554 after the text
    "defer text",  # 451 after the text
    "hang up before text",  # at RCPT
    "hang up",  # after the text, which is kept all the same
    "lose and hang up",  # after the text, which is kept by nobody
    "stall",  # the text is kept, and no reply ever comes
]


def parsed(raw: bytes) -> EmailMessage:
    """A mail as a reader's program takes it apart."""
    return message_from_bytes(raw, policy=policy.default)


@dataclass
class Post(Keeper):
    """The server. `troubles` are used up one by one; without one it takes what comes."""

    folder: Path
    port: int = 0
    troubles: list[Trouble] = field(default_factory=list)
    conversations: int = 0
    heard: list[tuple[str, Any]] = field(default_factory=list)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """What a client is told."""
        return f"smtp://{HOST}:{self.port}"

    def mails(self) -> list[EmailMessage]:
        """What was kept, oldest first."""
        return [parsed(path.read_bytes()) for path in mails(self.folder)]

    def raw(self) -> list[bytes]:
        """The same, as it came over the wire."""
        return [path.read_bytes() for path in mails(self.folder)]

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.conversations += 1
        self.heard.append(("EHLO", hostname))
        session.host_name = hostname
        return responses

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.heard.append(("MAIL", (address, options)))
        if self._next("refuse sender"):
            return "550 5.7.1 not you"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 ok"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.heard.append(("RCPT", (address, options)))
        if self._next("refuse recipient"):
            return "550 5.1.1 nobody of that name"
        if self._next("defer recipient"):
            return "451 4.7.1 later, please"
        if self._next("hang up before text"):
            _hang_up(server)
            return "421 4.3.0 bye"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        self.heard.append(("DATA", content))
        if self._next("refuse text"):
            return "554 5.6.0 not this"
        if self._next("defer text"):
            return "451 4.3.0 later, please"
        if self._next("lose and hang up"):
            _hang_up(server)
            return "421 4.3.0 bye"
        self.keep(content)
        if self._next("hang up"):
            _hang_up(server)
            return "421 4.3.0 bye"
        if self._next("stall"):
            self.stalled.set()
            await asyncio.Event().wait()
        return "250 2.0.0 kept"

    def _next(self, trouble: Trouble) -> bool:
        if self.troubles[:1] == [trouble]:
            del self.troubles[0]
            return True
        return False


def _hang_up(server: SMTP) -> None:
    """The reply that follows is written to nobody."""
    assert isinstance(server.transport, asyncio.Transport)
    server.transport.abort()


@contextlib.asynccontextmanager
async def post(folder: Path) -> AsyncIterator[Post]:
    """The server, for as long as the block runs."""
    made = Post(folder)
    server = await listen(made, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
