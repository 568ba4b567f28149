"""The page at the end of the demo, for people: 80 columns or wider, with colours or without."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from deploy.demo.account import Between, Comparison, ModelUse
from deploy.demo.deletion import Story
from deploy.demo.show_deletion import deletion
from shared.contract.money import usd

WIDTH_MAX = 120
_MODELS = 14
_BARS = 12
_DIFFERENCES = 6


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the page says. Amounts are pico-dollars."""

    seed: int
    traces: Sequence[str]
    usage: Sequence[Mapping[str, Any]]
    spend: Mapping[str, int]
    balances: Mapping[str, int]
    letters: Sequence[Mapping[str, Any]]
    quarantine: Sequence[Mapping[str, Any]]
    waited: int
    waited_model: str
    books: Mapping[str, Any]
    deletion: Story
    comparisons: Sequence[Comparison]
    explains: Sequence[Mapping[str, Any]]
    records: int
    flow_seconds: float
    seconds: float
    report: Path | None

    @property
    def holds(self) -> bool:
        """The proof, the emitter's own account, and the deletion."""
        return self.balances_hold and self.deletion.holds

    @property
    def balances_hold(self) -> bool:
        """The proof, and the emitter's own account."""
        return bool(self.books.get("ok")) and all(comparison.equal for comparison in self.comparisons)


def show(console: Console, page: Page) -> None:
    """Prints the page."""
    width = min(console.width, WIDTH_MAX)
    plain = not (console.encoding or "").lower().startswith("utf")
    for part in _parts(page, width, plain):
        console.print(part, width=width)


def _parts(page: Page, width: int, plain: bool) -> Iterator[RenderableType]:
    yield ""
    yield Rule("[bold]What the mesh made of it[/]", style="cyan", characters="=" if plain else "─")
    yield _intro(page)
    yield _section("Usage by model", _usage(page, width))
    yield _section("Spend by workspace", *_spend(page, width, plain))
    yield _section("Dead letters", _letters(page))
    yield _section("Quarantine", *_quarantine(page))
    yield _section("The proof", *_proof(page, plain))
    yield _section("Three generations, explained", *_explains(page))
    yield _section("An account is deleted while its traffic flows", *deletion(page.deletion, plain))
    yield Rule(style="cyan", characters="=" if plain else "─")
    yield _closing(page, plain)


def _section(title: str, *parts: RenderableType) -> RenderableType:
    return Group("", Text(title, style="bold cyan"), *parts)


def _intro(page: Page) -> Text:
    what = f"the traces {', '.join(page.traces)}" if page.traces else "a seeded hour of traffic"
    return Text.assemble(
        "Two instances of a gateway played ", (what, "bold"), f" (seed {page.seed}): ",
        (f"{page.records:,} events", "bold"), " for ", (f"{len(page.balances)} workspaces", "bold"),
        ", with repeats, late ones, broken ones and models that nobody had a price for.",
    )  # fmt: skip


# --- usage and spend ---------------------------------------------------------------------------------------------


def _usage(page: Page, width: int) -> RenderableType:
    wide = width >= 90
    count = _exact if wide else _compact

    def figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return [
            f"{sum(row['generations'] for row in rows):,}",
            count(sum(row["input_tokens"] for row in rows)),
            count(sum(row["output_tokens"] for row in rows)),
            usd(_cost(rows), 2),
        ]

    total = _cost(page.usage)
    columns = ("model", ">generations", ">tokens in", ">tokens out", ">cost", *((">share",) if wide else ()))
    table = _table(*columns, footer=["all models", *figures(page.usage), ""])
    shown, rest = page.usage[:_MODELS], page.usage[_MODELS:]
    for name, rows in [*((row["model"], [row]) for row in shown), *([(f"{len(rest)} more", rest)] if rest else [])]:
        share = [f"{100 * _cost(rows) / total:.1f} %" if total else ""]
        table.add_row(name, *figures(rows), *(share if wide else []))
    note = "Workspaces that keep no request log are in day sums only, and not in this table."
    return Group(table, Text(note, style="dim"))


