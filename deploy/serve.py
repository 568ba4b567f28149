"""One service in one process: `python -m deploy.serve <room>`; without a name the one of STEWARD_SERVICE, an image's own."""

from __future__ import annotations

import asyncio
import os
import sys

from deploy.rooms import ROOMS, load, refusals
from shared.policy import PolicyError, policy


def main(arguments: list[str]) -> int:
    """Serves the room named in `arguments` until SIGTERM; returns the exit code.

    2 when it may not start at all: wrong usage, a setting, a policy that contradicts itself or was changed without a new
    date, or a room that uses personal data for what the policy does not give it. The sentence is on stderr.
    """
    if len(arguments) != 1 or arguments[0] not in ROOMS:
        print(f"usage: python -m deploy.serve {{{'|'.join(ROOMS)}}}", file=sys.stderr)
        return 2
    room = arguments[0]
    try:
        # First of all: the modules of the mesh and of the room take their numbers from it when they are imported.
        policy()
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    refused = refusals(room)
    if refused:
        print("\n".join(refused), file=sys.stderr)
        return 2
    return _serve(room)


def _serve(room: str) -> int:
    import uvloop

    from shared.mesh import logs, tracing
    from shared.mesh.runtime import Runtime
    from shared.mesh.settings import Misconfigured, ServiceSettings

    try:
        logs.setup(room)
        settings = ServiceSettings.from_env(room)
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 2
    tracing.setup(room)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Runtime(load(room), settings).serve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or os.environ.get("STEWARD_SERVICE", "").split()))
