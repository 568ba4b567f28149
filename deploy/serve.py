"""One service in one process: `python -m deploy.serve <room>`."""

from __future__ import annotations

import asyncio
import logging
import sys

import uvloop

from deploy.rooms import ROOMS, load
from shared.mesh import tracing
from shared.mesh.runtime import Runtime
from shared.mesh.settings import Misconfigured, ServiceSettings


def main(arguments: list[str]) -> int:
    """Serves the room named in `arguments` until SIGTERM; returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in ROOMS:
        print(f"usage: python -m deploy.serve {{{'|'.join(ROOMS)}}}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    logging.getLogger("steward.faststream").setLevel(logging.ERROR)
    room = arguments[0]
    try:
        settings = ServiceSettings.from_env(room)
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 2
    tracing.setup(room)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Runtime(load(room), settings).serve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
