"""When is a broker ready? When it answers for a group: an open port says less."""

from __future__ import annotations

import asyncio

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

_GROUP = "steward-is-the-broker-ready"
_TIMEOUT_MS = 5_000


async def group_request_answered(bootstrap_servers: str) -> bool:
    """Asks once for the offsets of a group that has none; whether the answer was not an error."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=_TIMEOUT_MS)
    try:
        async with asyncio.timeout(_TIMEOUT_MS / 1000):
            await admin.start()
            await admin.list_consumer_group_offsets(_GROUP)
    except (KafkaError, OSError, TimeoutError):  # not yet; the caller asks again until its own limit
        return False
    finally:
        await admin.close()
    return True
