"""The deletion on a page, for people: when what happened, who did what, what stays and why, and what proves it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deploy.demo.copy import Copy
from deploy.demo.deletion import Story
from shared.contract.money import usd

_GONE = {"delete_row": "", "clear": " emptied", "pseudonymise": " without name", "shred": " unreadable"}
_GOOD = ("clean", "shredded", "retained", "held", "expiring")


def deletion(story: Story, plain: bool) -> Iterator[RenderableType]:
    """The parts of the section."""
    case = story.case
    own = "workspace" if len(story.workspaces) == 1 else "workspaces"
    yield Text.assemble(
        (story.account, "bold"), f", {len(story.workspaces)} {own}, {story.sent:,} generations and "
        f"{usd(story.credit_pico, 2)} of credit, asked in its settings to be forgotten. Its traffic did not stop.",
    )  # fmt: skip
    if story.copy is not None and story.copy.rows:
        yield ""
        yield _taken_along(story.copy)
    if story.trouble is not None:
        yield Text(f"{story.trouble}.", style="bold red")
    if case is None:
        return
    yield ""
    yield _timeline(story, case)
    if case["receipts"]:
        yield ""
        yield _receipts(case["receipts"])
    yield ""
    yield from _proofs(story, plain)


def _taken_along(copy: Copy) -> RenderableType:
    """What it asked for first."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    by_holder = ", ".join(f"{holder} {n:,}" for holder, n in sorted(copy.rows.items(), key=lambda one: -one[1]) if n)
    table.add_row(
        "its data first",
        f"a package of {copy.size / 1e6:.2f} MB {copy.seconds:.1f} s after the wish, opened with its passphrase: "
        f"{sum(copy.rows.values()):,} rows of {copy.tables} tables, {copy.logged:,} of them requests",
    )
    table.add_row("", Text(by_holder, style="dim"))
    table.add_row("", Text(f"{copy.missing} notes say what is not in it, and why", style="dim"))
    return table


# --- when ---------------------------------------------------------------------------------------------------------


def _timeline(story: Story, case: Mapping[str, Any]) -> RenderableType:
    start = _at(case["requested_at"])
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    events: list[tuple[datetime, str, str, str]] = [(start, "requested", "in the settings, signed in", "")]
    for mail, subject in zip(case["mails"], [*story.mails, *[""] * len(case["mails"])], strict=False):
        if mail["at"] is not None:
            said = f'"{subject}"' if subject else mail["template"].replace("_", " ")
            events.append((_at(mail["at"]), "mail", said + (", with a code" if mail is case["mails"][0] else ""), ""))
    if case["confirmed_at"]:
        what = f"with the code; tombstones for {case['subjects']} subjects: from here on nobody can undo it"
        events.append((_at(case["confirmed_at"]), "confirmed", what, ""))
    for receipt in case["receipts"]:
        at, holder = _at(receipt["arrived_at"]), receipt["holder"]
        if receipt["epoch"] > 1:
            events.append((at, "again", f"{holder} has erased once more: the auditor had seen something", "yellow"))
        elif holder == "metering":
            events.append((at, "in effect", "no event of it counts any more", ""))
    if case["completed_at"]:
        events.append(
            (_at(case["completed_at"]), "completed", "every holder has answered, the auditor finds nothing", "green")
        )
    if case["state"] == "certified":
        what = "gone from every table, topic, queue and log as well; the case's own key is destroyed"
        events.append((_at(case["ended_at"]), "certified", what, "green"))
    for at, name, what, style in sorted(events, key=lambda event: event[0]):
        first = at.strftime("%H:%M:%S") if at == start else f"+ {(at - start).total_seconds():.1f} s"
        table.add_row(first, Text(name, style=style), what)
    return table


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# --- what ---------------------------------------------------------------------------------------------------------


