"""Each rule finds its mistake and leaves the right form alone; escapes work, and only with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from tests.lint import sql
from tests.lint.framework import Rule, Source, run
from tests.lint.rules import RULES

BY_NAME = {rule.name: rule for rule in RULES}

APP = "services/billing/app.py"
DOMAIN = "services/billing/ledger.py"
STORE = "services/billing/store.py"
MESH = "shared/mesh/runtime.py"
TEST = "tests/integration/test_runtime.py"
MIGRATION = "services/billing/migrations/0001_ledger.sql"


@dataclass(frozen=True)
class Case:
    """`text` at `path` has `hits` findings of the rule."""

    rule: str
    path: str
    text: str
    hits: int


def bad(rule: str, path: str, text: str, hits: int = 1) -> Case:
    return Case(rule, path, text, hits)


def good(rule: str, path: str, text: str) -> Case:
    return Case(rule, path, text, 0)


CASES = (
    # SQL
    bad("sql-outside-store", APP, 'QUERY = "SELECT id FROM lines"'),
    bad("sql-outside-store", APP, 'QUERY = f"select id from {table} where id = $1"'),
    bad("sql-outside-store", APP, 'QUERY = """\n    INSERT INTO lines (id) VALUES ($1)"""'),
    bad("sql-outside-store", APP, 'QUERY = "WITH due AS (SELECT 1) DELETE FROM lines USING due"'),
    bad("sql-outside-store", APP, "row = await tx.db.fetchrow(statement)"),
    bad("sql-outside-store", APP, 'await tx.db.execute("vacuum lines")'),
    bad("sql-outside-store", MESH, 'QUERY = "UPDATE cursors SET epoch = epoch + 1"'),
    bad("sql-outside-store", "deploy/cli/check.py", 'QUERY = "CREATE TABLE x (id int)"'),
    good("sql-outside-store", APP, 'HELP = "Select one workspace from the list"'),
    good("sql-outside-store", APP, '"""SELECT id FROM lines stands in the store."""'),
    good("sql-outside-store", APP, 'ERROR = "update the price book first"'),
    good("sql-outside-store", APP, "await task.execute(step)"),
    good("sql-outside-store", STORE, 'QUERY = "SELECT id FROM lines"'),
    good("sql-outside-store", "shared/mesh/store.py", 'QUERY = "SELECT id FROM lines"'),
    good("sql-outside-store", TEST, 'QUERY = "SELECT id FROM lines"'),
    bad("sql-clock", STORE, 'QUERY = "SELECT id FROM holds WHERE ends_at < now()"'),
    bad("sql-clock", STORE, 'DUE = "ends_at < CURRENT_TIMESTAMP"'),
    bad("sql-clock", STORE, "QUERY = \"SELECT 'now'::timestamptz\""),
    bad("sql-clock", MIGRATION, "CREATE TABLE a (\n  made_at timestamptz DEFAULT clock_timestamp()\n);"),
    bad("sql-clock", MIGRATION, "CREATE FUNCTION f() RETURNS void AS $$ SELECT now() $$ LANGUAGE sql;"),
    good("sql-clock", STORE, 'QUERY = "SELECT id FROM holds WHERE ends_at < $1"'),
    good("sql-clock", STORE, '"""Time comes in: no now() here."""'),
    good("sql-clock", MIGRATION, "-- never now()\nCREATE TABLE a (note text DEFAULT 'now()');"),
    good("sql-clock", "deploy/local/doctor.py", 'QUERY = "SELECT now()"'),
    # Pure code
    bad("impure-domain", DOMAIN, "import asyncio"),
    bad("impure-domain", DOMAIN, "from os import urandom"),
    bad("impure-domain", DOMAIN, "from shared.mesh import Service"),
    bad("impure-domain", DOMAIN, "import random as dice"),
    bad("impure-domain", DOMAIN, "from datetime import datetime as D\nx = D.now(UTC)"),
    bad("impure-domain", DOMAIN, "import datetime as dt\nmade = field(default_factory=dt.datetime.utcnow)"),
    bad("impure-domain", DOMAIN, "import uuid\nx = uuid.uuid4()"),
    bad("impure-domain", DOMAIN, 'x = open("prices.json")'),
    bad("impure-domain", "services/billing/journal/entries.py", "import socket"),
    good("impure-domain", DOMAIN, "from datetime import UTC, datetime\nx = datetime.fromtimestamp(0, UTC)"),
    good("impure-domain", DOMAIN, "from shared.contract.money import pico\nx = now + day"),
    good("impure-domain", APP, "import asyncio"),
    good("impure-domain", STORE, "import asyncpg"),
    bad("float-money", DOMAIN, "fee = 0.055"),
    bad("float-money", DOMAIN, "share = amount_pico / 3"),
    bad("float-money", DOMAIN, "amount /= 2"),
    bad("float-money", "services/metering/pricing.py", "x = float(price)"),
    bad("float-money", "services/metering/pricing.py", "def rate(price: float) -> int: ..."),
    bad("float-money", "shared/contract/money.py", "x = 1e12"),
    good("float-money", DOMAIN, 'fee = Decimal("0.055")\nshare = amount_pico // 3'),
    good("float-money", DOMAIN, "exact = Fraction(price) / per * used"),
    bad("float-money", DOMAIN, "unit = Decimal(price) / per"),
    good("float-money", DOMAIN, "if isinstance(amount, (int, float)): raise TypeError"),
    good("float-money", APP, 'MIGRATIONS = Path(__file__).parent / "migrations"'),
    good("float-money", "shared/mesh/metrics.py", "BUCKETS = (0.1, 0.5)"),
    # Kafka
    bad("topic-name", APP, 'TOPIC = "gateway.generations"'),
    bad("topic-name", MESH, 'TOPIC = f"mesh.{name}"'),
    bad("topic-name", TEST, 'await produce("mesh.usage-rated", b"")'),
    good("topic-name", "shared/contract/topics.py", 'NAME = "gateway.generations"'),
    good("topic-name", APP, '"""gateway.generations"""\nTEXT = "gateway.generations is read here"'),
    bad("ack-policy", MESH, "policy = AckPolicy.ACK_FIRST"),
    bad("ack-policy", MESH, "broker.subscriber(topic, ack_policy=policy)"),
    bad("ack-policy", MESH, "AIOKafkaConsumer(enable_auto_commit=True)"),
    bad("ack-policy", MESH, "await broker.publish_batch(*records)"),
    bad("ack-policy", MESH, 'AIOKafkaConsumer(group_instance_id="a")'),
    bad("ack-policy", MESH, 'options = {"group_instance_id": host}'),
    good("ack-policy", MESH, "broker.subscriber(topic, ack_policy=AckPolicy.MANUAL)"),
    good("ack-policy", MESH, "AIOKafkaConsumer(enable_auto_commit=False, group_instance_id=None)"),
    bad("commit-in-handler", APP, "async def post(batch, tx):\n    await tx.commit()"),
    bad("commit-in-handler", APP, "async def post(batch, tx):\n    async with tx.db.transaction(): ..."),
    good("commit-in-handler", APP, "async def post(batch, tx):\n    tx.after_commit(forget)"),
    good("commit-in-handler", MESH, "await consumer.commit()"),
    # Errors
    bad("swallowed-error", MESH, "try:\n    f()\nexcept:\n    raise"),
    bad("swallowed-error", MESH, "try:\n    f()\nexcept Exception:\n    pass"),
    bad("swallowed-error", MESH, "for x in y:\n  try: f()\n  except (ValueError, BaseException): continue"),
    bad("swallowed-error", MESH, "try:\n    f()\nexcept Exception:\n    return None"),
    bad("swallowed-error", MESH, "from contextlib import suppress\nwith suppress(Exception):\n    f()"),
    good("swallowed-error", MESH, "try:\n    f()\nexcept Exception:\n    log.exception('f')"),
    good("swallowed-error", MESH, "try:\n    f()\nexcept KeyError:\n    pass"),
    good("swallowed-error", MESH, "with suppress(ProcessLookupError):\n    f()"),
    # What leaves the process
    bad("metric-label", MESH, 'from prometheus_client import Counter\nC = Counter("a", "b", ["workspace"])'),
    bad("metric-label", MESH, 'import prometheus_client as p\nC = p.Gauge("a", "b", labelnames=names)'),
    bad("metric-label", MESH, "DEFINITION = Metric(name, labels=('topic', 'model'))"),
    bad("metric-label", APP, "lag.labels(topic=topic, account=account).set(1)"),
    good("metric-label", MESH, 'from prometheus_client import Counter\nC = Counter("a", "b", ["topic"])'),
    good("metric-label", APP, "lag.labels(topic=topic, partition=3).set(1)"),
    good("metric-label", APP, "from collections import Counter\nC = Counter(names)"),
    bad("personal-in-text", APP, 'log.info("booked for %s", workspace)'),
    bad("personal-in-text", APP, 'log.info("booked for %s", line.workspace_id)'),
    bad("personal-in-text", APP, 'self.logger.warning(f"refused {row[\'account_id\']}")'),
    bad("personal-in-text", APP, 'logging.getLogger(__name__).error("no key", extra={"key_id": x})'),
    bad("personal-in-text", MESH, 'log.exception("batch failed at %r", event)'),
    bad("personal-in-text", DOMAIN, 'raise ValueError(f"no balance for {workspace.id}")'),
    bad("personal-in-text", DOMAIN, 'raise Unbalanced("no balance for {}".format(paying_workspace))'),
    bad("personal-in-text", APP, 'tx.dead_letter(received, f"unknown {event.subject}")'),
    good("personal-in-text", APP, 'log.info("booked %d lines of %d workspaces", len(lines), len(workspace))'),
    good("personal-in-text", APP, 'log.info("at %s offset %d", record.topic, record.offset)'),
    good("personal-in-text", APP, 'log.info("subject %s", keyed_hash(subject))'),
    good("personal-in-text", APP, 'tx.dead_letter(received, "the workspace is unknown")'),
    good("personal-in-text", DOMAIN, 'raise Unbalanced(f"{ledger_account}: {balances[workspace]}")'),
    good("personal-in-text", "deploy/demo/page.py", 'log.info("workspace %s", workspace)'),
    # Tests
    bad("sleep-in-test", TEST, "import asyncio\nasync def test() -> None:\n    await asyncio.sleep(0.1)"),
    bad("sleep-in-test", TEST, "from time import sleep\nPAUSE = 2\nsleep(PAUSE)"),
    good("sleep-in-test", TEST, "import asyncio\nasync def test() -> None:\n    await asyncio.sleep(0)"),
    good("sleep-in-test", MESH, "import asyncio\nasync def f() -> None:\n    await asyncio.sleep(1)"),
)  # fmt: skip


def _found(rule: Rule, path: str, text: str) -> list[str]:
    return [str(finding) for finding in run([rule], [Source.of(path, text)])]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {case.text!r:.60}")
def test_snippet(case: Case) -> None:
    assert len(_found(BY_NAME[case.rule], case.path, case.text)) == case.hits


def test_every_rule_is_proved_both_ways() -> None:
    # The data map looks at several files at once; its proofs stand below.
    for rule in set(BY_NAME) - {"data-map"}:
        assert {case.hits > 0 for case in CASES if case.rule == rule} == {True, False}, rule


def test_a_finding_says_where() -> None:
    text = "\n\nPRICE = 0.5\n"
    assert _found(BY_NAME["float-money"], DOMAIN, text) == [f"{DOMAIN}:3: float-money: a float: 0.5"]


# --------------------------------------------------------------------------------------------------
# Escapes


@pytest.mark.parametrize(
    "text",
    [
        "X = 0.5  # lint: allow float-money -- a plot's width",
        "# lint: allow float-money -- a plot's width\nX = 0.5",
        "X = f(\n    0.5,  # lint: allow float-money -- a plot's width\n)",
        "X = 0.5  # noqa: F841  # lint: allow float-money -- a plot's width",
    ],
)
def test_an_escape_with_a_reason_holds(text: str) -> None:
    assert _found(BY_NAME["float-money"], DOMAIN, text) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("X = 0.5  # lint: allow float-money", "says why"),
        ("X = 1  # lint: allow float-money -- no need", "nothing here needs"),
        ("X = 1  # lint: allow flaot-money -- misspelt", "there is no rule"),
    ],
)
def test_a_bad_escape_is_a_finding(text: str, says: str) -> None:
    assert any(says in finding for finding in _found(BY_NAME["float-money"], DOMAIN, text))


def test_an_escape_in_a_string_is_none() -> None:
    text = 'X = 0.5, "# lint: allow float-money -- only text"'
    assert len(_found(BY_NAME["float-money"], DOMAIN, text)) == 1


def test_an_escape_in_sql() -> None:
    text = "CREATE TABLE a (b date DEFAULT current_date); -- lint: allow sql-clock -- set by hand only"
    assert _found(BY_NAME["sql-clock"], MIGRATION, text) == []


# --------------------------------------------------------------------------------------------------
# Migrations and the data map


def test_columns_of_migrations() -> None:
    first = """
        -- CREATE TABLE commented_out (a int);
        CREATE TABLE IF NOT EXISTS billing.lines (
            id bigint GENERATED ALWAYS AS IDENTITY,
            amount_pico numeric(38, 0) NOT NULL CHECK (amount_pico > 0 AND note <> 'a, b'),
            "Note" text DEFAULT 'x, y (', -- the note, with a comma
            total bigint GENERATED ALWAYS AS (id * 2) STORED,
            PRIMARY KEY (id, amount_pico),
            CONSTRAINT sound CHECK (total > 0),
            EXCLUDE USING gist (id WITH =)
        ) PARTITION BY LIST (id);
        CREATE TABLE lines_2026 PARTITION OF billing.lines FOR VALUES IN (2026);
        CREATE UNLOGGED TABLE copies (LIKE lines INCLUDING ALL, copied_at timestamptz);
        CREATE TEMP TABLE scratch (a int);
        CREATE INDEX ON lines (id);
        DO $body$ BEGIN EXECUTE 'CREATE TABLE made (a int)'; END $body$;
    """
    second = """
        ALTER TABLE lines ADD COLUMN hour timestamptz, ADD CONSTRAINT c CHECK (id > 0),
            DROP COLUMN IF EXISTS "Note";
        ALTER TABLE ONLY lines RENAME COLUMN total TO doubled;
        CREATE TABLE gone (a int); DROP TABLE IF EXISTS gone CASCADE;
        CREATE TABLE old (a int); ALTER TABLE old RENAME TO new;
    """
    schema = sql.schema([("0001.sql", first), ("0002.sql", second)])
    assert {table: set(columns) for table, columns in schema.items()} == {
        "lines": {"id", "amount_pico", "doubled", "hour"},
        "copies": {"id", "amount_pico", "Note", "total", "copied_at"},
        "new": {"a"},
    }
    assert schema["lines"]["amount_pico"] == sql.Place("0001.sql", 5)


def test_a_table_without_written_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="written out"):
        sql.schema([("0001.sql", "CREATE TABLE a AS SELECT 1 AS b")])


MAP = """
    from datetime import timedelta
    from shared.privacy import Column, DataMap, plain
    DATA_MAP: DataMap = (
        *plain("lines", "id"),
        Column("lines", "workspace_id", "user.unique_id", "finance", "transaction", "billing_record",
               "retain", "legal_obligation"),
    )
