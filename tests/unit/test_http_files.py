"""Files for whoever has the token: whole or from where it broke off, kept by no cache, and the token is in no log."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp
import pytest

from deploy.local.ports import free_port
from shared.mesh.http import NotFound, NotKept, Port
from shared.mesh.service import Served

CONTENT = bytes(range(256)) * 4_096  # 1 MB
TOKEN = "a-token-that-nobody-guesses_0123"


async def pieces(start: int) -> AsyncGenerator[bytes, None]:
    for n in range(start, len(CONTENT), 65_537):
        yield CONTENT[n : n + 65_537]


async def broken(start: int) -> AsyncGenerator[bytes, None]:
    yield CONTENT[: 64 * 1024]
    raise OSError(f"the disk under {TOKEN}")


async def short(start: int) -> AsyncGenerator[bytes, None]:
    yield CONTENT[:1_000]


async def serve(name: str, token: str) -> Served:
    assert name == "packages"
    match token:
        case _ if token == TOKEN:
            return Served("package.zip.age", len(CONTENT), pieces)
        case "broken" | "short":
            return Served("package.zip.age", len(CONTENT), broken if token == "broken" else short)
        case "bad-name":
            return Served('x"; filename="y', len(CONTENT), pieces)
        case "over":
            raise NotKept("the package was there for seven days, and is gone")
        case "failed":
            raise RuntimeError(f"about {token}")
        case _:
            raise NotFound("there is no such package")


@pytest.fixture
def reads_at() -> int:
    """The port of everything else."""
    return free_port()


async def nothing(*_: Any) -> Any:
    return None


@pytest.fixture
async def url(reads_at: int) -> AsyncIterator[str]:
    port = Port(
        "127.0.0.1", reads_at, alive=list, ready=list, observe=nothing, answer=nothing, serve=serve, files=["packages"]
    )  # fmt: skip
    await port.open()
    try:
        yield f"http://127.0.0.1:{port.public_port}/packages"
    finally:
        await port.close()


async def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()}) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def test_whoever_has_the_token_gets_the_file(url: str) -> None:
    for method, body in (("GET", CONTENT), ("HEAD", b"")):
        status, headers, raw = await ask(f"{url}/{TOKEN}", method)
        assert (status, raw, headers["Content-Length"]) == (200, body, str(len(CONTENT)))
        assert headers["Content-Disposition"] == 'attachment; filename="package.zip.age"'
        assert headers["Content-Type"] == "application/octet-stream" and headers["Accept-Ranges"] == "bytes"
        _safe(headers)


def _safe(headers: Any) -> None:
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-", 0, len(CONTENT)), ("bytes=1000-", 1_000, len(CONTENT)), ("bytes=5-5", 5, 6), ("bytes=-7", -7, None),
     ("bytes=10-99999999", 10, len(CONTENT)), ("bytes=70000-140000", 70_000, 140_001)],
)  # fmt: skip
async def test_a_download_goes_on_where_it_broke_off(url: str, asked: str, start: int, end: int | None) -> None:
    status, headers, raw = await ask(f"{url}/{TOKEN}", Range=asked)
    assert raw == CONTENT[start:end] and int(headers["Content-Length"]) == len(raw)
    if len(raw) < len(CONTENT):
        first = start % len(CONTENT)
        assert status == 206 and headers["Content-Range"] == f"bytes {first}-{first + len(raw) - 1}/{len(CONTENT)}"


async def test_a_range_that_is_none_gets_the_whole_or_a_refusal(url: str) -> None:
    for asked in ("bytes=0-1,5-6", "lines=1-2", "bytes=", "bytes=-", "bytes=a-b"):
        status, _, raw = await ask(f"{url}/{TOKEN}", Range=asked)
        assert (status, raw) == (200, CONTENT), asked
    status, _, raw = await ask(f"{url}/{TOKEN}", Range="bytes=5-", If_Range="another")
    assert (status, raw) == (200, CONTENT)
    for asked in (f"bytes={len(CONTENT)}-", "bytes=9-8", "bytes=-0"):
        status, headers, _ = await ask(f"{url}/{TOKEN}", Range=asked)
        assert status == 416 and headers["Content-Range"] == f"bytes */{len(CONTENT)}"


async def test_whoever_has_none_gets_a_word_and_the_token_is_in_no_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for token, status in (
        ("nobodys", 404),
        ("over", 410),
        ("failed", 503),
        ("bad-name", 503),
        ("a%2Fb", 404),
        ("x" * 300, 404),
    ):
        said, headers, raw = await ask(f"{url}/{token}")
        assert said == status and b"error" in raw and token.encode() not in raw, token
        _safe(headers)
    for token in ("broken", "short"):
        with pytest.raises(aiohttp.ClientError):
            await ask(f"{url}/{token}")
    await ask(f"{url}/{TOKEN}")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("steward", "aiohttp"))]
    assert ours and not [line for line in ours if TOKEN in line or "nobodys" in line or "/packages" in line]


async def test_nothing_is_served_that_the_service_does_not_declare(url: str) -> None:
    status, _, _ = await ask(url.replace("packages", "others") + f"/{TOKEN}")
    assert status == 404


async def test_a_process_that_is_to_be_restarted_says_why(reads_at: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever restarts it looks at the status alone, and its log is all that is left."""
    stuck = ["gateway.payments: the loop has not turned for 30 s"]
    port = Port("127.0.0.1", reads_at, alive=lambda: stuck, ready=list, observe=nothing, answer=nothing, serve=serve)
    await port.open()
    try:
        assert (await ask(f"http://127.0.0.1:{reads_at}/livez"))[0] == 503
    finally:
        await port.close()
    assert stuck[0] in caplog.text


async def test_whoever_can_reach_a_link_can_reach_nothing_else(url: str, reads_at: int) -> None:
    for path in ("reads/cases", "metrics", "livez", "readyz", "", "packages"):
        assert (await ask(f"{url.removesuffix('packages')}{path}"))[0] == 404, path
    for path, status in (("reads/cases", 200), ("livez", 200), (f"packages/{TOKEN}", 404)):
        assert (await ask(f"http://127.0.0.1:{reads_at}/{path}"))[0] == status, path
