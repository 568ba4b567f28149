"""The mail sink as a part of the stack: the mails of a local mesh lie in a folder, one file each.

sink = MailSink(home / "mail", log=home / "logs" / "mail.log")
await sink.start()      # then `sink.url` is what a client is told; `sink.mails()` are the files
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.local.listener import NOTE, Listener
from deploy.local.mail_sink import mails
from deploy.local.ports import HOST

__all__ = ["NAME", "NOTE", "MailSink"]

NAME = "mail"


class MailSink(Listener):
    """An SMTP server that keeps mails as files in `folder`."""

    name = NAME
    what = "the mail sink"

    def command(self) -> Sequence[str]:
        """Ours, as a process."""
        return [sys.executable, "-m", "deploy.local.mail_sink", str(self.folder), str(self.port)]

    @property
    def url(self) -> str:
        """Where it is, as a client is told."""
        return f"smtp://{HOST}:{self.port}"

    def mails(self) -> list[Path]:
        """The mails that came, oldest first."""
        return mails(self.folder)
