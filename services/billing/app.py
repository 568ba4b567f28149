"""Billing: topics to handlers, jobs, reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from prometheus_client import Gauge

from services.billing import charges, ledger, payments, store
from services.billing.books import State
from services.billing.data_map import HOLDING, kept_tables
from services.billing.ending import end_years
from services.billing.ledger import BillingConfig
from shared.contract import events, topics
from shared.contract.cards import holds_card
from shared.contract.codec import encode_json
from shared.contract.ids import derived_id
from shared.contract.topics import pace
from shared.mesh import Batch, Footprint, Partitioned, Service, Transaction, metrics
from shared.mesh.http import NotFound
from shared.mesh.store import Connection, OutboxRow
from shared.mesh.transaction import rfc3339, shard_of
from shared.policy import policy
from shared.privacy.holder import attach
from shared.privacy.vault import Shredded, Tampered, seal_value, vault_of

WAITING = Gauge(
    "steward_billing_waiting_payments",
    "Refunds and disputes that wait for their purchase (outcome=waiting), or are suspense.",
    ["outcome"],
    registry=metrics.REGISTRY,
)

CONFIG = BillingConfig.parse(files("services.billing").joinpath("billing.toml").read_text(encoding="utf-8"))

_SAVED = events.PaymentMethodSaved.TYPE
# Grants, waiting payments and balances that one run of a job takes on; the rest comes with the next run.
_CHUNK = 2_000
# Every balance is published again this often, so that a stale record of a frozen relay does not stay the last one.
_ROUND = timedelta(hours=1)
# Rated records carry up to thousands of lines each: so many of them are one transaction. A journal costs as much as five
# lines, so more lines of a workspace at once cost less each; 72 full records are 58,000 lines and 220 MB at the peak.
_RECORDS = 72


async def observe(db: Connection, now: datetime) -> None:
    """Refreshes the room's gauges."""
    counts = await store.waiting_counts(db)
    for state in ("waiting", "suspense"):
        WAITING.labels(state).set(counts.get(state, 0))


service = Service(
    "billing",
    migrations=Path(__file__).parent / "migrations",
    footprint=Footprint(memory_mb=180, replicas=2, most=3, scales_on=topics.USAGE_RATED, per_second=100, books=True),
    partitioned=(
        Partitioned(
            "line_seen", back=policy().window.days + 1, ahead=7, keeps=policy().window, bound=charges.day_bound
        ),
    ),
    on_observe=observe,
    on_sweep=end_years,
)


@service.consumes(topics.USAGE_RATED, batch=_RECORDS, lingers=True, bulk_linger_ms=1_000)
async def post_charges(batch: Batch, tx: Transaction) -> None:
    """Books the lines that are new: one journal for each workspace and period of use."""
    db, now = tx.db, tx.now
    sheets = charges.sheets(received.event for received in batch.events)
    low = charges.low_water(now, policy().window)
    # Hardly ever is a line here already: its unique key tells, and only then is it looked for.
    if batch.replay or not await store.add_new(db, sheets, low):
        found = charges.Sifted.of(sheets)
        found.drop_seen(await store.seen_lines(db, found, low))
        found.drop_seen(await store.add_seen(db, found.seen_rows(), low, now.date()))
        found.settle_repeats()
        sheets = found.rest()
        tx.count("line_duplicates", found.duplicates)
        tx.count("conflicts", found.conflicts)
    if sheets:
        await _charge(tx, sheets, batch.erased_subjects)
    tx.count("booked", sum(len(sheet.ids) for sheet in sheets))