"""


def _room(root: Path, migration: str, data_map: str | None) -> list[str]:
    room = root / "services" / "billing"
    (room / "migrations").mkdir(parents=True)
    (room / "migrations" / "0001_lines.sql").write_text(migration)
    if data_map is not None:
        (room / "data_map.py").write_text(dedent(data_map))
    return [str(finding) for finding in run([BY_NAME["data-map"]], [], root)]


def test_a_classified_room_passes(tmp_path: Path) -> None:
    assert _room(tmp_path, "CREATE TABLE lines (id bigint, workspace_id text);", MAP) == []


def test_an_unclassified_column_is_found_where_it_is_made(tmp_path: Path) -> None:
    found = _room(tmp_path, "CREATE TABLE lines (id bigint, workspace_id text,\n email text);", MAP)
    assert found == ["services/billing/migrations/0001_lines.sql:2: data-map: lines.email is not in the data map"]


def test_a_room_without_a_map_is_found(tmp_path: Path) -> None:
    found = _room(tmp_path, "CREATE TABLE lines (id bigint);", None)
    assert [line.rpartition(": ")[2] for line in found] == ["lines.id is not in the data map"]


def test_an_entry_for_no_column_is_found(tmp_path: Path) -> None:
    found = _room(tmp_path, "CREATE TABLE lines (id bigint);", MAP)
    assert found == [
        "services/billing/data_map.py:1: data-map: lines.workspace_id is in the data map and in no migration"
    ]


def test_a_contradiction_in_the_map_is_found(tmp_path: Path) -> None:
    data_map = MAP.replace('"billing_record"', "None")
    found = _room(tmp_path, "CREATE TABLE lines (id bigint, workspace_id text);", data_map)
    assert [line.partition("data-map: ")[2] for line in found] == [
        "lines.workspace_id: personal, but no clock that ends it"
    ]
