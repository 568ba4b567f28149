"""Databases, roles, topics and keys on servers that exist: `python -m deploy.provision`, the first step of compose.yaml.

Told by the environment, as the services are: STEWARD_POSTGRES_URL is an administrator's, every other URL gives its role the
password that is in it. Safe to repeat; keys that exist stay.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.databases import AUDITOR, KEYS, Names, provision
from deploy.local.env import write_private
from deploy.local.errors import LocalError
from deploy.rooms import ROOMS
from shared.mesh.settings import KafkaSettings, Misconfigured

POSTGRES_URL = "STEWARD_POSTGRES_URL"


def needed() -> tuple[str, ...]:
    """The variables that must be set: the administrator's URL, and the one of each role in each database."""
    rooms = [Names(name) for name in (*ROOMS, KEYS)]
    urls = [url for room in rooms for url in (room.owner_variable, room.app_variable, room.auditor_variable)]
    return (POSTGRES_URL, *urls)


async def prepare(env: Mapping[str, str]) -> None:
    """Makes what is missing. Raises Misconfigured for a variable that is not set, LocalError when a server refuses.

    A password that nobody knows would be of no use to the services, so none is made up here.
    """
    from shared.mesh.admin import ensure_topics

    missing = [name for name in needed() if not env.get(name)]
    if missing:
        raise Misconfigured(
            f"{', '.join(missing)} not set: each role's password is the one in its URL ({AUDITOR}: in all)"
        )
    await provision(env[POSTGRES_URL], ROOMS, env)
    await ensure_topics(KafkaSettings.from_env(env))
    _keys(env)


def _keys(env: Mapping[str, str]) -> None:
    """The master key and the key that signs certificates, where their files are named and not there yet."""
    from shared.privacy.certificate import new_signing_key, public_pem, signing_key
    from shared.privacy.vault import MasterKeys

    master, signing = (env.get(f"STEWARD_{name}_KEY_FILE") for name in ("MASTER", "SIGNING"))
    if master and not Path(master).exists():
        write_private(Path(master), MasterKeys.new(f"local-{secrets.token_hex(3)}") + "\n")
    if signing and not Path(signing).exists():
        pem = new_signing_key()
        write_private(Path(signing), pem.decode("ascii"))
        Path(signing).with_name("certificate.pem").write_bytes(public_pem(signing_key(pem)))


def main() -> int:
    """Returns the exit code: 2 when the environment is wrong, 1 when a server is away or refuses; the sentence is on stderr."""
    from aiokafka.errors import KafkaError

    from shared.mesh.admin import WrongTopic

    try:
        asyncio.run(prepare(os.environ))
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 2
    except (LocalError, WrongTopic, KafkaError, OSError, TimeoutError) as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