async def _charge(tx: Transaction, sheets: list[charges.Sheet], erased: frozenset[tuple[str, str]]) -> None:
    """Books lines that are new. Those of erased workspaces whose name leads nowhere any more are nobody's."""
    db, now = tx.db, tx.now
    todo, owners = charges.bills(sheets), charges.owners(sheets)
    journals = await store.journal_ids(db, len(todo))
    await store.add_records(db, {sheet.record for sheet in sheets}, now.year, journals)
    gone = charges.erased_workspaces(owners, erased) if erased else set()
    books = await store.open_books(db, now, CONFIG, owners, dict.fromkeys(owners, CONFIG.legal_class()), gone)
    if gone := gone - books.standings.keys():
        sheets = charges.nameless(sheets, gone, books.nobody(CONFIG.legal_class()).workspace)
        todo = charges.bills(sheets)
    months = charges.byok_months(sheets)
    byok = await store.lock_byok(db, months, {who for kind, who in erased if kind == "account"})
    # Nobody knows what an erased account has used of its allowance: it counts as unused.
    ended = set(months) - byok.keys()
    byok |= dict.fromkeys(ended, 0)
    closed = await store.share_periods(
        db, {(books.standings[bill.workspace].legal_class, bill.period) for bill in todo}, CONFIG
    )
    lines = charges.priced(sheets, byok, CONFIG)
    ids = iter(journals)
    for legal_class, of_class in charges.by_class(books, todo).items():
        rows = charges.post(books, of_class, lines, ids, closed)
        await store.add_lines(db, legal_class, now.year, rows)
    if ended:
        await store.add_erased_byok(db, [(month, byok.pop((who, month))) for who, month in sorted(ended)])
    await store.set_byok(db, byok)
    publish_balances(tx, await store.close_books(db, books))


@service.consumes(topics.PAYMENTS, batch=1_000)
async def post_payments(batch: Batch, tx: Transaction) -> None:
    """Books payments, grants, opening balances and notes, each once, in order; of the erased, money alone."""
    db, now = tx.db, tx.now
    await _save_methods(batch, tx)
    arrived = [received.event for received in batch.events if received.event.type != _SAVED]
    owners = {event.data.workspace: event.data.account for event in reversed(arrived)}
    stated = payments.stated_jurisdictions(arrived)
    classes = {name: CONFIG.legal_class(stated.get(name)) for name in owners}
    erased = charges.erased_workspaces(owners, batch.erased_subjects) if batch.erased_subjects else set()
    numbers = await store.payers(db, *payments.named_by(arrived, erased)) if erased else ()
    books = await store.open_books(db, now, CONFIG, owners, classes, erased, numbers)
    if erased:
        # One that is known and only its account is erased goes on, under whoever has taken it over.
        erased = {w for w in erased if ("workspace", w) in batch.erased_subjects or w not in books.standings}
    living = {w: account for w, account in owners.items() if ("account", account) not in batch.erased_subjects}
    await store.take_over(db, living)
    if moves := payments.moves(books, stated):
        books.other_accounts = await store.enter_class(db, moves)
    known = await store.open_payments(
        db,
        books,
        causes=payments.causes(books, arrived),
        payments={e.data.payment for e in arrived if hasattr(e.data, "payment")},
        disputes={e.data.dispute for e in arrived if hasattr(e.data, "dispute")},
        notes={e.data.note for e in arrived if hasattr(e.data, "note")},
        erased=erased,
    )
    for event in arrived:
        tx.count(f"payments_{known.take(event)}")
    tx.count("jurisdiction_conflicts", known.jurisdiction_conflicts)
    publish_balances(tx, await store.close_payments(db, known))


async def _save_methods(batch: Batch, tx: Transaction) -> None:
    """Keeps payment methods that may be charged again: the newest token of each, sealed anew under the workspace's key."""
    living = []
    for received in batch.events:
        data = received.event.data
        if received.event.type != _SAVED:
            continue
        if {("workspace", data.workspace), ("account", data.account)} & batch.erased_subjects:
            tx.count("payments_erased")
        else:
            living.append(received)
    if not living:
        return
    vault = vault_of(tx)
    opens = await vault.opener([received.event.data.token for received in living])
    keys = await vault.subject_keys({("workspace", r.event.data.workspace) for r in living}, at=tx.now)
    for event, record in living:
        data = event.data
        try:
            token = opens(data.token)
        except (Shredded, Tampered):
            tx.refuse(record, "unreadable", "the token cannot be opened")
            continue
        if holds_card(token):
            tx.refuse(record, "card", "the token has the shape of a card number", keep=False)
            continue
        sealed = seal_value(keys["workspace", data.workspace], token, where="payment_method.token")
        new = await store.save_method(tx.db, data.workspace, data.method, data.account, sealed, event.time)
        tx.count("payments_created" if new else "payments_exists")


