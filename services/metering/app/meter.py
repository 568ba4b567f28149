"""One transaction of metering: from generations to rated lines, log rows, sums and what waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from services.metering import charged, store
from services.metering.app.room import Room
from services.metering.identity import DAY_MS, digest_of, identities, reversal_of
from services.metering.price_desk import name_of
from services.metering.price_version import PriceVersion, to_json
from services.metering.pricing import Unpriced, billed_quantities
from services.metering.reconcile import Reported, reconcile
from services.metering.usage import (
    HOUR_US,
    Arrival,
    Effects,
    Place,
    Priced,
    Way,
    instant,
    microseconds,
    price,
)
from shared.contract import events, topics
from shared.contract.base import twin
from shared.contract.ids import derived_id
from shared.mesh import Received, Transaction
from shared.policy import policy

# A price can release these; the others wait for a person, or for the original that they correct.
FOR_PRICES = ("unknown_model", "unknown_price")
FOR_ORIGINALS = ("original_unknown",)
_FLAGGED = "negative_bucket"
_OTHERS = (_FLAGGED, "amount_out_of_range", "stale", "future", "original_not_kept", "original_of_other_workspace")
REASONS = (*FOR_PRICES, *FOR_ORIGINALS, *_OTHERS)
"""Why usage waits."""

ROLLUP_DAYS = 30 * policy().rollup_months
ROLLUPS_LIVE = timedelta(days=ROLLUP_DAYS)
_LOADED = 2_000
_FIRST = 0  # the revision of first prices: every process has them from its catalogue
_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_NOT_KEPT = "not-kept"  # stands where a key would, if its workspace keeps no log
_CORRECTED = events.UsageCorrected.TYPE
_USAGE = {
    events.GenerationCompleted.TYPE: twin(events.Usage),
    events.UsageCorrected.TYPE: twin(events.Correction),
}


class Rerated(NamedTuple):
    """What a second rating came to: rows seen, rows that cost something else now, rows without a price; and what the
    changed ones cost before and after, in pico-dollars."""

    examined: int
    changed: int
    unpriced: int
    before_pico: int
    after_pico: int


def rollups_from(now: datetime) -> int:
    """The first hour (since 1970) of which sums are kept."""
    return microseconds(now) // HOUR_US - 24 * ROLLUP_DAYS


def usage_of(row: Any) -> Any:
    """A log row as the usage that it was rated as."""
    reported = msgspec.json.decode(row["quantities"])
    outcome, _, finish = row["ended"].partition("/")
    return _USAGE[events.GenerationCompleted.TYPE](
        account=row["account"], workspace=row["workspace"], key=row["key_id"], generation_ref=row["generation_ref"],
        model=row["model"], provider=row["provider"], tier=row["tier"].partition(">")[0], outcome=outcome,
        finish_reason=finish or None, byok=row["rule"] == "byok", data_sharing=row["rule"] == "data_sharing",
        log_retention_days=row["retention_days"], input_tokens=row["input_tokens"], output_tokens=row["output_tokens"],
        tokens={u: n for u, n in reported.items() if u in events.BUCKETS},
        counts={u: n for u, n in reported.items() if u in events.COUNTS},
    )  # fmt: skip


class Metering:
    """The effects of one transaction."""

    def __init__(self, room: Room, tx: Transaction) -> None:
        self._room, self._tx = room, tx
        self._quarantine: list[tuple[Any, ...]] = []
        self._now_us = microseconds(tx.now)
        self._now_ms = self._now_us // 1000
        self._effects = self._new_effects()

    def _new_effects(self) -> Effects:
        # What is older than the rollups reach (released after a long time) is charged, and in no sum.
        return Effects(topics.USAGE_RATED.partitions, rollups_from(self._tx.now), self._room.keys.by_ordinal)

    async def take(self, events_to_rate: Sequence[Received], erased: Sequence[Received] = ()) -> None:
        """Events from the topic: each is rated, a duplicate, quarantined, or `erased`: of somebody who is erased, so that
        nothing of it stays but the hash that tells its repeats."""
        room, tx = self._room, self._tx
        await room.refresh(tx.db)
        received = [*events_to_rate, *erased] if erased else events_to_rate
        room.loaded = len(received) > _LOADED
        if room.settings:
            for usage in [r.event.data for r in received]:
                if room.settings.get(usage.workspace, 90) < usage.log_retention_days:
                    usage.log_retention_days = room.settings[usage.workspace]
        if room.restricted:
            for usage in [r.event.data for r in received]:
                if room.restricted.get(usage.key, 90) < usage.log_retention_days:
                    usage.log_retention_days = room.restricted[usage.key]
        fresh, stale, duplicates = self._identify(received)
        gone = {id(r.event) for r in erased}
        n_erased = 0
        if gone:
            n_erased = sum(1 for r, _ in stale if id(r.event) in gone)
            stale = [(r, why) for r, why in stale if id(r.event) not in gone]
        digests: dict[bytes, int] = {}
        if fresh and room.dedupe:
            digests = await store.claim_seen(tx.db, {key: arrival[3] for key, arrival in fresh.items()})
        conflicts = sum(1 for key, digest in digests.items() if fresh.pop(key)[3] != digest) + duplicates[1]
        n_duplicates = len(digests) + duplicates[0] + await self._keep_stale(stale)
        first = [arrival[0] for arrival in fresh.values()]
        if gone:
            forgotten = [key for key, arrival in fresh.items() if id(arrival[0]) in gone]
            for key in forgotten:
                del fresh[key]
            tx.count("erased", n_erased + len(forgotten))
        corrections = {key: arrival for key, arrival in fresh.items() if arrival[0].type == _CORRECTED}
        for key in corrections:
            del fresh[key]
        kept, revision = list(self._quarantine), room.revision
        flagged = self._rate(fresh)
        if len(self._quarantine) > len(kept):
            await room.refresh(tx.db, hold=True)
            if room.revision != revision:
                self._effects, self._quarantine = self._new_effects(), kept
                self._rate(fresh)
        await self._write()
        for key, (event, record, at_us, _, _) in corrections.items():
            of = self._remembered(event.data.original)
            await self._correct(event.id, event.data, key, of, at_us, instant(record.timestamp))
        self._saw(first)
        tx.count("duplicates", n_duplicates)
        tx.count("conflicts", conflicts)
        for flag, n in flagged.items():
            tx.count(f"flagged:{flag}", n)
        tx.count("quarantined", await store.quarantine(tx.db, self._quarantine))

    def _identify(
        self, received: Sequence[Received]
    ) -> tuple[dict[bytes, Arrival], list[tuple[Received, str]], tuple[int, int]]:
        """(key -> generation, stale events with their reason, (duplicates, conflicts) in here)."""
        window = policy()
        low = self._now_us - window.window // _MICROSECOND
        high = self._now_us + window.future // _MICROSECOND
        fresh: dict[bytes, Arrival] = {}
        stale: list[tuple[Received, str]] = []
        duplicates = conflicts = 0
        found = identities([r.event.id for r in received], self._room.keys.by_ordinal)
        for r, (uuid, made_ms, key, seed) in zip(received, found, strict=True):
            event, record = r.event, r.record
            at_us = microseconds(event.time)
            made_us = made_ms * 1000
            if made_us > high or at_us > high:
                stale.append((r, "future"))
                continue
            if made_us < low or at_us < low or not key:
                stale.append((r, "stale"))
                continue
            arrival = (event, record, at_us, digest_of(record.value, seed), uuid)
            before = fresh.setdefault(key, arrival)
            if before is arrival:
                continue
            if self._room.dedupe:
                duplicates += 1
                conflicts += before[3] != arrival[3]
                continue
            while fresh.setdefault(key, arrival) is not arrival:  # switched off: the repeat is let through, and billed
                key = key[:-1] + bytes([(key[-1] + 1) % 256])
        return fresh, stale, (duplicates, conflicts)

    def _rate(self, fresh: Mapping[bytes, Arrival]) -> Counter[str]:
        """Rates, or quarantines; returns how many were flagged, by flag."""
        book, effects = self._room.book, self._effects
        flagged: Counter[str] = Counter()
        for key, (event, record, at_us, _, uuid) in effects.add_plain(self._room.known, fresh.items(), self._now_us):
            usage, event_at, known_at = event.data, event.time, instant(record.timestamp)
            flagged.update(usage.flags)
            if _FLAGGED in usage.flags:
                self._hold(_FLAGGED, "", event.type, event.id, usage, key, event_at, known_at)
                continue
            priced = price(book, usage, event_at, known_at)
            if isinstance(priced, Unpriced):
                self._hold(priced.reason, priced.missing, event.type, event.id, usage, key, event_at, known_at)
            else:
                effects.add(usage, uuid, key, at_us, priced, self._now_us)
                self._compare(usage, event_at, known_at, priced)
        return flagged

    def _compare(self, usage: Any, event_at: datetime, known_at: datetime, priced: Priced) -> None:
        """Notes what the provider says it charged, if it does."""
        if usage.cost_reported_pico is not None:
            rated = priced.rated
            self._effects.reported.append(
                Reported(usage, event_at, known_at, rated.amount_pico, rated.list_amount_pico, rated.rule)
            )

    def _hold(
        self, reason: str, missing: str, kind: str, event_id: str | None, usage: Any, key: bytes, event_at: datetime,
        known_at: datetime,
    ) -> None:  # fmt: skip
        """Usage that waits. At log retention 0 it waits as a line does: no generation (nor one that it corrects, but for what
        that is remembered by), no key, an hour."""
        kept = msgspec.to_builtins(usage)
        original_key = self._remembered(usage.original) if kind == _CORRECTED else b""
        if not usage.log_retention_days:
            event_id = None
            kept["key"] = _NOT_KEPT
            kept.pop("generation_ref", None)
            if "original" in kept:
                kept["original"] = store.NO_GENERATION
            event_at = event_at.replace(minute=0, second=0, microsecond=0)
        self._quarantine.append(
            (
                reason,
                missing,
                kind,
                event_id,
                event_at,
                known_at,
                self._tx.now,
                usage.provider,
                usage.model,
                kept,
                key,
                original_key or None,
            )
        )

    async def _keep_stale(self, stale: Sequence[tuple[Received, str]]) -> int:
        """Stale events wait for a person, each id once; returns the repeats."""
        if not stale:
            return 0
        room = self._room
        idents = {r.event.id: room.stale_idents(r.event.id) for r, _ in stale}
        known = await store.stale_known(self._tx.db, [i for found in idents.values() for i in found])
        newest = [found[0] for found in idents.values() if not any(i in known for i in found)]
        fresh = await store.add_stale(self._tx.db, newest, self._tx.now.date()) if newest else set()
        taken = []
        for r, reason in stale:
            event = r.event
            ident = idents[event.id][0]
            if ident not in fresh:
                continue
            fresh.discard(ident)  # the second one in this batch is a repeat
            taken.append(event)
            self._hold(
                reason, "", event.type, event.id, event.data, self._now_ms.to_bytes(6, "big") + ident[6:], event.time,
                instant(r.record.timestamp),
            )  # fmt: skip
        self._saw(taken)
        return len(stale) - len(taken)

    def _remembered(self, generation: str) -> bytes:
        """By what a generation is remembered; empty if its day has no key: outside the window."""
        (who,) = identities([generation], self._room.keys.by_ordinal)
        return who.key

    async def _original(self, usage: Any, of: bytes) -> Any:
        """What is corrected, locked: its log row, or else its charge without a name as such a row; None if there is neither.
        `of`: what it is remembered by, or nothing."""
        room, tx = self._room, self._tx
        if usage.original != store.NO_GENERATION:
            row: Any = await store.logged(tx.db, usage.original, tx.now, lock=True)
        else:
            # It waited without the id, which whoever has a row can still tell.
            rows = await store.logged_made_at(tx.db, int.from_bytes(of[:6], "big"), tx.now) if of else []
            row = next((row for row in rows if self._remembered(str(row["generation_id"])) == of), None)
        if row is not None or not of:
            return row
        charge = await store.charge_of(tx.db, of)
        if charge is None:
            return None
        its_own = charged.owner(of, usage.workspace, room.keys.by_ordinal) == charge["owner"]
        return dict(charge) | {
            "generation_id": None, "generation_ref": None, "model": usage.model, "key_id": usage.key,
            "workspace": usage.workspace if its_own else None,
            # No row is made again, and the next correction finds a charge, too.
            "retention_days": min(charge["retention_days"], usage.log_retention_days, policy().window.days),
        }  # fmt: skip

    async def _correct(
        self, event_id: str | None, usage: Any, key: bytes, of: bytes, at_us: int, known_at: datetime
    ) -> bool:
        """Reverses what the original was charged and charges what it should have been; False if it has to wait.

        `of`: what the original is remembered by; empty if that cannot be told, or its window is over.
        """
        room, tx = self._room, self._tx
        original = await self._original(usage, of)
        reason = None
        if original is None:
            reason = "original_unknown" if usage.log_retention_days or of else "original_not_kept"
        elif original["workspace"] != usage.workspace:
            reason = "original_of_other_workspace"
        if reason is None and original is not None:
            event_at = original["occurred_at"]
            priced = price(room.book, usage, event_at, known_at)
            version = room.book.version(original["price_version"])
            if isinstance(priced, Unpriced):
                reason = priced.reason
            elif version is not None:
                self._effects = self._new_effects()
                self._exchange(original, version, usage, key, of, priced)
                # One rated record and two lines: audit holds booked lines against the sum of both counters.
                tx.count("reversed")
                await self._forget([original], [of])
                await self._write()
                return True
            else:
                reason = "unknown_price"
        self._hold(reason or "", "", _CORRECTED, event_id, usage, key, instant(at_us // 1000), known_at)
        return False

    async def _forget(self, originals: Sequence[Any], keys: Iterable[bytes]) -> None:
        """Removes what originals were charged by, before what they are charged instead takes its place."""
        if rows := [row for row in originals if row["generation_id"] is not None]:
            await store.forget_logged(self._tx.db, rows)
        if known := [key for key in keys if key]:
            await store.forget_charged(self._tx.db, known)

    def _exchange(
        self, original: Any, version: PriceVersion, usage: Any, key: bytes, of: bytes, priced: Priced
    ) -> None:
        """Adds two lines: one takes the original's charge back, one charges `usage`, whose row takes the row's place.

        The charge of what the row said before stays in the ledger, reversed. `key`: the new line's; `of`: what the
        generation is remembered by, or nothing.
        """
        effects = self._effects
        reported = msgspec.json.decode(original["quantities"])
        rule, at_us = original["rule"], microseconds(original["occurred_at"])
        billed = billed_quantities(
            version,
            {u: n for u, n in reported.items() if u in events.BUCKETS},
            {u: n for u, n in reported.items() if u in events.COUNTS},
            rule,
        )
        # The row is kept as long as it was to be, or as its workspace, or its key's maker, wants now, whatever the
        # correction says.
        days = self._room.kept_days(original["workspace"], original["key_id"], original["retention_days"])
        usage = msgspec.structs.replace(usage, log_retention_days=days, generation_ref=original["generation_ref"])
        if usage.key == _NOT_KEPT:
            usage.key = original["key_id"]
        before = msgspec.structs.replace(usage, model=original["model"], key=original["key_id"])
        terms = {"byok": "byok", "data_sharing": "sharing"}.get(rule, "list")
        place, way = Place(before), Way(before, version.version, original["tier"], rule, terms)
        hour = at_us // HOUR_US
        effects.add_line(
            place, way, reversal_of(key), hour, {u: -n for u, n in billed.items()}, -original["amount_pico"]
        )
        charged = 0 if rule == "byok" else original["amount_pico"]
        effects.sum(place, way, hour, -1, -original["input_tokens"], -original["output_tokens"], -charged)
        generation = original["generation_id"]
        uuid = None if generation is None else generation.bytes
        effects.add(usage, uuid, key, at_us, priced, self._now_us, of)

    async def rerate(
        self, rows: Sequence[Any], cause: str, known_at: datetime, *, version: str | None = None, dry_run: bool = False
    ) -> Rerated:
        """Rates logged generations (locked rows) again by what was known at `known_at`, and books what differs.

        `cause`: the order that asks for it; with the generation's id it makes the new line's. `version`: only what
        this one rates. What has no price then stays as it is.
        """
        book, changed = self._room.book, []
        unpriced = before = after = 0
        for row in rows:
            usage = usage_of(row)
            priced = price(book, usage, row["occurred_at"], known_at)
            before_version = book.version(row["price_version"])
            if isinstance(priced, Unpriced) or before_version is None:
                unpriced += 1
            elif version in (None, priced.rated.price_version) and priced.amount_pico != row["amount_pico"]:
                changed.append((row, before_version, usage, priced))
                before += row["amount_pico"]
                after += priced.amount_pico
        if changed and not dry_run:
            ids = [derived_id(self._now_ms, cause, row["generation_id"].bytes) for row, *_ in changed]
            lines = identities(ids, self._room.keys.by_ordinal)
            keys = [self._remembered(str(row["generation_id"])) for row, *_ in changed]
            for (row, before_version, usage, priced), line, of in zip(changed, lines, keys, strict=True):
                self._exchange(row, before_version, usage, line.key, of, priced)
            # No record came, so none is counted: only lines.
            self._effects.rated = 0
            self._tx.count("rerated_lines", 2 * len(changed))
            await self._forget([row for row, *_ in changed], keys)
            await self._write()
        return Rerated(len(rows), len(changed), unpriced, before, after)

    async def release(self, rows: Sequence[Any], *, by_person: bool) -> None:
        """Rates quarantined usage again; what still has no price goes on waiting."""
        room, tx = self._room, self._tx
        await room.refresh(tx.db)
        released = []
        corrections = []
        erased = await self._erased(rows)
        for row in rows:
            usage: Any = msgspec.convert(row["usage"], _USAGE[row["event_type"]])
            if not erased.isdisjoint((("account", usage.account), ("workspace", usage.workspace))):
                continue  # whose row it is, is erased: the erasure takes it
            usage.log_retention_days = room.kept_days(usage.workspace, usage.key, usage.log_retention_days)
            key = self._line_key(row["line_key"])
            if row["event_type"] == _CORRECTED:
                corrections.append((row, usage, key))
                continue
            priced = price(room.book, usage, row["event_at"], row["known_at"])
            if isinstance(priced, Unpriced):
                # What was known then could not rate it; what is known now may.
                priced = price(room.book, usage, row["event_at"], tx.now)
            if isinstance(priced, Unpriced):
                continue
            uuid = None if row["event_id"] is None else row["event_id"].bytes
            self._effects.add(usage, uuid, key, microseconds(row["event_at"]), priced, self._now_us)
            self._compare(usage, row["event_at"], row["known_at"], priced)
            released.append(row["id"])
        await self._write()
        for row, usage, key in corrections:
            event_id = None if row["event_id"] is None else str(row["event_id"])
            of, at_us = row["original_key"] or b"", microseconds(row["event_at"])
            if await self._correct(event_id, usage, key, of, at_us, row["known_at"]):
                released.append(row["id"])
        self._quarantine.clear()
        if released:
            await store.release(tx.db, released)
            tx.count("quarantined", -len(released))

    async def _erased(self, rows: Sequence[Any]) -> set[tuple[str, str]]:
        """Which owners of quarantined rows are erased."""
        tombstones = self._room.tombstones
        if tombstones is None:
            return set()
        owners = {(kind, row["usage"][kind]) for row in rows for kind in ("account", "workspace")}
        return await tombstones.erased(owners, self._tx)

    def _line_key(self, key: bytes) -> bytes:
        """A line's key in the window that billing de-duplicates in: what waited for long comes as of today."""
        low = self._now_ms - policy().window // _MILLISECOND + DAY_MS
        return key if int.from_bytes(key[:6], "big") >= low else self._now_ms.to_bytes(6, "big") + key[6:]

    async def _write(self) -> None:
        """Publishes the rated lines and writes log and sums."""
        effects, tx, room = self._effects, self._tx, self._room
        self._effects = self._new_effects()
        for partition, record, units in effects.records():
            tx.publish(
                topics.USAGE_RATED, events.UsageRated, id=record, subject="metering", data={"units": units},
                partition=partition, trusted=True,
            )  # fmt: skip
        new = effects.versions - room.pinned
        for version_id in sorted(new):
            version = room.book.version(version_id)
            assert version is not None, "what rated a line is in the book"
            row = {"body": to_json(version), "known_from": version.known_from, "name": name_of(version)}
            await store.add_prices(tx.db, [row], _FIRST)
        if new:
            tx.after_commit(lambda: room.pinned.update(new))
        if effects.rows:
            await store.add_log(tx.db, effects.rows)
        if effects.charges:
            await store.add_charged(tx.db, effects.charges)
        if effects.reported:
            await store.add_costs(tx.db, reconcile(room.book, effects.reported))
        if totals := effects.totals():
            await store.add_pending(tx.db, totals)
        tx.count("rated", effects.rated)

    def _saw(self, seen: Iterable[Any]) -> None:
        """Of events that came for the first time: their sources' progress."""
        if self._tx.replay:
            return
        numbers: defaultdict[str, list[str]] = defaultdict(list)
        for event in seen:
            if event.sequence is not None:
                numbers[event.source].append(event.sequence)
        for source, sequences in numbers.items():
            self._tx.saw(topics.GENERATIONS.name, source, max(map(int, sequences)), len(sequences))