def _cost(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(whole(row["amount_pico"]) for row in rows)


def whole(text: Any) -> int:
    """Pico-dollars out of JSON, exactly; a database may have written them with an exponent."""
    return int(Decimal(str(text)))


def _exact(n: int) -> str:
    return f"{n:,}"


def _compact(n: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 10 * size or (n >= size and letter != "k"):
            return f"{n / size:.1f} {letter}"
    return str(n)


def _spend(page: Page, width: int, plain: bool) -> Iterator[RenderableType]:
    ranked = sorted(page.spend.items(), key=lambda item: (-item[1], item[0]))
    yield from bars([(name, spent) for name, spent in ranked[:_BARS] if spent > 0], width, plain)
    rest = ranked[_BARS:]
    below = [name for name, balance in page.balances.items() if balance <= 0]
    said = Text(style="dim")
    if rest:
        said.append(f"{len(rest)} more workspaces spent {usd(sum(spent for _, spent in rest), 2)}. ")
    if below:
        are = "workspace has" if len(below) == 1 else "workspaces have"
        said.append(f"{len(below)} {are} no credit left: their gateway answers 402 from now on.")
    yield said


def bars(amounts: Sequence[tuple[str, int]], width: int, plain: bool) -> Iterator[Text]:
    """A horizontal bar for each amount (pico-dollars), drawn by plotext; without it room for one, a list."""
    if not amounts:
        yield Text("nothing was spent", style="dim")
        return
    labels = [f"{name}  {usd(amount, 2):>9} " for name, amount in amounts]
    wide = max(map(len, labels))
    lines = _plot([label.rjust(wide) for label in labels], [amount for _, amount in amounts], width, plain)
    if lines is None:
        for label in labels:
            yield Text(label.rjust(wide))
        return
    for line in lines:
        head, tail = line[:wide], line[wide:]
        text = Text(no_wrap=True, overflow="crop")
        yield text.append(head).append(tail, style="dim" if "$" in tail else "cyan")


def _plot(labels: Sequence[str], amounts: Sequence[int], width: int, plain: bool) -> list[str] | None:
    """The plot's lines without colours; None where there is no room for it."""
    import plotext

    top = max(amounts) / 10**12
    count = len(labels)
    plotext.terminal.limit(False, False)  # how wide the page is was decided by whoever prints it
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, count + 1)
    figure.theme("colorless")
    figure.axes(False)
    places = list(range(count, 0, -1))
    heights = [float(Decimal(amount).scaleb(-12)) for amount in amounts]
    # Limits on the first and the last bar, and bars thinner than a line: each is drawn on exactly one line.
    figure.draw(figure.bar(places, heights, orientation="h", width=0.1, marker="#" if plain else "▇"))
    figure.ruler("x").lim(0, top * 1.02)
    figure.ruler("x").ticks(*_ticks(top))
    figure.ruler("y").lim(*((1, count) if count > 1 else (0.5, 1.5)))
    figure.ruler("y").ticks(places, list(labels))
    lines = [_COLOUR.sub("", line).rstrip() for line in str(figure.build()).splitlines()]
    lines = [line for line in lines if line]
    figure.clear()
    wide = max(map(len, labels))
    whole = len(lines) == count + 1 and all(line.startswith(label) for line, label in zip(lines, labels, strict=False))
    return lines if whole and width - wide >= 12 else None


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def _ticks(top: float) -> tuple[list[float], list[str]]:
    """Two to five round dollars up to `top`."""
    step = 10.0 ** len(str(int(top))) if top >= 1 else 1.0
    for smaller in (
        step * share for scale in (1, 0.1, 0.01, 0.001, 0.0001) for share in (0.5 * scale, 0.2 * scale, 0.1 * scale)
    ):
        if top / smaller >= 2:
            step = smaller
            break
    places = [0.0]
    while places[-1] + step <= top and len(places) < 6:
        places.append(places[-1] + step)
    digits = 0 if step >= 1 else 2 if step >= 0.01 else 4
    return places, [f"${place:,.{digits}f}" for place in places]


# --- what was not rated ------------------------------------------------------------------------------------------


def _letters(page: Page) -> RenderableType:
    if not page.letters:
        return Text("none", style="dim")
    counts = Counter(letter["reason"] for letter in page.letters)
    details: dict[str, str] = {}
    for letter in page.letters:
        details.setdefault(letter["reason"], letter["detail"] or "")
    table = _table("reason", ">records", "the sender is told")
    for reason, n in counts.most_common():
        table.add_row(reason, f"{n:,}", Text(details[reason], style="dim"))
    return table


_NEXT = {
    "unknown_model": "rated as soon as a price is published",
    "unknown_price": "rated as soon as the missing price is published",
    "stale": "too old to know if it was counted: a person decides",
    "future": "its clock is wrong: a person decides",
    "original_unknown": "waits for the generation that it corrects",
    "original_not_kept": "corrects what is not kept: a person decides",
}


def _quarantine(page: Page) -> Iterator[RenderableType]:
    if page.quarantine:
        table = _table("reason", "model", ">records", "what happens next")
        rows: Counter[tuple[str, str]] = Counter()
        for row in page.quarantine:
            rows[row["reason"], row["model"]] += row["n"]
        for (reason, model), n in rows.most_common(_DIFFERENCES):
            table.add_row(reason, model, f"{n:,}", Text(_NEXT.get(reason, "a person decides"), style="dim"))
        yield table
    else:
        yield Text("empty", style="dim")
    if page.waited:
        yield Text.assemble(
            (f"{page.waited:,} generations of {page.waited_model}", "bold"),
            " were seen waiting here for a price. It was published during the run, and they were rated.",
        )


# --- the proof ---------------------------------------------------------------------------------------------------


def _proof(page: Page, plain: bool) -> Iterator[RenderableType]:
    books = page.books
    number = {name: int(value) for name, value in books.items() if _is_whole(value)}

    def n(name: str) -> str:
        return f"{number[name]:,}" if name in number else "?"

    def dollars(name: str) -> str:
        return usd(number[name], 6) if name in number else "?"

    classes = ("rated", "duplicates", "quarantined", "dead_lettered", "erased")
    one_class = all(name in number for name in ("emitted", *classes)) and number["emitted"] == sum(
        number[c] for c in classes
    )
    lines: list[tuple[bool, str, str]] = [
        (
            one_class,
            "Every record is in exactly one class",
            f"{n('emitted')} = {n('rated')} rated + {n('duplicates')} repeats + {n('quarantined')} in quarantine"
            f" + {n('dead_lettered')} dead letters + {n('erased')} erased",
        ),
        (
            number.get("missing") == 0,
            "Nothing was lost before it came",
            f"{n('missing')} of the numbers that the senders gave are missing",
        ),
        (
            number.get("charges_pico", 0) == number.get("recomputed_pico", 1),
            "Every charge is right to the pico-dollar",
            f"{dollars('charges_pico')} charged, {dollars('recomputed_pico')} recomputed by other code",
        ),
        (
            number.get("ledger_sum_pico") == 0,
            "The ledger balances",
            f"the entries of {n('journals')} journals sum to {n('ledger_sum_pico')}",
        ),
        (bool(books.get("chain_ok")), "Nobody changed it", "every block holds the hash of the one before"),
        (
            bool(books.get("balances_equal_replay")),
            "Balances are what the journals say",
            "replayed from the first entry",
        ),
        (bool(books.get("ok")), "The books as a whole", f"`steward check` says {'yes' if books.get('ok') else 'no'}"),
    ]
    yield _statements(lines, plain)
    for kind in ("errors", "undetermined", "warnings"):
        for sentence in books.get(kind, ()):
            said = Text(f"{kind.removesuffix('s')}: {sentence}", style="red" if kind == "errors" else "yellow")
            yield Padding(said, (0, 0, 0, 2))
    equal = all(comparison.equal for comparison in page.comparisons)
    yield _statements(
        [(equal, "The gateway's own account", "agrees, figure by figure:" if equal else "differs:")], plain
    )
    yield Padding(_comparisons(page.comparisons, plain), (0, 0, 0, 2))
    for comparison in page.comparisons:
        if not comparison.equal:
            yield from _difference(comparison)


def _statements(lines: Sequence[tuple[bool, str, str]], plain: bool) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    for good, what, how in lines:
        table.add_row(_mark(good, plain), Text.assemble((what, "bold" if good else "bold red"), ": ", (how, "dim")))
    return table


def _comparisons(comparisons: Sequence[Comparison], plain: bool) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("gateway", justify="right")
    table.add_column("mesh", justify="right")
    table.add_column("")
    for comparison in comparisons:
        table.add_row(
            comparison.what,
            _figure(comparison.what, comparison.gateway),
            _figure(comparison.what, comparison.mesh),
            _mark(comparison.equal, plain),
        )
    return table


_MONEY = ("credit", "opening")


def _figure(what: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{len(value)} {'models' if 'model' in what else 'reasons' if 'reason' in what else 'workspaces'}"
    if isinstance(value, Between):
        return f"{value.low:,} to {value.high:,}"
    if value is None:
        return "not known"
    return usd(value, 6) if what.startswith(_MONEY) else f"{value:,}"


def _difference(comparison: Comparison) -> Iterator[RenderableType]:
    ours, theirs = comparison.gateway, comparison.mesh
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        yield _apart(comparison.what, ours, theirs)
        return
    apart = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    for key in apart[:_DIFFERENCES]:
        yield _apart(key, ours.get(key), theirs.get(key))
    if len(apart) > _DIFFERENCES:
        yield Padding(Text(f"... and {len(apart) - _DIFFERENCES} more", style="red"), (0, 0, 0, 4))


def _apart(what: str, ours: Any, theirs: Any) -> RenderableType:
    return Padding(Text(f"{what}: gateway {_said(ours)}, mesh {_said(theirs)}", style="red"), (0, 0, 0, 4))


def _said(value: Any) -> str:
    if isinstance(value, ModelUse):
        return f"{value.generations} generations, {value.input_tokens} in, {value.output_tokens} out"
    return "nothing" if value is None else str(value)


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _mark(good: bool, plain: bool) -> Text:
    if plain:
        return Text("yes" if good else "NO ", style="green" if good else "bold red")
    return Text("✓" if good else "✗", style="green" if good else "bold red")


# --- explanations ------------------------------------------------------------------------------------------------

_RULES = {
    "list": "at list price",
    "byok": "the customer's own provider key: metered at list price, charged a fee above the month's allowance",
    "data_sharing": "1 % off, since the account shares its data",
    "zero_completion": "the model said nothing: free",
    "error": "the model failed: free",
    "cache_hit": "answered by the response cache: free",
}


def _explains(page: Page) -> Iterator[RenderableType]:
    for place, said in enumerate(page.explains, 1):
        if place > 1:
            yield ""
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_row(f"{place}.", Group(*_explained(said)))
        yield table


def _explained(said: Mapping[str, Any]) -> Iterator[RenderableType]:
    tier, _, above = said["tier"].partition(">")
    how = _RULES.get(said["rule"], said["rule"])
    how += f", as a context above {int(above):,} tokens" if above else ""
    how += f", in the {tier} tier" if tier != "standard" else ""
    yield Text.assemble(
        (said["model"], "bold"), f" by {said['provider']}, {said['outcome'].replace('_', ' ')}: ", (how, "italic")
    )
    occurred = said["occurred_at"][:19].replace("T", " ")
    yield Text(f"{said['generation_id']}, {said['workspace']}, {occurred} UTC", style="dim")
    yield _arithmetic(said)
    yield Text(_rounding(said), style="dim")
    yield Text(_booked(said), style="dim")


def _arithmetic(said: Mapping[str, Any]) -> RenderableType:
    """Quantities times prices, what a rule takes off, and what was charged."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column()
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    listed, exact = Fraction(said["exact_list_pico"]), Fraction(said["exact_pico"])
    charged = Fraction(_charged(said))
    billed = [line for line in said["lines"] if line["billed"]]
    amounts = [Fraction(line["exact_pico"]) for line in billed]
    # One column of figures, decimal point under decimal point.
    places = max(map(_places, (*amounts, listed, listed - exact, charged)))
    for line, amount in zip(billed, amounts, strict=True):
        figures = (f"{line['billed']:,}", "x", _price(line["unit_price_usd"]), f"= {_amount(amount, places)}")
        table.add_row(_unit(line), *figures)
    for line in said["lines"]:
        if not line["billed"]:
            table.add_row(_unit(line), f"{line['quantity']:,}", "", "not billed", "", style="dim")
    if said["rule"] == "data_sharing":
        table.add_row("for shared data", "", "", "", f"- {_amount(listed - exact, places)}")
    elif said["rule"] == "byok":
        table.add_row("list price", "", "", "", f"= {_amount(listed, places)}")
    table.add_row("[bold]charged[/]", "", "", "", f"[bold green]= {_amount(charged, places)}[/]")
    return table


def _unit(line: Mapping[str, Any]) -> str:
    return str(line["unit"]).replace("_", " ")


def _charged(said: Mapping[str, Any]) -> int:
    """What the ledger has: for the customer's own key the fee, else the amount."""
    booked = said.get("booked")
    return whole(booked["line"]["amount_pico"] if booked else said["amount_pico"])


def _price(text: str | None) -> str:
    return "no price" if text is None else f"${text}"


def _places(pico: Fraction) -> int:
    """How many decimal places of a dollar an amount needs; 18 at most, 2 at least."""
    text = f"{_dollars(pico):.18f}".rstrip("0")
    return max(2, len(text.partition(".")[2]))


def _amount(pico: Fraction, places: int | None = None) -> str:
    """Dollars with every digit that counts, or with `places`."""
    return f"${_dollars(pico):,.{_places(pico) if places is None else places}f}"


def _dollars(pico: Fraction) -> Decimal:
    return (Decimal(pico.numerator) / Decimal(pico.denominator)).scaleb(-12)


def _rounding(said: Mapping[str, Any]) -> str:
    exact = Fraction(said["exact_pico"])
    rounded = "exact as it is" if exact.denominator == 1 else f"exactly {_amount(exact)}, rounded once, half to even"
    return f"price {said['price_version']} ({said['price_source']}); {rounded}"


def _booked(said: Mapping[str, Any]) -> str:
    booked = said.get("booked")
    if not booked:
        return "its journal is not known"
    journal, block = booked["journal"], booked["block"]
    return f"journal {journal['id']} of {journal['period']}, sealed in block {block['block']} of class {block['class']}"


# --- closing -----------------------------------------------------------------------------------------------------


def _closing(page: Page, plain: bool) -> Text:
    good, bad = "bold green", "bold red"
    said = Text.assemble(
        _mark(page.holds, plain), " ",
        ("The books balance" if page.balances_hold else "The books do NOT balance", good if page.balances_hold else bad),
        (
            ", and who left is forgotten." if page.deletion.holds else "; the deletion does NOT hold.",
            good if page.deletion.holds else bad,
        ),
        f" {page.records:,} events in {page.flow_seconds:.1f} s once the services were up, {page.seconds:.1f} s in all.",
    )  # fmt: skip
    if page.report is None:
        return said.append(" --report FILE.json keeps the proof.", style="dim")
    return said.append(f" The proof is in {page.report}.")


def _table(*columns: str, footer: Sequence[str] = ()) -> Table:
    """Columns that begin with ">" are numbers."""
    table = Table(
        box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="dim", footer_style="bold", padding=(0, 1),
        show_footer=bool(footer),
    )  # fmt: skip
    for number, column in enumerate(columns):
        foot = footer[number] if footer else ""
        if column.startswith(">"):
            table.add_column(column[1:], foot, justify="right", no_wrap=True)
        else:
            table.add_column(column, foot, overflow="fold")
    return table