@service.job("expire-grants", every=timedelta(minutes=1))
async def expire_grants(now: datetime, tx: Transaction) -> None:
    """Granted credit that is over becomes breakage."""
    due = await store.due_grants(tx.db, now, _CHUNK)
    if due:
        # Opening the books is what expires grants, here as everywhere. Erased workspaces have none.
        books = await store.open_books_by_id(tx.db, now, CONFIG, due)
        publish_balances(tx, await store.close_books(tx.db, books))


@service.job("settle-waiting", every=timedelta(minutes=1))
async def settle_waiting(now: datetime, tx: Transaction) -> None:
    """What has waited too long for its purchase becomes suspense."""
    due = await store.due_waiting(tx.db, now - CONFIG.wait, _CHUNK)
    if not due:
        return
    books = await store.open_books_by_id(tx.db, now, CONFIG, {item.workspace_id for item in due})
    known = await store.open_payments(
        tx.db, books, causes=(), payments={item.payment for item in due},
        disputes={item.dispute for item in due if item.dispute}, notes=(),
    )  # fmt: skip
    by_id = {standing.workspace_id: standing for standing in books.standings.values()}
    for item in due:
        # A purchase may have come between the look and the lock.
        waiting = known.waiting.get(item.cause)
        if waiting is not None and waiting.state == "waiting" and item.workspace_id in by_id:
            known.give_up(item.cause, by_id[item.workspace_id])
    tx.count("suspense", known.suspense)
    publish_balances(tx, await store.close_payments(tx.db, known))


@service.job("close-periods", every=timedelta(hours=1))
async def close_periods(now: datetime, tx: Transaction) -> None:
    """Closes the months whose time for late usage is over."""
    for legal_class, period in await store.closable_periods(tx.db, now):
        start, end = ledger.period_start(period), ledger.period_end(period)
        years = charges.booking_years(period, now)
        await store.close_period(tx.db, legal_class, period, start, end, years, now)
        tx.count("periods_closed")


@service.job("republish-balances", every=timedelta(minutes=1))
async def republish_balances(now: datetime, tx: Transaction) -> None:
    """Goes round all balances and publishes each again, as it is, under the id that it had."""
    publish_balances(tx, await store.next_balances(tx.db, _CHUNK, now, now - _ROUND))


@service.job("forget-late-lines", every=timedelta(hours=1))
async def forget_late_lines(now: datetime, tx: Transaction) -> None:
    """Released lines are remembered for W from their arrival."""
    await store.forget_late(tx.db, (now - policy().window).date())


# --- erasure -----------------------------------------------------------------------------------------------------


async def before_erase(cases: Mapping[str, frozenset[tuple[str, str]]], tx: Transaction) -> None:
    """In the transaction that begins an erasure, before rows go: ends what the subjects have in the books.

    What is left of a workspace's credit becomes breakage, its balance says `erased` and never changes under its name
    again; a debt stays on its number. What an account used with its own keys is kept without the account. A workspace of
    an account that is not itself erased has been taken over by somebody: it keeps all but the account's name. Once more
    for the same subjects it changes nothing.
    """
    db, now = tx.db, tx.now
    workspaces, accounts = _by_kind(frozenset().union(*cases.values()))
    numbers = await store.numbers_of(db, workspaces)
    if numbers:
        books = await store.open_books_by_id(db, now, CONFIG, numbers)
        ending = [standing for standing in books.standings.values() if not standing.nameless]
        # A workspace of which nothing was published needs no last word.
        known = {standing.workspace for standing in ending if standing.version}
        for standing in ending:
            standing.erased = standing.changed = True
            movement = ledger.lapse(standing.balances)
            if movement.legs:
                cause = f"erasure:{standing.workspace_id}"
                books.post(standing, "erasure", cause, movement, event_at=now, digest=b"")
        publish_balances(tx, [state for state in await store.close_books(db, books) if state.workspace in known])
        classes = await store.classes_of(db, [standing.workspace_id for standing in ending])
        await store.add_erased_workspaces(
            db, [(s.workspace, s.workspace in known, _kept_until(classes[s.workspace_id], now)) for s in ending], now
        )
    if accounts:
        await store.part_with_byok(db, accounts)
        await store.part_with_owners(db, accounts, workspaces)


