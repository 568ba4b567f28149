"""`steward keys status | ingress | rotate | drop | scrub`: the vault's keys. None is ever printed but public ones."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli.ask import settings
from deploy.cli.errors import Refused, Unavailable

if TYPE_CHECKING:
    from shared.mesh.store import Pool
    from shared.privacy.masters import MasterKeys
    from shared.privacy.vault import Vault

_T = TypeVar("_T")
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def keys() -> None:
    """See the keys of the vault, change the master key, print ingress keys.

    A master key is changed in three steps, while everything runs: `rotate`, wait until `status` shows that the old one
    wraps nothing, `drop`.
    """


@keys.command(epilog="Example: steward keys status --json")
@_json
def status(as_json: bool) -> None:
    """Show how many keys there are, of what kind, and which master key wraps them."""

    async def look(pool: Pool, vault: Vault, masters: MasterKeys) -> dict[str, Any]:
        from shared.privacy import keys as store

        async with pool.acquire() as db:
            kinds = [dict(row) for row in await store.purposes(db)]
        wrapped = await vault.wrapped()
        known = [{"id": id, "wraps": wrapped.get(id, 0), "known": True} for id in masters.ids]
        lost = [{"id": id, "wraps": n, "known": False} for id, n in wrapped.items() if id not in masters.ids]
        return {"current": masters.current(), "masters": known + lost, "keys": kinds}

    said = _with_vault(settings(), look)
    if as_json:
        click.echo(json.dumps(said, indent=2, default=lambda at: at.isoformat()))
    else:
        for master in said["masters"]:
            what = "current" if master["id"] == said["current"] else "old" if master["known"] else "NOT CONFIGURED HERE"
            click.echo(f"master {master['id']} ({what}) wraps {master['wraps']:,}")
        for kind in said["keys"]:
            click.echo(f"{kind['n']:>9,}  {kind['purpose']:<10} {kind['oldest']:%Y-%m-%d} to {kind['newest']:%Y-%m-%d}")
    if any(not master["known"] for master in said["masters"]):
        raise Refused("a key is wrapped by a master key that is not configured: what it protects cannot be read")


@keys.command(epilog="Example: steward keys ingress --day 2026-11-28")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Of which day (UTC)  [default: today]")
@_json
def ingress(day: datetime | None, as_json: bool) -> None:
    """Print the public key to which platforms seal on a day, as `steward.seal` takes it. It is no secret."""
    from shared.contract.sealing import encoded, key_text
    from shared.privacy.values import Shredded

    wanted = (day or _now()).date()

    async def look(pool: Pool, vault: Vault, masters: MasterKeys) -> tuple[str, bytes]:
        try:
            return await vault.ingress(wanted)
        except Shredded:
            raise Refused(
                f"there is no ingress key of {wanted.isoformat()}: they are made two days ahead, and destroyed"
            ) from None

    key_id, public = _with_vault(settings(), look)
    if as_json:
        click.echo(json.dumps({"day": wanted.isoformat(), "id": key_id, "public_key": encoded(public)}))
    else:
        click.echo(key_text(key_id, public))


@keys.command(epilog="Example: steward keys rotate")
@click.option("--rewrap-only", is_flag=True, help="Make no new master key: the file's first line is new already.")
@_json
def rotate(rewrap_only: bool, as_json: bool) -> None:
    """Make a new master key and wrap every key anew with it.

    Only the key database changes; what is sealed stays as it is. Services read the file again by themselves. The old master
    key stays in the file until `steward keys drop`. Safe to repeat, also after it was cut off.
    """
    known = settings()
    if not rewrap_only:
        from deploy.local.env import write_private
        from shared.privacy.masters import MasterKeys

        file = _file(known)
        MasterKeys.from_values(str(file), None)
        line = MasterKeys.new(f"master-{_now():%Y%m%d}-{secrets.token_hex(3)}")
        write_private(file, f"{line}\n{file.read_text(encoding='utf-8')}")

    async def wrap(pool: Pool, vault: Vault, masters: MasterKeys) -> dict[str, Any]:
        return {"rewrapped": await vault.rotate(), "current": masters.current(), "wrapped": dict(await vault.wrapped())}

    said = _with_vault(known, wrap)
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(f"{said['rewrapped']:,} keys are wrapped by {said['current']} now.")


@keys.command(epilog="Example: steward keys drop local-3fa9c1")
@click.argument("master")
def drop(master: str) -> None:
    """Take an old master key out of the file: what it wrapped, in any copy of the key database, is unreadable then."""
    from deploy.local.env import write_private

    known = settings()
    file = _file(known)

    async def look(pool: Pool, vault: Vault, masters: MasterKeys) -> tuple[tuple[str, ...], int]:
        return masters.ids, (await vault.wrapped()).get(master, 0)

    ids, wraps = _with_vault(known, look)
    if master not in ids:
        raise Refused("the file has no such master key: see `steward keys status`")
    if master == ids[0] or wraps:
        raise Refused(f"this master key is in use (it wraps {wraps:,} keys): `steward keys rotate` first")
    lines = file.read_text(encoding="utf-8").splitlines()
    write_private(file, "\n".join(line for line in lines if line.strip().partition(":")[0] != master) + "\n")
    click.echo(f"{master} is gone from {file}.")


@keys.command(epilog="Example: steward keys scrub")
def scrub() -> None:
    """Write the table of keys anew, so that its files hold no destroyed key (wrapped as it was). Readers wait meanwhile."""
    from shared.privacy import keys as store

    _run(store.scrub(_owner_url(settings())))
    click.echo("The table of keys was written anew.")


def _with_vault(known: Mapping[str, str], work: Callable[[Pool, Vault, MasterKeys], Awaitable[_T]]) -> _T:
    """Runs `work` on the key database, as its owner."""

    async def run() -> _T:
        from shared.mesh.store import open_pool
        from shared.privacy.masters import MasterKeys
        from shared.privacy.vault import Vault

        masters = MasterKeys.from_values(known.get("STEWARD_MASTER_KEY_FILE"), known.get("STEWARD_MASTER_KEY"))
        pool = await open_pool(_owner_url(known), size=1, application="steward-keys")
        try:
            return await work(pool, Vault(pool, masters), masters)
        finally:
            await pool.close()

    return _run(run())


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    from asyncpg import PostgresError, UndefinedTableError

    try:
        return asyncio.run(work)
    except UndefinedTableError:
        raise Unavailable("the key database has no keys yet: start with `steward up`") from None
    except PostgresError as error:
        raise Unavailable(f"the key database refused ({type(error).__name__}): see `steward doctor`") from error


def _owner_url(known: Mapping[str, str]) -> str:
    url = known.get("STEWARD_KEYS_OWNER_DATABASE_URL")
    if not url:
        raise Unavailable("no stack has been started here (no key database is known): start with `steward up`")
    return url


def _file(known: Mapping[str, str]) -> Path:
    name = known.get("STEWARD_MASTER_KEY_FILE")
    if not name:
        raise Refused("the master key is not in a file: change it where it comes from, then `rotate --rewrap-only`")
    return Path(name)


def _now() -> datetime:
    return datetime.now(UTC)
