"""As much of PostgreSQL's SQL as the lints need: tokens, statements, and the columns that migrations make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<comment>--[^\n]*|/\*.*?\*/)
  | (?P<dollar>\$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?(tag)(?P=tag))\$)
  | (?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")+")
  | (?P<word>[A-Za-z_][\w$]*)
  | (?P<other>[^\s])
    """,
    re.VERBOSE | re.DOTALL,
)
_CONSTRAINTS = frozenset({"constraint", "primary", "unique", "check", "foreign", "exclude"})


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is the tokenizer's group; `text` of a word is in lower case, of a quoted name without quotes."""

    kind: str
    text: str
    line: int

    @property
    def is_name(self) -> bool:
        return self.kind in ("word", "quoted")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column was declared."""

    path: str
    line: int


Schema = dict[str, dict[str, Place]]


def tokens(text: str) -> Iterator[Token]:
    """Tokens with the line on which each starts; white space is skipped, comments are not."""
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        # The tag of a dollar quote is a group inside its group, and ends before it.
        kind = "dollar" if match["dollar"] is not None else kind
        raw = match[0]
        if kind == "word":
            raw = raw.lower()
        elif kind == "quoted":
            raw = raw[1:-1].replace('""', '"')
        yield Token(kind, raw, text.count("\n", 0, match.start()) + 1)


def comments(text: str) -> Iterator[tuple[int, str]]:
    """(line, comment) for each `--` comment."""
    for token in tokens(text):
        if token.kind == "comment" and token.text.startswith("--"):
            yield token.line, token.text


def code(text: str) -> str:
    """The text with comments and quoted strings blanked, line by line as before; function bodies stay."""

    def blank(match: re.Match[str]) -> str:
        if match["comment"] is not None or match["string"] is not None:
            return re.sub(r"[^\n]", " ", match[0])
        if match["dollar"] is not None:
            tag = match["tag"] or ""
            fence = f"${tag}$"
            return fence + code(match[0][len(fence) : -len(fence)]) + fence
        return match[0]

    return _TOKEN.sub(blank, text)


def statements(text: str) -> Iterator[list[Token]]:
    """The tokens of each statement, without its semicolon and without comments."""
    current: list[Token] = []
    for token in tokens(text):
        if token.kind == "comment":
            continue
        if token.kind == "other" and token.text == ";":
            if current:
                yield current
            current = []
        else:
            current.append(token)
    if current:
        yield current


def schema(migrations: Iterable[tuple[str, str]]) -> Schema:
    """Table -> column -> where it was declared, after all `(path, text)` migrations in their order.

    Partitions have no columns of their own and temporary tables do not last: neither appears. Raises
    ValueError for `CREATE TABLE ... AS`, whose columns stand nowhere.
    """
    tables: Schema = {}
    for path, text in migrations:
        for statement in statements(text):
            _apply(tables, path, statement)
    return tables


def _apply(tables: Schema, path: str, statement: Sequence[Token]) -> None:
    words = [token.text if token.kind == "word" else "" for token in statement]
    match words:
        case ["create", "table", *_]:
            _create(tables, path, statement[2:])
        case ["create", "unlogged", "table", *_]:
            _create(tables, path, statement[3:])
        case ["alter", "table", *_]:
            _alter(tables, path, statement[2:])
        case ["drop", "table", *_]:
            for part in _split(_skip(statement[2:], "if", "exists")):
                tables.pop(_name(part)[0], None)


def _create(tables: Schema, path: str, rest: Sequence[Token]) -> None:
    table, rest = _name(_skip(rest, "if", "not", "exists"))
    if not rest or rest[0].text == "partition":
        return
    if rest[0].text != "(":
        raise ValueError(f"{path}:{rest[0].line}: the columns of {table} must be written out")
    body, after = _parenthesis(rest)
    if after and after[0].text == "as":
        raise ValueError(f"{path}:{after[0].line}: the columns of {table} must be written out")
    columns = tables.setdefault(table, {})
    for item in _split(body):
        if item[0].kind == "word" and item[0].text == "like":
            columns.update(dict.fromkeys(tables.get(_name(item[1:])[0], {}), Place(path, item[0].line)))
        elif item[0].is_name and not (item[0].kind == "word" and item[0].text in _CONSTRAINTS):
            columns[item[0].text] = Place(path, item[0].line)
    if after and after[0].text == "inherits":
        for parent in _split(_parenthesis(after[1:])[0]):
            columns.update(tables.get(_name(parent)[0], {}))


def _alter(tables: Schema, path: str, rest: Sequence[Token]) -> None:
    table, rest = _name(_skip(_skip(rest, "if", "exists"), "only"))
    columns = tables.setdefault(table, {})
    for action in _split(rest):
        match [token.text if token.kind == "word" else "" for token in action]:
            case ["rename", "to", _]:
                tables[action[2].text] = tables.pop(table)
            case ["rename", "constraint", *_]:
                pass
            case ["rename", *_]:
                old, _to, new = _skip(action[1:], "column")
                columns[new.text] = columns.pop(old.text, Place(path, new.line))
            case ["add", word, *_] if word not in _CONSTRAINTS:
                column = _skip(_skip(action[1:], "column"), "if", "not", "exists")[0]
                columns[column.text] = Place(path, column.line)
            case ["drop", word, *_] if word != "constraint":
                columns.pop(_skip(_skip(action[1:], "column"), "if", "exists")[0].text, None)


def _skip(rest: Sequence[Token], *words: str) -> Sequence[Token]:
    """`rest` without the leading `words`, if it starts with all of them."""
    if [token.text for token in rest[: len(words)]] == list(words):
        return rest[len(words) :]
    return rest


def _name(rest: Sequence[Token]) -> tuple[str, Sequence[Token]]:
    """The table's name, without its schema, and what follows it."""
    name, rest = rest[0].text, rest[1:]
    while len(rest) >= 2 and rest[0].text == ".":
        name, rest = rest[1].text, rest[2:]
    return name, rest


def _parenthesis(rest: Sequence[Token]) -> tuple[Sequence[Token], Sequence[Token]]:
    """What stands inside the parenthesis that opens `rest`, and what follows it."""
    depth = 0
    for index, token in enumerate(rest):
        depth += (token.text == "(") - (token.text == ")") if token.kind == "other" else 0
        if depth == 0:
            return rest[1:index], rest[index + 1 :]
    raise ValueError(f"line {rest[0].line}: a parenthesis never closes")


def _split(items: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """The items between the commas of the top level."""
    depth, start = 0, 0
    for index, token in enumerate(items):
        if token.kind != "other":
            continue
        depth += (token.text in "([") - (token.text in ")]")
        if token.text == "," and depth == 0:
            yield items[start:index]
            start = index + 1
    if start < len(items):
        yield items[start:]