def _kept_until(classes: Iterable[str], now: datetime) -> datetime:
    """When the last year in which somebody can have been booked by `now` is dropped, in each class that has books of it."""
    days = [policy().books_end(legal_class, now.year) for legal_class in classes]
    return datetime.combine(max(days), time.min, UTC)


async def kept(subjects: frozenset[tuple[str, str]], tx: Transaction) -> list[dict[str, Any]]:
    """What the law keeps of subjects that have just been erased, and until when: tables of a receipt."""
    until = await store.kept_until(tx.db, _by_kind(subjects)[0])
    if until is None:
        return []
    retained = {"ground": "legal_obligation", "until": rfc3339(until)}
    return [
        {"table": table, "action": "retain", "columns": columns, "rows": 0, "retained": retained}
        for table, columns in kept_tables()
    ]


def _by_kind(subjects: frozenset[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """(workspaces, accounts), each in order."""
    found = sorted(subjects)
    return [who for kind, who in found if kind == "workspace"], [who for kind, who in found if kind == "account"]


@service.job("end-erased-balances", every=timedelta(seconds=2))
async def end_erased_balances(now: datetime, tx: Transaction) -> None:
    """Ends the keys of erased workspaces on the balances topic, some time after their last word: so they are compacted."""
    kafka = tx.plugged.get("kafka")
    last_word = pace(hurried=True).forgetting if kafka is not None and kafka.hurried else policy().trim_hold
    for workspace in await store.take_erased_workspaces(tx.db, now - last_word, _CHUNK):
        key = workspace.encode()
        tx.publish_raw(OutboxRow(shard_of(key, None), topics.BALANCES.name, None, key, None))


@service.reads("balance")
async def read_balance(query: Mapping[str, str], tx: Transaction) -> Any:
    """What a workspace has, in all its parts."""
    row = await store.balance(tx.db, query.get("workspace", ""))
    if row is None:
        raise NotFound("no such workspace is known here")
    month = ledger.period_of(tx.now)
    listed = await store.byok_list(tx.db, row["account"], month)
    return {
        "workspace": row["workspace"],
        "account": row["account"],
        "class": row["class"],
        "version": row["version"],
        "changed_at": row["changed_at"],
        "balance_pico": str(int(row["purchased_pico"] + row["granted_pico"] - row["receivable_pico"])),
        "purchased_pico": str(int(row["purchased_pico"])),
        "granted_pico": str(int(row["granted_pico"])),
        "receivable_pico": str(int(row["receivable_pico"])),
        "grants": [
            {
                "grant": grant.grant,
                "remaining_pico": str(grant.remaining_pico),
                "priority": grant.priority,
                "expires_at": grant.expires_at,
            }
            for grant in await store.open_grants(tx.db, row["workspace_id"])
        ],
        "byok": {
            "month": month,
            "list_pico": str(listed),
            "allowance_pico": str(CONFIG.byok_allowance_pico),
            "fee_pico": str(ledger.byok_total(listed, CONFIG)),
        },
    }


@service.reads("journal")
async def read_journal(query: Mapping[str, str], tx: Transaction) -> Any:
    """The charge line at a place in a rated record, the journal that booked it and the block that seals it."""
    record = str(UUID(query.get("record", "")))
    number = int(query.get("line", ""))
    line = await store.line(tx.db, record, number)
    if line is None:
        raise NotFound("no charge line is booked for that record and line")
    journal = await store.journal(tx.db, line["journal"], line["class"], line["booking_year"])
    assert journal is not None, "a charge line without its journal"
    digest = journal["lines_digest"]
    return {
        "line": {
            "record": record,
            "line": number,
            "hour": line["hour"],
            "price_version": line["price_version"],
            "tier": line["tier"],
            "terms": line["terms"],
            "quantities": line["quantities"],
            "amount_pico": str(line["amount_pico"]),
            "list_pico": str(line["list_pico"]),
        },
        "journal": {
            "id": journal["id"],
            "cause": journal["cause"],
            "kind": journal["kind"],
            "class": journal["class"],
            "period": journal["period"],
            "adjusts_period": journal["adjusts_period"],
            "booked_at": journal["booked_at"],
            "event_at": journal["event_at"],
            "lines_digest": None if digest is None else digest.hex(),
            "entries": [
                {"account": e["account"], "kind": e["kind"], "amount_pico": str(int(e["amount_pico"]))}
                for e in journal["entries"]
            ],
        },
        "block": {
            "class": journal["class"],
            "block": journal["block"],
            "hash": journal["hash"].hex(),
            "prev": journal["prev"].hex(),
        },
    }


@service.reads("periods")
async def read_periods(query: Mapping[str, str], tx: Transaction) -> Any:
    """Periods of use: open or closed, and what was charged in the closed ones."""
    return [
        {
            "class": row["class"],
            "period": row["period"],
            "closes_at": row["closes_at"],
            "closed_at": row["closed_at"],
            "workspaces": row["workspaces"],
            "charged_pico": None if row["closed_at"] is None else str(int(row["charged_pico"] or 0)),
            "adjusted_pico": None if row["closed_at"] is None else str(int(row["adjusted_pico"] or 0)),
        }
        for row in await store.periods(tx.db)
    ]


@service.reads("ledger")
async def read_ledger(query: Mapping[str, str], tx: Transaction) -> Any:
    """The whole ledger by legal class and kind of account; `sum_pico` is 0 or the books are wrong."""
    found: dict[str, dict[str, Any]] = {
        head["class"]: {"sum_pico": 0, "entries": 0, "kinds": {}, "block": head["block"], "hash": head["hash"].hex()}
        for head in await store.heads(tx.db)
    }
    for row in await store.ledger(tx.db):
        of_class, amount = found[row["class"]], int(row["amount_pico"])
        of_class["sum_pico"] += amount
        of_class["entries"] += row["entries"]
        of_class["kinds"][row["kind"]] = str(amount)
    return {name: of_class | {"sum_pico": str(of_class["sum_pico"])} for name, of_class in found.items()}


@service.reads("waiting")
async def read_waiting(query: Mapping[str, str], tx: Transaction) -> Any:
    """Refunds and disputes that nobody could match yet, oldest first."""
    rows = await store.waiting(tx.db, min(int(query.get("limit", "100")), 1000))
    return [dict(r) | {"credit_pico": None if r["credit_pico"] is None else str(int(r["credit_pico"]))} for r in rows]


class _Balance(msgspec.Struct, gc=False, omit_defaults=True):
    workspace: str
    version: int
    balance_pico: str
    purchased_pico: str
    granted_pico: str
    receivable_pico: str
    erased: bool = False


class _BalanceChanged(msgspec.Struct, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    data: _Balance


def publish_balances(tx: Transaction, states: Iterable[State]) -> None:
    """One record for each workspace, with what it has at its version.

    There is one for every journal of a batch: so they are written by hand, at half of what `tx.publish` costs.
    """
    topic, kind = topics.BALANCES.name, events.BalanceChanged.TYPE
    at, said, ms = None, "", 0
    for workspace, version, purchased, granted, receivable, changed_at, erased in states:
        if changed_at is not at:  # those of one transaction share their instant
            at, said, ms = changed_at, rfc3339(changed_at), ledger.microseconds(changed_at) // 1000
        has = _Balance(
            workspace, version, str(purchased + granted - receivable), str(purchased), str(granted), str(receivable),
            erased,
        )  # fmt: skip
        cause = derived_id(ms, "balance", workspace, str(version))
        key = workspace.encode()
        raw = encode_json(_BalanceChanged("1.0", cause, tx.service, kind, workspace, said, has))
        tx.publish_raw(OutboxRow(shard_of(key, None), topic, None, key, raw))


holder = attach(service, HOLDING, before=before_erase, keeps=kept, last=True)
