"""The SMTP client. What became of a mail is one of four answers, and only one of them allows another try.

The server may take a mail from the moment in which the text goes out. Before that every failure is `later`. After it a
reply decides (2xx accepted, 4xx later, 5xx refused), and without a reply the outcome is `unknown`: nobody may send again
but a person who has looked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from aiosmtplib import SMTP, SMTPDataError, SMTPException, SMTPRecipientRefused, SMTPResponseException

from services.notifications.mail import Outbound, as_bytes
from shared.mesh.settings import Misconfigured

# Seconds. The reply to the text may take long (the server's filters look at it then), and giving up on it costs a person.
_COMMAND_SECONDS, _REPLY_SECONDS, CONVERSATION_SECONDS = 15.0, 90.0, 150.0
# A connection lives on for the next mail of a burst. A server that was away is left alone for a moment.
_LINGER_SECONDS, _REST_SECONDS = 5.0, 2.0


class Answer(NamedTuple):
    """What became of one attempt, and why in a word or a reply code: never in the server's words, which quote addresses."""

    outcome: Literal["accepted", "refused", "later", "unknown"]
    reason: str


class Postman:
    """Sends mails to one server, one after the other.

    `url`: smtp://[user:password@]host[:port], or smtps://. `production`: without TLS nothing is said but STARTTLS.
    Raises Misconfigured for a URL that it does not understand.
    """

    def __init__(self, url: str, *, sender: str, production: bool) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise Misconfigured("STEWARD_SMTP_URL must be smtp://[user:password@]host[:port], or smtps://")
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if production else ssl.TLSVersion.TLSv1_2
        self._smtp = SMTP(
            hostname=parts.hostname,
            port=parts.port,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            # Otherwise the name of this machine goes to the provider.
            local_hostname=sender.rpartition("@")[2],
            timeout=_COMMAND_SECONDS,
            use_tls=parts.scheme == "smtps",
            start_tls=True if production and parts.scheme == "smtp" else None,
            tls_context=context,
        )
        self._rests_until = 0.0
        self._leaving: asyncio.TimerHandle | None = None

    async def deliver(self, mail: Outbound, before_text: Callable[[], Awaitable[bool]]) -> Answer:
        """One attempt. `before_text` is awaited when the text would go out next; if it says no, it does not."""
        text_is_out = False

        async def guard() -> bool:
            nonlocal text_is_out
            # From here on a time limit or a broken connection says nothing about the mail.
            text_is_out = await before_text()
            return text_is_out

        try:
            async with asyncio.timeout(CONVERSATION_SECONDS):
                answer = await self._converse(mail, guard)
        except TimeoutError:
            self._smtp.close()
            return Answer("unknown", "no_reply") if text_is_out else Answer("later", "timeout")
        except BaseException:
            self._smtp.close()
            raise
        if self._smtp.is_connected:
            self._leaving = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._smtp.close)
        return answer

    async def knock(self) -> str:
        """Connects, with TLS and login; "" or the reason why not. Sends nothing."""
        away = await self._connect()
        return "" if away is None else away.reason

    async def close(self) -> None:
        """Ends the connection."""
        if self._leaving is not None:
            self._leaving.cancel()
        self._smtp.close()

    async def _converse(self, mail: Outbound, before_text: Callable[[], Awaitable[bool]]) -> Answer:
        if (failed := await self._envelope(mail)) is not None:
            return failed
        if not await before_text():
            self._smtp.close()
            return Answer("later", "not_ours")
        try:
            await self._smtp.data(as_bytes(mail), timeout=_REPLY_SECONDS)
        except SMTPDataError as error:
            if 400 <= error.code <= 499:
                return Answer("later", str(error.code))
            return Answer("refused", str(error.code)) if 500 <= error.code <= 599 else Answer("unknown", "no_reply")
        except (SMTPException, OSError):
            self._smtp.close()
            return Answer("unknown", "no_reply")
        return Answer("accepted", "250")

    async def _envelope(self, mail: Outbound) -> Answer | None:
        """Everything before the text. None = the server has sender and recipient, and waits."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        for kept in (True, False):
            if not kept or not self._smtp.is_connected:
                self._smtp.close()
                if (away := await self._connect()) is not None:
                    return away
            try:
                await self._smtp.mail(mail.sender)
                await self._smtp.rcpt(mail.recipient)
                return None
            except SMTPRecipientRefused as error:
                answer = Answer("refused" if 500 <= error.code <= 599 else "later", str(error.code))
                await self._reset()
                return answer
            except SMTPResponseException as error:
                # About us (a login, a limit, our own address): no reason to give a person up.
                self._smtp.close()
                return Answer("later", str(error.code))
            except (SMTPException, OSError):
                # A server may close a connection that it finds idle: once more, with a new one.
                self._smtp.close()
                if not kept:
                    return Answer("later", "disconnected")
        raise AssertionError("the second round returns")

    async def _connect(self) -> Answer | None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            return Answer("later", "away")
        try:
            await self._smtp.connect()
        except (SMTPException, OSError) as error:
            self._rests_until = loop.time() + _REST_SECONDS
            # What we ask for and the server does not have (TLS, a login) is not its absence.
            return Answer("later", str(error.code) if isinstance(error, SMTPResponseException) else "away")
        return None

    async def _reset(self) -> None:
        """Forgets a recipient that was refused, so that the connection serves the next mail."""
        try:
            await self._smtp.rset()
        except (SMTPException, OSError):
            self._smtp.close()
