"""A privacy case, and lists of them, for eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy.cli.ask import moment

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLOURS = {
    "done": "green", "certified": "green", "completed": "green", "waived": "yellow", "waiting": "cyan", "later": "dim",
    "silent": "bold red", "residue": "bold red", "not_scanned": "bold red", "clean": "green", "shredded": "green",
    "retained": "yellow", "held": "yellow", "expiring": "cyan", "fulfilled": "green", "denied": "yellow", "triage": "bold red",
}  # fmt: skip


def show(what: RenderableType) -> None:
    """Prints it."""
    from rich.console import Console

    Console(highlight=False).print(what)


def coloured(word: str) -> str:
    """A state or verdict in its colour."""
    colour = _COLOURS.get(word)
    return f"[{colour}]{word}[/]" if colour else word


def table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Cases, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("case", "asks for", "state", "due", "waits for"):
        table.add_column(name, no_wrap=name in ("case", "state", "due"), overflow="fold")
    for row in rows:
        trouble = ", ".join(row["needs_person"]) or ", ".join(f"{name} at risk" for name in row["risks"])
        # The day is enough here, so that 80 columns hold a case; `status` has the instants.
        due = moment(row["due_at"])[5:10] if row["due_at"] else ""
        waits = f"[bold red]{trouble}[/]" if trouble else ", ".join(row["missing"])
        table.add_row(row["id"], row["kind"], coloured(row["state"]), due, waits)
    return table


def shown(row: Mapping[str, Any]) -> RenderableType:
    """A case on a page."""
    from rich.console import Group

    parts: list[RenderableType] = [_head(row)]
    if row["history"]:
        parts += ["", _history(row)]
    if row["holders"]:
        parts += ["", _holders(row)]
    if row["receipts"]:
        parts += ["", _receipts(row)]
    if row["scans"]:
        parts += ["", _scan(row["scans"][-1])]
    for hold in row["holds"]:
        parts.append(
            f"hold {hold['id']}: {hold['holder']}.{hold['table']}, {_rows_of(hold)}{hold['ground']} until "
            f"{moment(hold['until'])}, {coloured(hold['state'])}"
        )
    return Group(*parts)


def _rows_of(hold: Mapping[str, Any]) -> str:
    return "" if hold["rows"] is None else f"{hold['rows']:,} rows, "


def _head(row: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    about = f"{row['scope']}, {row['subjects']} subjects" if row["subjects"] else row["scope"]
    table.add_row("[dim]case[/]", f"{row['id']} ({row['kind']} of {about})")
    told = row["status"] + (f", {row['reason']}" if row["reason"] else "")
    table.add_row("[dim]state[/]", f"{coloured(row['state'])} [dim]({told})[/]")
    if row["proofs_needed"]:
        whose = {"account": "the account's address", "other": "the new address"}
        table.add_row("[dim]waits for[/]", "a code from " + " and ".join(whose[one] for one in row["proofs_needed"]))
    for name in ("requested_at", "verified_at", "confirmed_at", "completed_at", "answered_at", "ended_at"):
        if row[name]:
            table.add_row(f"[dim]{name.removesuffix('_at')}[/]", moment(row[name]))
    for clock in row["clocks"]:
        said = f"{clock['name']} due {moment(clock['due_at'])}" + ("" if clock["open"] else ", met")
        if clock["open"] and clock["forecast_at"] and clock["forecast_at"] >= clock["due_at"]:
            said += f", [bold red]forecast {moment(clock['forecast_at'])}[/]"
        table.add_row("[dim]clock[/]", said)
    for mail in row["mails"]:
        table.add_row("[dim]mail[/]", f"{mail['template']}: {mail['outcome'] or 'on its way'}")
    if row["package"]:
        table.add_row("[dim]package[/]", _package(row["package"]))
    if row["needs_person"]:
        table.add_row("[bold red]needs a person[/]", ", ".join(row["needs_person"]))
    return table


def _package(one: Mapping[str, Any]) -> str:
    size = f"{one['size'] / 1e6:,.1f} MB, fetched {one['fetched']} times"
    return (
        f"{size}, gone since {moment(one['gone_at'])}"
        if one["gone_at"]
        else f"{size}, until {moment(one['not_after'])}"
    )


def _history(row: Mapping[str, Any]) -> RenderableType:
    """What happened: what the mesh did by itself is dim, what people did is not."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("when", "what", "who", "as", "why"):
        table.add_column(name, overflow="fold")
    for one in row["history"]:
        dim = "[dim]" if one["role"] == "service" else ""
        table.add_row(
            f"[dim]{moment(one['at'])}[/]",
            f"{dim}{one['what']}",
            f"{dim}{one['actor']}",
            f"{dim}{one['role']}",
            one["reason"],
        )
    return table


def _holders(row: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("holder", "state", "epoch", "orders sent", ""):
        table.add_column(name, justify="right" if name in ("epoch", "orders sent") else "left")
    everybody = {**row["holders"], **({"audit": row["auditor"]} if row["auditor"] else {})}
    for name, one in everybody.items():
        note = f"waived by {one['waived_by']}, {one['ticket']}" if one["waived_by"] else ""
        table.add_row(name, coloured(one["state"]), str(one["epoch"] or ""), str(one["sends"] or ""), note)
    return table


def _receipts(row: Mapping[str, Any]) -> RenderableType:
    """What each holder did. Tables without a row of the subject are counted; what is kept alike is one line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("receipt", "table", "action", "rows", "left", "kept"):
        table.add_column(name, justify="right" if name in ("rows", "left") else "left", overflow="fold")
    for receipt in row["receipts"]:
        where = f"{receipt['holder']} {receipt['epoch']}"
        done, empty = [], 0
        kept: dict[tuple[str, str], list[str]] = {}
        for treated in receipt["body"]["treated"]:
            if treated["retained"]:
                note = (
                    f"{treated['retained']['ground'].replace('_', ' ')}, until {moment(treated['retained']['until'])}"
                )
                kept.setdefault(("retained", note), []).append(treated["table"])
            elif treated["not_after"]:
                note = f"leads to nobody, ends by itself before {moment(treated['not_after'])}"
                kept.setdefault(("left", note), []).append(treated["table"])
            elif treated["rows"] or treated["remaining"]:
                done.append(treated)
            else:
                empty += 1
        for one in done:
            table.add_row(where, one["table"], one["action"], f"{one['rows']:,}", f"{one['remaining']:,}", "")
            where = ""
        if empty:
            table.add_row(where, f"{empty} others" if done else f"{empty} tables", "held nothing", "0", "0", "")
            where = ""
        for (action, note), tables in kept.items():
            table.add_row(where, tables[0] if len(tables) == 1 else f"{len(tables)} tables", action, "", "", note)
            where = ""
    return table


def _scan(scan: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(
        title=f"{scan['action']} {scan['epoch']}, {moment(scan['arrived_at'])}", title_justify="left", box=None
    )
    for name in ("holder", "store", "verdict", "hits", ""):
        table.add_column(name, justify="right" if name == "hits" else "left", overflow="fold")
    clean = sum(one["verdict"] == "clean" for one in scan["stores"])
    for one in scan["stores"]:
        if one["verdict"] != "clean":
            note = ", ".join(filter(None, (one["ground"], one["not_after"] and f"until {moment(one['not_after'])}")))
            table.add_row(one["holder"], one["store"], coloured(one["verdict"]), f"{one['count']:,}", note)
    rest = "all" if clean == len(scan["stores"]) else "the others"
    table.add_row(rest, f"{clean} stores", coloured("clean"), "0", "")
    return table