def _receipts(receipts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A line for each holder: what it erased in all, and what its last receipt keeps."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("receipt of", no_wrap=True)
    table.add_column("gone: rows by table")
    table.add_column("what stays, why, until when")
    treated: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for one in receipts:
        if one["action"] == "erase":
            treated.setdefault(one["holder"], []).append(one["body"]["treated"])
    for holder, each in treated.items():
        table.add_row(Text(holder, style="bold"), _gone([table for one in each for table in one]), _kept(each[-1]))
    return table


def _gone(treated: Sequence[Mapping[str, Any]]) -> Text:
    rows: Counter[str] = Counter()
    for one in treated:
        if one["action"] in _GONE and one["rows"]:
            rows[one["table"] + _GONE[one["action"]]] += one["rows"]
    if not rows:
        return Text("held nothing", style="dim")
    return Text(", ".join(f"{table} {n:,}" for table, n in rows.most_common()))


def _kept(treated: Sequence[Mapping[str, Any]]) -> Text:
    groups: dict[tuple[str, str], list[str]] = {}
    for one in treated:
        if one["retained"]:
            key = (one["retained"]["ground"].replace("_", " "), f"until {one['retained']['until'][:10]}")
        elif one["not_after"]:
            key = ("ends", f"by {one['not_after'][:10]}")
        else:
            continue
        groups.setdefault(key, []).append(one["table"])
    lines = [
        f"{tables[0] if len(tables) == 1 else f'{len(tables)} tables'}: {why} {until}"
        for (why, until), tables in groups.items()
    ]
    return Text("\n".join(lines) or "nothing", style="" if lines else "dim")


# --- what proves it -----------------------------------------------------------------------------------------------


def _proofs(story: Story, plain: bool) -> Iterator[RenderableType]:
    case = story.case
    assert case is not None
    lines: list[tuple[bool, str, str]] = []
    if case["scans"]:
        scan = case["scans"][-1]
        seen = Counter(one["verdict"] for one in scan["stores"])
        bad = sum(n for verdict, n in seen.items() if verdict not in _GOOD)
        said = ", ".join(f"{n} {verdict.replace('_', ' ')}" for verdict, n in seen.most_common())
        stores = f"all {len(scan['stores'])} stores clean" if len(seen) == 1 and seen["clean"] else f"stores: {said}"
        where = "every text of every table, topic, queue and log" if scan["action"] == "sweep" else "every column"
        lines.append((not bad, "The auditor looked", f"{stores}, by {where}"))
    late = sum(story.dropped.values())
    lines.append(
        (
            story.late_is_dropped,
            "What came late is dropped and counted",
            f"{story.sent:,} generations sent = {story.sent - story.erased:,} rated + {story.erased:,} erased (of these "
            f"{story.late:,} sent when it was gone); {late} sign-ins and clicks",
        )
    )
    copy = story.copy
    if copy is not None and copy.link_afterwards:
        lines.append(
            (
                copy.holds,
                "The package was whole, and is gone",
                f"every file as its manifest says; since the last word its link answers {copy.link_afterwards}",
            )
        )
    used = story.credit_pico - story.ended_pico
    lines.append(
        (
            story.books_stand,
            "The books stand",
            f"all {len(story.sums_after)} legal classes sum to $0, before and after; {usd(used, 2)} of the credit were used "
            f"and stay booked on nobody's name, {usd(story.ended_pico, 2)} ended unused",
        )
    )
    if story.certificate is not None:
        lines.append((story.verdict == "valid", "The certificate", f"{story.certificate}, {story.verdict}"))
    table = Table.grid(padding=(0, 1, 0, 0))
    for good, what, how in lines:
        mark = ("yes" if good else "NO ") if plain else ("✓" if good else "✗")
        style = "green" if good else "bold red"
        table.add_row(Text(mark, style=style), Text.assemble((what, "bold" if good else style), ": ", (how, "dim")))
    yield table
    yield Padding(_next(story), (0, 0, 0, 4 if plain else 2))


def _next(story: Story) -> Text:
    if story.certificate is not None:
        return Text(f"steward certificate verify {story.certificate} --trust {story.key}", style="cyan")
    if story.completed:
        case = story.case["id"] if story.case else ""
        return Text(
            f"The certificate comes with the auditor's last look, which is not over (--keep waits for it): "
            f"steward privacy certificate {case}",
            style="dim",
        )
    return Text("It is not completed: the deletion does NOT hold.", style="bold red")
