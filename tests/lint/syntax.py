"""What several rules ask of a syntax tree: full names through import aliases, and the strings in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator


class Names:
    """Resolves names to what was imported under them: `dt.datetime.now` is `datetime.datetime.now`."""

    def __init__(self, tree: ast.Module) -> None:
        self._imported: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.name if alias.asname else alias.name.partition(".")[0]
                    self._imported[alias.asname or name] = name
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self._imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full(self, node: ast.AST) -> str:
        """The dotted name of a Name or Attribute chain; "" for anything else."""
        match node:
            case ast.Name(id=name):
                return self._imported.get(name, name)
            case ast.Attribute(value=value, attr=attr):
                head = self.full(value)
                return f"{head}.{attr}" if head else ""
            case _:
                return ""


def called(node: ast.Call) -> str:
    """The last part of the name of what is called: `execute` for `tx.db.execute(...)`."""
    return last_name(node.func)


def last_name(node: ast.AST) -> str:
    """The last part of a name: `id` for `a.b.id`, `x` for `x`, the key for `row["key"]`; else ""."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(attr=attr):
            return attr
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case _:
            return ""


def text_of(node: ast.AST) -> str | None:
    """The text of a string literal; of an f-string with `{}` for each value; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        case _:
            return None


def strings(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Every string of the code, f-strings as a whole; docstrings are not code."""
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inner.update(id(part) for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in inner:
            text = text_of(node)
            if text is not None:
                yield node, text


def imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module, and every `module.name` of a `from` import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"
