"""The disk under metering's database is full for a while: the same batch again, in order, until there is room.

The database is put into a tablespace on a small file system in memory, which needs root and the right to mount; where
that is not given the test is deselected, and the summary says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import pytest

from shared.contract import topics
from shared.mesh import metrics
from tests.support.books import assert_books
from tests.support.gateway import Gateway
from tests.support.world import Mesh

SIZE = "160m"
TABLESPACE = "tiny"
_CHUNK = bytes(256 * 1024)


def _mount(folder: Path, *options: str) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join((f"size={SIZE}", *options)), "tmpfs", str(folder)],
        check=True, capture_output=True,
    )  # fmt: skip


def _unmount(folder: Path) -> None:
    # Lazily: the checkpointer may hold a file of a dropped table open for a moment.
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


@cache
def _why_not() -> str | None:
    """Why this machine cannot run the test; None if it can."""
    if os.geteuid() != 0:
        return "only root may mount"
    folder = Path(tempfile.mkdtemp(prefix="steward-may-mount-"))
    try:
        _mount(folder)
        _unmount(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"a tmpfs cannot be mounted ({said})"
    finally:
        folder.rmdir()
    return None


class _LeftOut:
    """Deselects this file's tests and says why at the end of the run."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if item.path == Path(__file__)]
        if left_out:
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"not run: {Path(__file__).name}: {_why_not()}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Asks the machine once, and only in a run that would come to these tests."""
    plugins = metafunc.config.pluginmanager
    if metafunc.config.getoption("--all-seeds") and _why_not() is not None and not plugins.has_plugin(__name__):
        plugins.register(_LeftOut(), __name__)


@contextlib.asynccontextmanager
async def _small_disk(mesh: Mesh) -> AsyncIterator[Path]:
    """A small file system with metering's (empty) database on it; its mount point."""
    server = mesh.world.stack.postgres
    assert server is not None
    owner = server.data.stat()
    folder = Path(tempfile.mkdtemp(prefix="steward-small-disk-"))
    folder.chmod(0o711)
    _mount(folder, f"uid={owner.st_uid}", f"gid={owner.st_gid}", "mode=0700")
    place = folder / "tablespace"
    place.mkdir(mode=0o700)
    os.chown(place, owner.st_uid, owner.st_gid)
    try:
        async with mesh.world.admin() as admin:
            await admin.execute(f"CREATE TABLESPACE {TABLESPACE} LOCATION '{place}'")
            await admin.execute(f"ALTER DATABASE steward_metering SET TABLESPACE {TABLESPACE}")
        yield folder
    finally:
        await mesh.close()
        async with mesh.world.admin() as admin:
            await admin.execute("DROP DATABASE IF EXISTS steward_metering WITH (FORCE)")
            await admin.execute(f"DROP TABLESPACE IF EXISTS {TABLESPACE}")
        _unmount(folder)
        folder.rmdir()


def _fill(folder: Path) -> Path:
    """Takes all the room that is left; the file to delete afterwards."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(_CHUNK)
    return filler


def _redone() -> float:
    return float(metrics.RETRIES_TOTAL.labels(topics.GENERATIONS.name, "database")._value.get())


@pytest.mark.exhaustive
async def test_the_disk_is_full_for_a_while(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    async with _small_disk(mesh) as folder:
        await gateway.send(mesh.env, [gateway.price(), *gateway.some(100)])
        metering = await mesh.start("metering")
        billing = await mesh.start("billing")
        await mesh.owned()
        await mesh.idle()
        filler = _fill(folder)
        assert shutil.disk_usage(folder).free == 0
        before = _redone()
        await gateway.send(mesh.env, gateway.some(5_000))

        async def redone_often() -> bool:
            return _redone() >= before + 3

        await mesh.until(redone_often, 30, "batches are redone")
        # Away is not dead, and nothing is given up: no dead letter, no stopped partition, no restart.
        assert metering.troubles() == [] and metering.exit_reason is None
        assert await mesh.value("metering", "SELECT count(*) FROM mesh_dead_letter") == 0
        filler.unlink()
        await mesh.idle()
        await assert_books(mesh, gateway)
        assert metering.troubles() == [] and billing.troubles() == []
        assert await mesh.value("metering", "SELECT count(*) FROM mesh_dead_letter") == 0
