"""The rules of the house, each proved in test_rules.py by what it finds and what it leaves alone."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shared.privacy.data_map import DataMap, contradictions
from tests.lint import sql
from tests.lint.framework import Hit, Rule
from tests.lint.syntax import Names, called, imports, last_name, strings, text_of

# --------------------------------------------------------------------------------------------------
# Where a rule applies


def _own_snippets(path: PurePosixPath) -> bool:
    """The lints' own tests quote what is forbidden."""
    return path.is_relative_to("tests/lint")


def _domain(path: PurePosixPath) -> bool:
    wiring = {"app.py", "store.py", "data_map.py", "__init__.py"}
    room = path.parts[0] == "services" and path.suffix == ".py" and path.name not in wiring and "app" not in path.parts
    return room or str(path) == "shared/mesh/packed.py"


def _room_file(path: PurePosixPath, name: str) -> bool:
    return path.parts[0] == "services" and path.name == name


# --------------------------------------------------------------------------------------------------
# SQL

_SQL_HOMES = {
    "shared/mesh/partitions.py",
    "shared/mesh/store.py",
    "shared/privacy/keys.py",
    "shared/privacy/store.py",
    "deploy/local/databases.py",
    "deploy/local/doctor.py",
    "deploy/drill/store.py",
}
# Unmistakable at the start of a string: in capitals, as our SQL is written, or in the shape of a statement.
_SQL_CAPITALS = re.compile(
    r"\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+(ONLY\s+)?\S+\s+(AS\s+\w+\s+)?SET\s|DELETE\s+FROM\s|MERGE\s+INTO\s"
    r"|WITH\s+(RECURSIVE\s+)?\w+\s*(\([^)]*\)\s*)?AS\s|COPY\s+\S+|TRUNCATE\s|LOCK\s+TABLE\s|VALUES\s*\("
    r"|(CREATE|ALTER|DROP|COMMENT\s+ON)\s+(OR\s+REPLACE\s+)?(UNIQUE|UNLOGGED|TEMP|TEMPORARY|TABLE|INDEX|SCHEMA|ROLE|USER"
    r"|DATABASE|FUNCTION|PROCEDURE|EXTENSION|TRIGGER|VIEW|MATERIALIZED|TYPE|SEQUENCE|DEFAULT\s+PRIVILEGES)\b"
    r"|(GRANT|REVOKE)\s+[A-Z{]|SET\s+(LOCAL|SESSION)\s|SAVEPOINT\s|LISTEN\s|NOTIFY\s|VACUUM\b|EXPLAIN\s|DO\s+\$)"
)
_SQL_SHAPE = re.compile(
    r"\s*(insert\s+into\s+\S+\s*(\(|values|select)|update\s+\S+\s+set\s+\S+\s*=|delete\s+from\s+\S+\s*($|;|where\s|using\s)"
    r"|select\s[^\"]+?\sfrom\s+[\w.{}]+\s*($|;|where\s|order\s|group\s|join\s|left\s|for\s+update|limit\s)"
    r"|(create|alter|drop)\s+(table|index|role|database|schema)\s+(if\s|\S+\s*(\(|;|$|add|drop|owner|rename)))",
    re.IGNORECASE,
)
# Methods of an asyncpg connection: the first are nobody else's, the second count with a literal statement.
_SQL_ONLY_CALLS = {
    "copy_from_query", "copy_from_table", "copy_records_to_table", "copy_to_table", "executemany",
    "fetchmany", "fetchrow", "fetchval",
}  # fmt: skip
_SQL_CALLS = {"cursor", "execute", "fetch", "prepare"}


def _sql_home(path: PurePosixPath) -> bool:
    return (
        _room_file(path, "store.py")
        or str(path) in _SQL_HOMES
        or str(path).startswith("deploy/bench")
        or path.parts[0] == "tests"
    )


def _is_sql(text: str) -> bool:
    return bool(_SQL_CAPITALS.match(text) or _SQL_SHAPE.match(text))


