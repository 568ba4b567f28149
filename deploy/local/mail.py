"""The mail sink as a part of the stack: the mails of a local mesh lie in a folder, one file each.

sink = MailSink(home / "mail", log=home / "logs" / "mail.log")
await sink.start()      # then `sink.url` is what a client is told; `sink.mails()` are the files
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from deploy.local.env import write_private
from deploy.local.errors import LocalError
from deploy.local.mail_sink import mails
from deploy.local.ports import HOST, answers, free_port, is_free
from deploy.local.process import Child
from deploy.local.served import Served

NAME = "mail"
NOTE = "server.json"
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.03


class MailSink(Served):
    """An SMTP server that keeps mails as files in `folder`, which also keeps its port for later objects on it."""

    name = NAME

    def __init__(self, folder: Path, *, log: Path, port: int | None = None, die_with_parent: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.log = log
        self._port = port
        self._die_with_parent = die_with_parent

    @property
    def port(self) -> int:
        """Its port; known once started."""
        if not self._port:
            raise LocalError("the mail sink has not been started: it has no port yet")
        return self._port

    @property
    def url(self) -> str:
        """Where it is, as a client is told."""
        return f"smtp://{HOST}:{self.port}"

    def mails(self) -> list[Path]:
        """The mails that came, oldest first."""
        return mails(self.folder)

    async def start(self, timeout: float = 30.0) -> None:
        """Starts it and waits until it takes connections. Raises LocalError with the end of its log."""
        if self.running:
            return
        self.stopping = False
        self._choose_port()
        self._child = Child.start(
            self.name,
            [sys.executable, "-m", "deploy.local.mail_sink", str(self.folder), str(self.port)],
            log=self.log,
            die_with_parent=signal.SIGKILL if self._die_with_parent else None,
        )
        try:
            async with asyncio.timeout(timeout):
                while not await answers(self.port):
                    if self._child.returncode is not None:
                        ended = f"the mail sink ended while starting (code {self._child.returncode})"
                        raise LocalError(f"{ended}, {self.log}:\n{self._child.tail()}")
                    await asyncio.sleep(_POLL_SECONDS)
        except BaseException as error:
            await self._child.stop(signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise LocalError(f"the mail sink gave no answer within {timeout:.0f} s: see {self.log}") from None
            raise

    async def stop(self, grace: float = _STOP_SECONDS) -> None:
        """A clean stop; killed after `grace` seconds."""
        self.stopping = True
        if self._child is not None:
            self._child.send(signal.SIGCONT)
            await self._child.stop(signal.SIGTERM, grace)

    def _choose_port(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        note = self.folder / NOTE
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        port = self._port or known.get("port")
        self._port = port if port and is_free(port) else free_port()
        write_private(note, json.dumps({"port": self._port}))
