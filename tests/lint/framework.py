"""A rule is a name, a reason and a check; a finding names file, line and what was found there.

A line escapes with a comment that names the rule and says why, on the line itself, on another line of the
same expression, or alone on the line above:

    await conn.execute(statement)  # lint: allow sql-outside-store -- runs before any store exists

(`-- lint: allow ...` in SQL.) An escape without a reason, for an unknown rule, or that nothing needs, is a
finding too.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.lint import sql

ROOT = Path(__file__).resolve().parents[2]
TREE = ("services", "shared", "deploy", "tests")

_ESCAPE = re.compile(r"lint:\s*allow\s+(?P<rules>[\w-]+(?:\s*,\s*[\w-]+)*)(?:\s+--\s*(?P<reason>\S.*))?")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place that breaks a rule; `path` is relative to the root, lines count from 1."""

    path: str
    line: int
    rule: str
    what: str
    end_line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.what}"


# What a check yields: where it is, and what is wrong with it. The framework adds path and rule.
Hit = tuple[ast.AST | int, str]
PythonCheck = Callable[[ast.Module, PurePosixPath], Iterable[Hit]]
SqlCheck = Callable[[str, PurePosixPath], Iterable[Hit]]
TreeCheck = Callable[[Path], Iterable[tuple[str, int, str]]]


def everywhere(path: PurePosixPath) -> bool:
    """Every file of the tree."""
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """One mistake that we do not want to make twice.

    `applies` chooses the files; `python` sees the syntax tree of each `.py`, `sql` the text of each `.sql`,
    and `whole` the root of the tree once, for what only several files together can show.
    """

    name: str
    reason: str
    applies: Callable[[PurePosixPath], bool] = everywhere
    python: PythonCheck | None = None
    sql: SqlCheck | None = None
    whole: TreeCheck | None = None


@dataclass(slots=True)
class Escape:
    """One `lint: allow` comment; it covers `lines`."""

    line: int
    lines: frozenset[int]
    rules: tuple[str, ...]
    reason: str
    used: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Source:
    """One file, read and parsed once for all rules."""

    path: PurePosixPath
    text: str
    tree: ast.Module | None
    escapes: tuple[Escape, ...]

    @classmethod
    def of(cls, path: str, text: str) -> Source:
        """Raises SyntaxError when a `.py` does not parse."""
        is_python = path.endswith(".py")
        tree = ast.parse(text, filename=path) if is_python else None
        comments = _python_comments(text) if is_python else sql.comments(text)
        return cls(PurePosixPath(path), text, tree, tuple(_escapes(text, comments)))


def files(root: Path = ROOT) -> Iterator[Source]:
    """Every `.py` and `.sql` of the tree, in a fixed order."""
    for folder in TREE:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".sql") and path.is_file() and "__pycache__" not in path.parts:
                yield Source.of(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))


def run(rules: Iterable[Rule], sources: Iterable[Source], root: Path | None = None) -> list[Finding]:
    """What the rules find in the sources (given a `root`, in the whole tree too), without what escapes."""
    rules, sources = tuple(rules), tuple(sources)
    found = [finding for source in sources for rule in rules for finding in _check(rule, source)]
    if root is not None:
        found += [
            Finding(path, line, rule.name, what)
            for rule in rules
            if rule.whole is not None
            for path, line, what in rule.whole(root)
        ]
    escapes = {str(source.path): source.escapes for source in sources}
    kept = [finding for finding in found if not _escaped(finding, escapes.get(finding.path, ()))]
    names = {rule.name for rule in rules}
    for source in sources:
        kept += _bad_escapes(source, names)
    return sorted(set(kept))


def _check(rule: Rule, source: Source) -> Iterator[Finding]:
    if not rule.applies(source.path):
        return
    hits: Iterable[Hit] = ()
    if source.tree is not None and rule.python is not None:
        hits = rule.python(source.tree, source.path)
    elif source.tree is None and rule.sql is not None:
        hits = rule.sql(source.text, source.path)
    for where, what in hits:
        line = where if isinstance(where, int) else getattr(where, "lineno", 1)
        end = line if isinstance(where, int) else getattr(where, "end_lineno", None) or line
        yield Finding(str(source.path), line, rule.name, what, end)


def _escaped(finding: Finding, escapes: Iterable[Escape]) -> bool:
    covered = range(finding.line, max(finding.line, finding.end_line) + 1)
    hit = False
    for escape in escapes:
        if finding.rule in escape.rules and escape.reason and not escape.lines.isdisjoint(covered):
            escape.used.add(finding.rule)
            hit = True
    return hit


def _bad_escapes(source: Source, names: set[str]) -> Iterator[Finding]:
    for escape in source.escapes:
        for rule in escape.rules:
            if rule not in names:
                what = f"there is no rule {rule!r}"
            elif not escape.reason:
                what = f"an escape from {rule!r} says why: `lint: allow {rule} -- reason`"
            elif rule not in escape.used:
                what = f"nothing here needs an escape from {rule!r}"
            else:
                continue
            yield Finding(str(source.path), escape.line, "escape", what)


def _python_comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _escapes(text: str, comments: Iterable[tuple[int, str]]) -> Iterator[Escape]:
    lines = text.splitlines()
    for line, comment in comments:
        match = _ESCAPE.search(comment)
        if match is None:
            continue
        alone = lines[line - 1].strip().startswith(("#", "--"))
        covered = frozenset({line, line + 1} if alone else {line})
        names = tuple(name.strip() for name in match["rules"].split(","))
        yield Escape(line, covered, names, match["reason"] or "")