def _sql_outside_store(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    statements: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        literal = bool(node.args) and text_of(node.args[0]) is not None
        if called(node) in _SQL_ONLY_CALLS or (called(node) in _SQL_CALLS and literal):
            statements.update(map(id, node.args[:1]))
            yield node, f"a statement is run here: `{called(node)}`"
    for string, text in strings(tree):
        if _is_sql(text) and id(string) not in statements:
            yield string, f"SQL: {_short(text)}"


_SQL_CLOCK = re.compile(
    r"\b(now|clock_timestamp|transaction_timestamp|statement_timestamp|timeofday)\s*\(\s*\)"
    r"|\b(current_timestamp|current_date|current_time|localtimestamp|localtime)\b",
    re.IGNORECASE,
)
_SQL_NOW_LITERAL = re.compile(
    r"'(now|today|tomorrow|yesterday)'\s*(::|\))|\b(timestamptz|date)\s+'(now|today|tomorrow|yesterday)'",
    re.IGNORECASE,
)


def _sql_clock_python(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    for string, text in strings(tree):
        match = _SQL_CLOCK.search(text)
        # `now()` is SQL wherever it stands; a bare word counts with something around it, as in a clause.
        if match and "(" not in match[0] and " " not in text.strip():
            match = None
        if match is None and _is_sql(text):
            match = _SQL_NOW_LITERAL.search(text)
        if match:
            yield string, f"the database's clock: {match[0]}"


def _sql_clock_sql(text: str, path: PurePosixPath) -> Iterator[Hit]:
    code = sql.code(text)
    for match in _SQL_CLOCK.finditer(code):
        yield code.count("\n", 0, match.start()) + 1, f"the database's clock: {match[0]}"
    for match in _SQL_NOW_LITERAL.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, f"the database's clock: {match[0]}"


# --------------------------------------------------------------------------------------------------
# Pure code

_WORLD_MODULES = {
    "aiofiles", "aiohttp", "aiokafka", "anyio", "asyncio", "asyncpg", "faststream", "http", "httpx",
    "importlib", "io", "logging", "multiprocessing", "os", "pathlib", "prometheus_client", "random",
    "requests", "secrets", "shared.mesh", "shutil", "signal", "socket", "subprocess", "sys", "tempfile",
    "threading", "time", "urllib.request",
}  # fmt: skip
_PURE_MODULES = {"shared.mesh.packed"}
_WORLD_NAMES = {
    "breakpoint", "input", "open", "print",
    "datetime.date.today", "datetime.datetime.now", "datetime.datetime.today", "datetime.datetime.utcnow",
    "uuid.uuid1", "uuid.uuid4", "uuid.uuid6", "uuid.uuid7",
}  # fmt: skip


def _impure_domain(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    for statement, module in imports(tree):
        outside = any(module == world or module.startswith(world + ".") for world in _WORLD_MODULES)
        outside &= module not in _PURE_MODULES
        if outside or module in _WORLD_NAMES:
            yield statement, f"imports {module}"
    names = Names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and names.full(node) in _WORLD_NAMES:
            yield node, f"uses {names.full(node)}"


def _money(path: PurePosixPath) -> bool:
    return (
        path.is_relative_to("services/billing")
        or path.is_relative_to("services/metering")
        or str(path) == "shared/contract/money.py"
    )


def _is_fraction(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and called(node) == "Fraction"


def _float_money(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    asked = {
        id(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) in ("isinstance", "issubclass")
        for argument in node.args[1:]
        for name in ast.walk(argument)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=float() | complex() as value):
                yield node, f"a float: {value}"
            case ast.Name(id="float") if id(node) not in asked:
                yield node, "float"
            case ast.BinOp(op=ast.Div(), left=left, right=right):
                # `folder / "name"` joins a path; a Fraction stays exact, where a Decimal would round.
                sides = (left, right)
                if not any(text_of(side) is not None or _is_fraction(side) for side in sides):
                    yield node, "true division"
            case ast.AugAssign(op=ast.Div()):
                yield node, "true division"
            case ast.Attribute(attr="truediv" | "total_seconds"):
                yield node, f"{node.attr} gives a float"


# --------------------------------------------------------------------------------------------------
# Kafka

_TOPIC = re.compile(r"(gateway|mesh)\.[A-Za-z0-9_.{}-]+")


def _topic_name(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    for string, text in strings(tree):
        if _TOPIC.fullmatch(text):
            yield string, f"the topic {text!r} by name"


def _ack_policy(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    names = Names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=attr) if names.full(value).split(".")[-1] == "AckPolicy":
                if attr != "MANUAL":
                    yield node, f"AckPolicy.{attr}"
            case ast.keyword(arg="ack_policy", value=value):
                full = names.full(value)
                if not full.endswith("AckPolicy.MANUAL") and "AckPolicy." not in full:
                    yield node.value, "an ack policy that is not AckPolicy.MANUAL, written out"
            case ast.keyword(arg="no_ack" | "auto_commit" | "enable_auto_commit", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield value, f"{node.arg} that is not False"
            case ast.keyword(arg="group_instance_id", value=value):
                if not (isinstance(value, ast.Constant) and value.value is None):
                    yield value, "static membership: group_instance_id"
            case ast.Constant(value="group_instance_id" | "group.instance.id"):
                yield node, "static membership: group_instance_id"
            case ast.Attribute(attr="publish_batch") | ast.Name(id="publish_batch"):
                yield node, "publish_batch"


def _commit_in_handler(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in ("commit", "rollback", "transaction"):
            yield node, f"calls {called(node)}()"


# --------------------------------------------------------------------------------------------------
# Errors

_BROAD = {"BaseException", "Exception"}


def _broad(kind: ast.expr | None, names: Names) -> bool:
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(names.full(one).removeprefix("builtins.") in _BROAD for one in kinds)


def _does_nothing(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Continue() | ast.Break() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Return(value=None | ast.Constant()):
            return True
        case _:
            return False


def _swallowed(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    names = Names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield node.lineno, "a bare except"
            elif _broad(node.type, names) and all(map(_does_nothing, node.body)):
                yield node, "every error is caught and forgotten"
        elif (
            isinstance(node, ast.Call)
            and names.full(node.func) in ("contextlib.suppress", "suppress")
            and any(_broad(kind, names) for kind in node.args)
        ):
            yield node, "every error is suppressed"


# --------------------------------------------------------------------------------------------------
# What leaves the process: metrics, logs, error texts

# "provider" only where its writer bounds it; "table" is a name of the schema, and says nothing of anybody.
LABELS = frozenset(
    {"service", "topic", "partition", "group", "reason", "stage", "outcome", "job", "task", "le", "provider", "table"}
)
_METRICS = {
    "Counter", "CounterMetricFamily", "Gauge", "GaugeMetricFamily", "Histogram", "HistogramMetricFamily",
    "Info", "Summary",
}  # fmt: skip


def _metric_label(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    names = Names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "labels":
            for keyword in node.keywords:
                if keyword.arg not in LABELS:
                    yield keyword.value, f"label {keyword.arg or '**'!r}"
        is_metric = names.full(node.func).startswith("prometheus_client.") and called(node) in _METRICS
        for keyword in node.keywords:
            if keyword.arg == "labelnames" or (keyword.arg == "labels" and is_metric):
                yield from _label_names(keyword.value, is_metric)
            elif keyword.arg == "labels" and path.parts[0] in ("services", "shared"):
                yield from _label_names(keyword.value, False)
        if is_metric and len(node.args) > 2 and "Family" not in called(node):
            yield from _label_names(node.args[2], True)


def _label_names(value: ast.expr, must_be_literal: bool) -> Iterator[Hit]:
    if not isinstance(value, ast.Tuple | ast.List):
        if must_be_literal:
            yield value, "label names that are not written out"
        return
    for name in value.elts:
        label = text_of(name)
        if label not in LABELS:
            yield name, f"label {label!r}" if label is not None else "a label name that is not written out"


# Names of values that lead to a person, alone or as the last part of a longer name (`paying_workspace_id`).
_PERSONAL = re.compile(
    r"(?:.*_)?(?:account|api_key|email|ip|mail|member|subject|user|username|workspace)(?:_(?:address|id|name|ref))?"
    r"|(?:api_)?key_id|(?:display|full|first|last)_name|generation_ref|payment_method(?:_id)?|phone|session_id"
)
# Whole objects that carry such values.
_WHOLE = {"envelope", "event", "payload", "received"}
# `ledger_account` is a row of the chart of accounts.
_NOT_PERSONAL = {"ledger_account", "ledger_account_id"}
# What a call of these gives leads to nobody.
_SAFE_CALLS = re.compile(r"len|type|bool|.*(?:digest|hash|mask|pseudonym|redact).*")
_LEVELS = {"critical", "debug", "error", "exception", "fatal", "info", "log", "warn", "warning"}


def _personal_scope(path: PurePosixPath) -> bool:
    return path.parts[0] == "services" or path.is_relative_to("shared/mesh")


def _personal_in_text(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    raised = {id(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LEVELS:
            if "log" in last_name(node.func.value).lower() or "log" in _root(node.func.value).lower():
                for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
                    yield from _leaks(value, "a log line")
                for keyword in node.keywords:
                    if keyword.arg and _leads_to_a_person(keyword.arg):
                        yield keyword.value, f"{keyword.arg} in a log line"
        elif isinstance(node, ast.Call) and (id(node) in raised or called(node).endswith(("Error", "Exception"))):
            for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
                yield from _leaks(value, "an error text")
        elif isinstance(node, ast.Call) and called(node) == "dead_letter":
            for value in [*node.args[1:], *(keyword.value for keyword in node.keywords)]:
                yield from _leaks(value, "the reason of a dead letter")


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _leads_to_a_person(name: str) -> bool:
    lowered = name.lower()
    return lowered not in _NOT_PERSONAL and (lowered in _WHOLE or bool(_PERSONAL.fullmatch(lowered)))


def _leaks(node: ast.AST, where: str) -> Iterator[Hit]:
    """Names in `node` whose value gets into the text; a literal that speaks *about* a field is none."""
    if isinstance(node, ast.Call):
        if _SAFE_CALLS.fullmatch(called(node)):
            return
        if isinstance(node.func, ast.Attribute):
            # "...".format(x) and value.method(): what it is called on gets in as well.
            yield from _leaks(node.func.value, where)
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
            yield from _leaks(value, where)
        return
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            name = text_of(key) if key is not None else None
            if name is not None and _leads_to_a_person(name):
                yield value, f"{name} in {where}"
            else:
                yield from _leaks(value, where)
        return
    if isinstance(node, ast.Compare):
        return
    if isinstance(node, ast.IfExp):
        for branch in (node.body, node.orelse):
            yield from _leaks(branch, where)
        return
    name = last_name(node)
    if isinstance(node, ast.Attribute) and name in ("address", "id", "name", "ref", "value"):
        # `workspace.id` is a workspace_id.
        name = f"{last_name(node.value)}_{name}"
    if name:
        if _leads_to_a_person(name):
            yield node, f"{name} in {where}"
        return
    if isinstance(node, ast.Subscript):
        # `balances[workspace]` gives a balance.
        yield from _leaks(node.value, where)
        return
    for child in ast.iter_child_nodes(node):
        yield from _leaks(child, where)


# --------------------------------------------------------------------------------------------------
# The data map


def _data_map(root: Path) -> Iterator[tuple[str, int, str]]:
    for migrations in sorted(root.glob("services/*/migrations")):
        room = migrations.parent
        where = (room / "data_map.py").relative_to(root).as_posix()
        texts = [
            (path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
            for path in sorted(migrations.glob("*.sql"))
        ]
        try:
            schema = sql.schema(texts)
        except ValueError as error:
            yield where, 1, str(error)
            continue
        declared: DataMap = ()
        if (room / "data_map.py").exists():
            declared = runpy.run_path(str(room / "data_map.py"))["DATA_MAP"]
        yield from _unclassified(schema, declared, where)
        for sentence in contradictions(declared):
            yield where, 1, sentence


def _unclassified(schema: sql.Schema, declared: DataMap, where: str) -> Iterator[tuple[str, int, str]]:
    entries = {(column.table, column.column) for column in declared}
    for table, columns in schema.items():
        for column, place in columns.items():
            if (table, column) not in entries:
                yield place.path, place.line, f"{table}.{column} is not in the data map"
    for table, column in sorted(entries):
        if column not in schema.get(table, {}):
            yield where, 1, f"{table}.{column} is in the data map and in no migration"


# --------------------------------------------------------------------------------------------------
# Tests

_SLEEPS = {"anyio.sleep", "asyncio.sleep", "time.sleep", "trio.sleep"}


def _sleep_in_test(tree: ast.Module, path: PurePosixPath) -> Iterator[Hit]:
    names = Names(tree)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or names.full(node.func) not in _SLEEPS:
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords)][:1]
        for value in given:
            known = constants.get(value.id, value) if isinstance(value, ast.Name) else value
            if isinstance(known, ast.Constant) and isinstance(known.value, int | float) and known.value > 0:
                yield node, f"sleeps for {known.value} s"


def _short(text: str, limit: int = 60) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= limit else one_line[:limit] + "..."


# --------------------------------------------------------------------------------------------------

RULES: tuple[Rule, ...] = (
    Rule(
        "sql-outside-store",
        "One file per room holds its SQL, so that locks, indexes and parameters can be read in one place.",
        applies=lambda path: not _sql_home(path),
        python=_sql_outside_store,
    ),
    Rule(
        "sql-clock",
        "Time is a parameter: a statement with a clock of its own cannot be tested, replayed or proved.",
        applies=lambda path: str(path) != "deploy/local/doctor.py" and not _own_snippets(path),
        python=_sql_clock_python,
        sql=_sql_clock_sql,
    ),
    Rule(
        "impure-domain",
        "Domain modules are pure functions: no clock, random source or I/O, nothing of the runtime.",
        applies=_domain,
        python=_impure_domain,
    ),
    Rule(
        "float-money",
        "Money is whole pico-dollars and prices are exact decimals; a float loses what the books must show.",
        applies=_money,
        python=_float_money,
    ),
    Rule(
        "topic-name",
        "Topics are declared once: rights, settings and documents come from there, not from a string.",
        applies=lambda path: not path.is_relative_to("shared/contract") and not _own_snippets(path),
        python=_topic_name,
    ),
    Rule(
        "ack-policy",
        "Exactly-once rests on manual acknowledgement, one send per record, and no static membership.",
        applies=lambda path: not _own_snippets(path),
        python=_ack_policy,
    ),
    Rule(
        "commit-in-handler",
        "A batch is one transaction and the runtime commits it; a commit inside splits effect and cursor.",
        applies=lambda path: _room_file(path, "app.py") or (path.parts[0] == "services" and "app" in path.parts),
        python=_commit_in_handler,
    ),
    Rule(
        "swallowed-error",
        "Nothing is caught and forgotten: narrow the exception, log it, or let it rise.",
        python=_swallowed,
    ),
    Rule(
        "metric-label",
        "A label value is a time series; an id as a label is unbounded, and may be a person.",
        applies=lambda path: path.parts[0] != "tests",
        python=_metric_label,
    ),
    Rule(
        "personal-in-text",
        "Logs and error texts have no data map and no erasure: they name fields, never a person's values.",
        applies=_personal_scope,
        python=_personal_in_text,
    ),
    Rule(
        "data-map",
        "What is not in the data map does not expire, is not exported and is not erased.",
        whole=_data_map,
    ),
    Rule(
        "sleep-in-test",
        "A sleep is either too short on a slow machine or too long on all others: await the event itself.",
        applies=lambda path: path.parts[0] == "tests",
        python=_sleep_in_test,
    ),
)
