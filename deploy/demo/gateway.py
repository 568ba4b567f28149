"""A seeded gateway: what two instances of it emit, and its own account of that.

The same seed and clock give the same bytes. Faults are injected on top of the generations and never instead of one:
repeats (at once and later), late ones, records that are no events, models without a price, an id that is too old.
Nothing here talks to Kafka: `opening` and `play` give records, `emit` sends them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from deploy.demo.account import Account
from deploy.demo.arrivals import Arrival, Arrivals
from deploy.demo.records import Headers, Record, Recorder, microseconds, rfc3339_us
from deploy.demo.world import (
    LATER_PRICED,
    LATER_PRICES,
    NEVER_PRICED,
    Draw,
    Model,
    Workspace,
    leaver,
    offered,
    workspaces,
)
from services.metering.price_book import PriceBook
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.codec import build
from shared.contract.money import PICO
from shared.contract.topics import Topic
from shared.mesh.clock import Clock
from shared.policy import policy

DAY_US = 86_400_000_000

# Faults per generation; of each at least one.
_REPEATS = 0.012
_REPEATS_AT_ONCE = 0.6
_LATE = 0.01
_MALFORMED = 0.003
_NEVER_PRICED = 0.004
_LATER_PRICED = 0.008
_CORRECTIONS = 0.0005
# Where in the run the price of the new model is published, as a share of the generations.
PRICE_AT = 0.6
_MEMORY = 8_192
"""Generations that the gateway remembers and may send again."""

_HOUR_US = 3_600_000_000


class _Sent(NamedTuple):
    """A generation that may be repeated or corrected."""

    record: Record
    id: str
    at_us: int
    usage: dict[str, Any]
    workspace: Workspace


class Gateway:
    """Two instances of a gateway over one seeded world. Play it once.

    `leaver`: the account that asks for its deletion while this plays. Its traffic goes on; what of it is rated and what
    is dropped is decided by when the mesh reads it, so it is counted apart. `leaver_is_gone`: set by whoever has seen
    that all usage of the leaver that is still to be sent must be dropped. `played`: generations until now.
    """

    def __init__(self, *, seed: int, clock: Clock, book: PriceBook, arrivals: Arrivals, workspace_count: int) -> None:
        self.account = Account()
        self.now = clock.now()
        window = policy().window
        self._oldest_us = microseconds(self.now - window) + DAY_US  # a long run must not make it too old
        self._random = Random(f"gateway {seed}")
        models = offered(book, self.now - window, self.now)
        self.workspaces = workspaces(self._random, workspace_count, models)
        self.leaver = leaver(self.workspaces)
        self.leaver_is_gone = False
        self.played = 0
        self._busy = Draw((workspace, workspace.weight) for workspace in self.workspaces)
        self._staying = Draw((one, one.weight) for one in self.workspaces if one.account != self.leaver)
        self._arrivals = arrivals
        self._recorder = Recorder(self._random)
        self._recent: deque[_Sent] = deque(maxlen=_MEMORY)
        self._corrected: set[str] = set()
        self._payments: list[tuple[Workspace, str, int]] = []
        self._disputes: list[tuple[Workspace, str, int]] = []
        self._due = 0.0
        self._malformed_kind = 0

    @property
    def count(self) -> int:
        """How many generations it will play; faults and payments come on top."""
        return self._arrivals.count

    # --- money -----------------------------------------------------------------------------------------------------

    def opening(self) -> Iterator[Record]:
        """Credit before usage: opening balances, a refund that overtakes its purchase, purchases, grants."""
        random = self._random
        for workspace, credit in zip(self.workspaces[3::7], (42_123_456_789_012, -3 * PICO // 2), strict=False):
            data = {"credit_pico": str(credit), "jurisdiction": workspace.jurisdiction}
            self.account.openings_pico += credit
            self.account.credited[workspace.name] += credit
            yield self._pay(events.BalanceOpened, workspace, data)
        total = sum(workspace.weight for workspace in self.workspaces)
        # What a generation costs on average, roughly: most buy enough, some too little, some nothing.
        expected = self._arrivals.count * PICO // 130
        for rank, workspace in enumerate(self.workspaces):
            leaves = workspace.account == self.leaver
            if rank in (2, 5) or (random.random() < 0.08 and not leaves):
                continue
            wanted = int(expected * workspace.weight / total * random.uniform(0.5, 3.5))
            credit = max(1, -(-wanted // (5 * PICO))) * 5 * PICO
            if leaves:
                # It must not be in debt when it goes: some of its credit is to be lost.
                credit = 2 * credit + 25 * PICO
            payment = f"pay-{workspace.name}-1"
            if rank == 4:
                yield self._refund(workspace, payment, credit // 5)
            yield from self._purchase(workspace, payment, credit)
        for rank, workspace in enumerate(self.workspaces):
            if rank == 2 or random.random() < 0.2:
                yield self._grant(workspace, random.choice((1, 2, 5, 10)) * PICO // 2, random.randint(7, 60))

    def _purchase(self, workspace: Workspace, payment: str, credit: int) -> Iterator[Record]:
        data = {
            "payment": payment,
            "credit_pico": str(credit),
            "method": "card",
            "jurisdiction": workspace.jurisdiction,
        }
        record = self._pay(events.PaymentSettled, workspace, data)
        self.account.purchases += 1
        self.account.purchases_pico += credit
        self.account.credited[workspace.name] += credit
        self._payments.append((workspace, payment, credit))
        yield record
        if len(self._payments) == 1 or self._random.random() < 0.05:
            self.account.payments_sent += 1
            yield record  # the processor's webhook came twice

    def _refund(self, workspace: Workspace, payment: str, credit: int) -> Record:
        self.account.refunds_pico += credit
        self.account.credited[workspace.name] -= credit
        data = {"refund": f"ref-{payment}", "payment": payment, "credit_pico": str(credit)}
        return self._pay(events.PaymentRefunded, workspace, data)

    def _grant(self, workspace: Workspace, credit: int, days: int) -> Record:
        self.account.grants_pico += credit
        self.account.credited[workspace.name] += credit
        data = {
            "grant": f"welcome-{workspace.name}",
            "credit_pico": str(credit),
            "expires_at": rfc3339_us(microseconds(self.now) + days * DAY_US),
            "priority": 10,
        }
        return self._pay(events.CreditGranted, workspace, data)

    def _midway(self) -> Iterator[Record]:
        """A refund, and disputes."""
        if self._payments:
            workspace, payment, credit = self._payments[0]
            yield self._refund(workspace, payment, credit // 4)
        for workspace, payment, credit in [p for p in self._payments if p[0].account != self.leaver][5:8]:
            self.account.disputes_pico += credit
            self.account.credited[workspace.name] -= credit
            self._disputes.append((workspace, payment, credit))
            data = {"dispute": f"dis-{payment}", "payment": payment, "credit_pico": str(credit)}
            yield self._pay(events.PaymentDisputed, workspace, data)

    def _near_the_end(self) -> Iterator[Record]:
        """Two disputes end, one stays open; two workspaces buy more."""
        for (workspace, payment, credit), outcome in zip(self._disputes, ("won", "lost"), strict=False):
            if outcome == "won":
                self.account.disputes_won_pico += credit
                self.account.credited[workspace.name] += credit
            data = {"dispute": f"dis-{payment}", "payment": payment, "outcome": outcome}
            yield self._pay(events.DisputeClosed, workspace, data)
        for workspace in self.workspaces[:2]:
            yield from self._purchase(workspace, f"pay-{workspace.name}-2", 25 * PICO)

    def _pay(self, model: type[Event], workspace: Workspace, data: Mapping[str, Any]) -> Record:
        self.account.payments += 1
        self.account.payments_sent += 1
        payer: dict[str, Any] = {"account": workspace.account, "workspace": workspace.name}
        return self._record(
            topics.PAYMENTS, model, microseconds(self.now), workspace.name, {**payer, **data}, key=workspace.name
        )[0]

    # --- usage -----------------------------------------------------------------------------------------------------

    def play(self) -> Iterator[Record]:
        """Every generation in the order of its arrival, with the faults between them."""
        count = self._arrivals.count
        plan = self._plan(count)
        first_us = self._arrivals.first_us
        for n, arrival in enumerate(self._arrivals.play()):
            self._due = max(0, arrival.at_us - first_us) / 1_000_000
            yield self._generation(arrival)
            self.played = n + 1
            for inject in plan.pop(n, ()):
                yield from inject(arrival.at_us)

    def _plan(self, count: int) -> dict[int, list[Callable[[int], Iterator[Record]]]]:
        """After which generation which fault comes."""
        plan: dict[int, list[Callable[[int], Iterator[Record]]]] = {}
        priced_at = int(count * PRICE_AT)

        def at(index: int, inject: Callable[[int], Iterator[Record]]) -> None:
            plan.setdefault(max(0, min(index, count - 1)), []).append(inject)

        def often(rate: float, inject: Callable[[int], Iterator[Record]], before: int = count) -> None:
            for _ in range(max(1, round(rate * count))):
                at(self._random.randrange(max(1, before)), inject)

        often(_REPEATS * _REPEATS_AT_ONCE, self._repeat_last)
        often(_REPEATS * (1 - _REPEATS_AT_ONCE), self._repeat_earlier)
        often(_LATE, self._late)
        often(_MALFORMED, self._malformed)
        often(_NEVER_PRICED, self._never_priced)
        often(_LATER_PRICED, self._wait_for_price, priced_at)
        for _ in range(2):
            # In any run, some usage waits when the price comes.
            at(priced_at // 2, self._wait_for_price)
        for part in range(len(_MALFORMED_KINDS)):
            at(count * (part + 1) // (len(_MALFORMED_KINDS) + 1), self._malformed)
        often(_CORRECTIONS, self._correct)
        at(count // 3, self._conflict)
        at(count // 2, self._too_old)
        at(count // 4, self._odd_headers)
        at(count // 2, lambda at_us: self._midway())
        at(priced_at, self._publish_price)
        at(priced_at + 1, self._use_priced)
        at(count * 4 // 5, lambda at_us: self._near_the_end())
        # Corrections need something to correct, and a request log that still has it.
        at(count - 1, self._correct)
        at(count - 1, self._last_of_leaver)
        return plan

    def _generation(self, arrival: Arrival) -> Record:
        workspace = self._busy(self._random)
        models = workspace.models if arrival.tokens is None else workspace.chats
        usage = self._usage(workspace, models(self._random), arrival.tokens)
        return self._rated(workspace, usage, arrival.at_us, remember=True)

    def _rated(
        self, workspace: Workspace, usage: dict[str, Any], at_us: int, *, remember: bool = False, headers: Headers = ()
    ) -> Record:
        """A generation that has a price, or will have one."""
        account = self.account
        account.emitted += 1
        account.rated += 1
        if workspace.account == self.leaver:
            account.leaving += 1
            account.leaving_late += self.leaver_is_gone
        elif workspace.log_retention_days:
            account.used(usage["model"], usage["input_tokens"], usage["output_tokens"])
        record, event_id = self._record(
            topics.GENERATIONS, events.GenerationCompleted, at_us, workspace.name, usage, headers=headers
        )
        if remember:
            self._recent.append(_Sent(record, event_id, at_us, usage, workspace))
        return record

    def _usage(self, workspace: Workspace, model: Model, tokens: tuple[int, int] | None) -> dict[str, Any]:
        """One generation's content. With `tokens` from a trace its sums are exactly those."""
        random = self._random
        habits = model.habits
        outcome = "completed"
        finish: str | None = "stop"
        counts: dict[str, int] = {}
        if tokens is not None:
            read, generated = tokens
            if generated == 0:
                finish = None
            elif random.random() < 0.015:
                outcome, finish = "cancelled", None
        else:
            read = max(1, int(random.lognormvariate(0.0, 0.9) * habits.input_median))
            generated = int(random.lognormvariate(0.0, 0.8) * habits.output_median)
            if habits.long_context and random.random() < 0.004:
                read += habits.long_context
            outcome, finish, read, generated = self._ending(habits.output_median > 0, read, generated)
            if outcome == "completed" and random.random() < habits.searches:
                counts["web_search"] = random.randint(1, 3)
        if habits.requests_counted and outcome not in ("cache_hit", "failed"):
            counts["request"] = 1
        usage: dict[str, Any] = {
            "account": workspace.account,
            "workspace": workspace.name,
            "key": workspace.keys[int(random.random() * len(workspace.keys))],
            "model": model.name,
            "provider": model.provider,
            "log_retention_days": workspace.log_retention_days,
            "input_tokens": read,
            "output_tokens": generated,
            "tokens": self._buckets(model, read, generated),
        }
        if finish is not None:
            usage["finish_reason"] = finish
        if outcome != "completed":
            usage["outcome"] = outcome
        if counts:
            usage["counts"] = counts
        if len(model.tiers) > 1 and random.random() < 0.08:
            usage["tier"] = model.tiers[1 + int(random.random() * (len(model.tiers) - 1))]
        if workspace.byok and random.random() < workspace.byok:
            usage["byok"] = True
        if workspace.data_sharing:
            usage["data_sharing"] = True
        return usage

    def _ending(self, completes: bool, read: int, generated: int) -> tuple[str, str | None, int, int]:
        """(outcome, finish reason, tokens read, tokens generated) of a generation."""
        draw = self._random.random()
        if not completes:
            return "completed", None, read, 0
        if draw < 0.010:
            return "cache_hit", None, 0, 0
        if draw < 0.018:
            return "failed", "error", read, 0
        if draw < 0.022:
            return "completed", None, read, 0  # a zero completion: the model said nothing
        if draw < 0.037:
            return "cancelled", None, read, generated // 3
        finish = "length" if draw < 0.07 else "tool_calls" if draw < 0.2 else "stop"
        return "completed", finish, read, max(1, generated)

    def _buckets(self, model: Model, read: int, generated: int) -> dict[str, int]:
        """Exclusive buckets that sum to the two figures."""
        random, habits = self._random, model.habits
        tokens: dict[str, int] = {}
        rest = read
        if habits.cached and read > 64 and random.random() < habits.cached:
            tokens["cache_read"] = cached = int(read * random.uniform(0.3, 0.9))
            rest -= cached
            if habits.cache_writes and random.random() < 0.5:
                life = "cache_write_5m" if random.random() < 0.8 else "cache_write_1h"
                tokens[life] = written = int(rest * 0.6)
                rest -= written
        if habits.images and rest > 300 and random.random() < habits.images:
            tokens["input_image"] = 258
            rest -= 258
        if rest:
            tokens["input"] = rest
        if generated:
            reasoned = int(generated * random.uniform(0.2, 0.8)) if habits.reasons and random.random() < 0.6 else 0
            if reasoned:
                tokens["reasoning"] = reasoned
            if generated > reasoned:
                tokens["output"] = generated - reasoned
        return tokens

    # --- faults ----------------------------------------------------------------------------------------------------

    def _repeat_last(self, at_us: int) -> Iterator[Record]:
        yield self._again(self._recent[-1].record)

    def _repeat_earlier(self, at_us: int) -> Iterator[Record]:
        yield self._again(self._recent[int(self._random.random() * len(self._recent))].record)

    def _again(self, record: Record) -> Record:
        self.account.emitted += 1
        self.account.duplicates += 1
        return record._replace(due=self._due)

    def _conflict(self, at_us: int) -> Iterator[Record]:
        """The same id says something else: the first word counts, the second is a conflict to report."""
        sent = self._recent[-1]
        tokens = sent.usage["tokens"]
        usage = sent.usage | {
            "tokens": tokens | {"input": tokens.get("input", 0) + 1},
            "input_tokens": sent.usage["input_tokens"] + 1,
        }
        self.account.conflicts += 1
        headers = dict(sent.record.headers)
        source = (headers["ce_source"] or b"").decode()
        value = build(
            events.GenerationCompleted, id=sent.id, source=source, subject=sent.workspace.name,
            time=rfc3339_us(sent.at_us), data=usage, sequence=int(headers["ce_sequence"] or 0),
        )  # fmt: skip
        yield self._again(sent.record._replace(value=value))

    def _late(self, at_us: int) -> Iterator[Record]:
        """A generation that lay in an instance's spool for hours or days."""
        random = self._random
        workspace = self._busy(random)
        newest = microseconds(self.now) - _HOUR_US
        age = random.uniform(0, 1) ** 2 * (newest - self._oldest_us)
        self.account.late += 1
        yield self._rated(workspace, self._usage(workspace, workspace.models(random), None), int(newest - age))

    def _last_of_leaver(self, at_us: int) -> Iterator[Record]:
        """In any run, who leaves has traffic to the end."""
        for workspace in self.workspaces:
            if workspace.account == self.leaver:
                yield self._rated(workspace, self._usage(workspace, workspace.models(self._random), None), at_us)

    def _wait_for_price(self, at_us: int) -> Iterator[Record]:
        self.account.awaited_price += 1
        yield from self._use_priced(at_us)

    def _use_priced(self, at_us: int) -> Iterator[Record]:
        workspace = self._busy(self._random)
        yield self._rated(workspace, self._usage(workspace, LATER_PRICED, None), at_us)

    def _publish_price(self, at_us: int) -> Iterator[Record]:
        """The new model's price, in force since before anybody used it."""
        self.account.prices += 1
        data = {
            "provider": LATER_PRICED.provider,
            "model": LATER_PRICED.name,
            "prices": dict(LATER_PRICES),
            "valid_from": rfc3339_us(microseconds(self.now) - 60 * DAY_US),
            "source": "demo-gateway",
        }
        key = f"{LATER_PRICED.provider}/{LATER_PRICED.name}"
        yield self._record(topics.PRICES, events.PricePublished, microseconds(self.now), "prices", data, key=key)[0]

    def _never_priced(self, at_us: int) -> Iterator[Record]:
        workspace = self._staying(self._random)
        usage = self._usage(workspace, NEVER_PRICED, None)
        yield self._quarantined("unknown_model", workspace, usage, at_us)

    def _too_old(self, at_us: int) -> Iterator[Record]:
        """Older than ids are remembered: nobody can say any more whether it was counted."""
        workspace = self._staying(self._random)
        usage = self._usage(workspace, workspace.models(self._random), None)
        old_us = microseconds(self.now - policy().window) - 2 * DAY_US
        yield self._quarantined("stale", workspace, usage, old_us)

    def _quarantined(self, reason: str, workspace: Workspace, usage: dict[str, Any], at_us: int) -> Record:
        self.account.emitted += 1
        self.account.quarantined[reason] += 1
        return self._record(topics.GENERATIONS, events.GenerationCompleted, at_us, workspace.name, usage)[0]

    def _odd_headers(self, at_us: int) -> Iterator[Record]:
        """Headers that are null or not UTF-8 are no reason to lose an event."""
        workspace = self._busy(self._random)
        self.account.odd_headers += 1
        usage = self._usage(workspace, workspace.models(self._random), None)
        yield self._rated(workspace, usage, at_us, headers=(("x-trace", None), ("x-note", b"\xff\xfe\x00")))

    def _correct(self, at_us: int) -> Iterator[Record]:
        """The provider's count comes in and was different: the earlier charge is reversed, the right one made."""
        sent = self._correctable()
        if sent is None:
            return
        usage, account = sent.usage, self.account
        generated = usage["output_tokens"] // 2
        tokens = {unit: n for unit, n in usage["tokens"].items() if unit not in events.OUTPUT_BUCKETS}
        if generated:
            tokens["output"] = generated
        right = usage | {
            "output_tokens": generated, "tokens": tokens, "original": sent.id, "reason": "wrong_usage",
        }  # fmt: skip
        account.emitted += 1
        account.rated += 1
        account.corrections += 1
        account.used(usage["model"], 0, generated - usage["output_tokens"], generations=0)
        self._corrected.add(sent.id)
        yield self._record(
            topics.GENERATIONS,
            events.UsageCorrected,
            sent.at_us,
            sent.workspace.name,
            right,
            key=sent.id,
            made_us=at_us,
        )[0]

    def _correctable(self) -> _Sent | None:
        for _ in range(100):
            sent = self._recent[int(self._random.random() * len(self._recent))]
            kept_until = sent.at_us + sent.workspace.log_retention_days * DAY_US
            in_log = bool(sent.workspace.log_retention_days) and kept_until > microseconds(self.now) + DAY_US
            in_log = in_log and sent.workspace.account != self.leaver
            if in_log and sent.id not in self._corrected and sent.usage["output_tokens"] > 1:
                return sent
        return None

    def _malformed(self, at_us: int) -> Iterator[Record]:
        """A record that is no event. Its headers still say which instance sent it, and as which."""
        workspace = self._staying(self._random)
        usage = self._usage(workspace, workspace.models(self._random), None)
        record, _ = self._record(topics.GENERATIONS, events.GenerationCompleted, at_us, workspace.name, usage)
        kind, spoil = _MALFORMED_KINDS[self._malformed_kind % len(_MALFORMED_KINDS)]
        self._malformed_kind += 1
        self.account.emitted += 1
        self.account.dead_lettered[kind] += 1
        yield record._replace(value=spoil(record.value or b""))

    # --- records ---------------------------------------------------------------------------------------------------

    def _record(
        self, topic: Topic, model: type[Event], at_us: int, subject: str, data: Mapping[str, Any], *,
        key: str | None = None, headers: Headers = (), made_us: int | None = None,
    ) -> tuple[Record, str]:  # fmt: skip
        return self._recorder.record(
            topic, model, at_us, subject, data, key=key, headers=headers, made_us=made_us, due=self._due
        )


def _with_prompt(value: bytes) -> bytes:
    return value.replace(b'"data":{', b'"data":{"prompt":"What a closed schema keeps out.",', 1)


def _wrong_sum(value: bytes) -> bytes:
    return value.replace(b'"input_tokens":', b'"input_tokens":9', 1)


# (reason of the dead letter, what is done to a good record)
_MALFORMED_KINDS: Sequence[tuple[str, Callable[[bytes], bytes | None]]] = (
    ("malformed", lambda value: b"\xff\xfe\x00" + value[:40]),
    ("undeclared_field", _with_prompt),
    ("malformed", lambda value: value[: len(value) // 2]),
    ("invalid", _wrong_sum),
    ("unknown_type", lambda value: value.replace(b"generation.completed.v1", b"generation.imagined.v1", 1)),
    ("empty", lambda value: None),
)
