"""Options, seeds and guards that all tests share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from tests.support import promises
from tests.support.world import Mesh, World

# A failing seed is worth more than a new one: the usual run is the same run every time.
SEEDS = (1, 7, 11, 23, 42, 101, 977, 2026, 31337, 65537)
USUAL_SEEDS = SEEDS[:1]

# Two cores are shared with Kafka and PostgreSQL, so no deadline; a failure prints how to repeat it.
settings.register_profile("usual", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("all-seeds", derandomize=False, deadline=None, print_blob=True, max_examples=1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-seeds",
        action="store_true",
        help="run each seeded test with every seed, hypothesis with many examples, and the exhaustive tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("all-seeds" if config.getoption("--all-seeds") else "usual")
    promises.pytest_configure(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `seed` runs once for each seed."""
    if "seed" in metafunc.fixturenames:
        seeds = SEEDS if metafunc.config.getoption("--all-seeds") else USUAL_SEEDS
        metafunc.parametrize("seed", seeds, ids=lambda seed: f"seed={seed}")


# By folder, whatever is not named here last: a worker that is done early steals short tests, not one that takes a minute.
LONGEST_FIRST = ("faults", "integration")


def _turn(item: pytest.Item) -> int:
    folder = item.path.parent.name
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    if not config.getoption("--all-seeds"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        if left_out:
            items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
            config.hook.pytest_deselected(items=left_out)


class _Unretrieved(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # The Kafka client forgets tasks of its own when a broker goes away; a client that *we* forget is still seen.
        if not (message.startswith("Task exception was never retrieved") and "/aiokafka/" in message):
            self.messages.append(message)


@pytest.fixture(autouse=True)
def nothing_unretrieved(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test during which asyncio reported an error nobody awaited, or a client nobody closed."""
    handler = _Unretrieved()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if handler.messages and request.node.get_closest_marker("unretrieved") is None:
        pytest.fail("asyncio reported: " + "; ".join(handler.messages), pytrace=False)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Kafka and PostgreSQL, started once per run."""
    made = World()
    try:
        asyncio.run(made.start())
        yield made
    finally:
        asyncio.run(made.stop())


@pytest.fixture
async def mesh(world: World) -> AsyncIterator[Mesh]:
    """Empty databases and topics, and a place to start services in."""
    await world.reset()
    made = Mesh(world)
    try:
        yield made
    finally:
        await made.close()
