"""What a part of the stack is: one process of ours, that fault tests kill, stop and wake."""

from __future__ import annotations

import signal

from deploy.local.process import Child


class Served:
    """A process that may be started again after it ended. `stopping`: it ended, or is about to, because we want it to."""

    def __init__(self) -> None:
        self.stopping = False
        self._child: Child | None = None

    @property
    def child(self) -> Child | None:
        """The process, None before the first start."""
        return self._child

    @property
    def running(self) -> bool:
        """Whether the process lives (it may be paused, or still starting)."""
        return self._child is not None and self._child.returncode is None

    async def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is finished, flushed or handed over."""
        self.stopping = True
        if self._child is not None:
            await self._child.stop(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers; it does not know it."""
        if self._child is not None:
            self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self._child is not None:
            self._child.send(signal.SIGCONT)
