"""Whether an event costs more when much is stored: time per event beside few stored rows and beside many."""

from __future__ import annotations

from tests.bench.backlog import Plan
from tests.bench.chain import Run, run_chain, run_metering
from tests.bench.lab import Lab
from tests.bench.report import Limit, Line, Report, mean

_DAY_MS = 86_400_000
# Spread over the days before the backlog, as days of traffic would be; the rows' partitions are there already.
_SPAN_MS = 10 * _DAY_MS
_AT = f"($1::bigint + i * {_SPAN_MS} / $2::bigint)"
_HEX = f"lpad(to_hex({_AT}), 12, '0')"
_SERIES = "FROM generate_series(0, $2::bigint - 1) AS i"

_FILL = {
    "metering": {
        "seen": f"""
            INSERT INTO seen (key, digest)
            SELECT decode({_HEX} || left(md5(i::text), 20), 'hex'), i {_SERIES}""",
        "request_log": f"""
            INSERT INTO request_log (expires_on, occurred_at, retention_days, generation_id, generation_ref, account,
                workspace, key_id, provider, model, tier, ended, rule, quantities, input_tokens, output_tokens, amount_pico,
                price_version, record, line)
            SELECT (to_timestamp({_AT} / 1000.0) AT TIME ZONE 'UTC')::date + 30, to_timestamp({_AT} / 1000.0), 30,
                ({_HEX} || '7' || left(md5(i::text), 3) || '8' || right(md5(i::text), 15))::uuid,
                'gen-' || md5(i::text), 'acc-' || left(md5((i % 1000)::text), 16), 'ws-' || left(md5((i % 2000)::text), 16),
                'key-' || left(md5((i % 6000)::text), 16), 'openai', 'gpt-4.1-mini', 'standard', 'completed/stop', 'list',
                '{{"input":' || 1000 + i % 3000 || ',"output":' || 1 + i % 1000 || '}}', 1000 + i % 3000, 1 + i % 1000,
                i % 1000000000, 'pv_000000000000',
                (lpad(to_hex($1::bigint + i / 800 * 800 * {_SPAN_MS} / $2::bigint), 12, '0') || '7'
                    || left(md5((i / 800)::text), 3) || '8' || right(md5((i / 800)::text), 15))::uuid,
                i % 800 {_SERIES}""",
    },
    "billing": {
        "line_seen": f"""
            INSERT INTO line_seen (line_id, digest)
            SELECT decode({_HEX} || left(md5(i::text), 20), 'hex'), i % 30000 {_SERIES}""",
        "charge_line": f"""
            INSERT INTO charge_line (record, line, class, booking_year, workspace_id, hour, price_version, tier, terms,
                quantities, amount_pico, list_pico, journal)
            SELECT (lpad(to_hex($1::bigint + i / 800 * 800 * {_SPAN_MS} / $2::bigint), 12, '0') || '7'
                    || left(md5((i / 800)::text), 3) || '8' || right(md5((i / 800)::text), 15))::uuid,
                i % 800, 'US', extract(year FROM to_timestamp({_AT} / 1000.0) AT TIME ZONE 'UTC')::int,
                1000000 + i % 2000, {_AT} / 3600000, 'pv_000000000000', 'standard', 'list',
                ('{{"input":' || 1000 + i % 3000 || ',"output":' || 1 + i % 1000 || '}}')::json,
                i % 1000000000, i % 1000000000, -1 - i / 100 {_SERIES}""",
    },
}


async def growth_lines(lab: Lab, report: Report, small: int, large: int, events: int) -> None:
    """The same backlog beside `small`, `large` and again `small` rows in each large table; every day partition is there."""
    few = [await _run(lab, small, events)]
    many = await _run(lab, large, events)
    few.append(await _run(lab, small, events))
    base = mean([run.us_per_event for run in few])
    ratio = many.us_per_event / base
    tables = ", ".join(table for room in lab.rooms for table in _FILL.get(room, {}))
    report.add(
        Line(
            "million_rows_small", base, "us/event",
            note=f"{small:,} rows each in {tables}; before, after: "
            + ", ".join(f"{run.us_per_event:.1f}" for run in few),
        ),
        Line("million_rows_large", many.us_per_event, "us/event", ratio, "million_rows_small", note=f"{large:,} rows"),
        Line("million_rows", ratio, "times", ratio, "million_rows_small", (Limit("<=", 1.3),), note=many.note),
    )  # fmt: skip


async def _run(lab: Lab, rows: int, events: int) -> Run:
    plan = Plan.just_before_now(events)
    await lab.reset(plan)
    start_ms = plan.end_ms - events * 1000 // 5_000 - _SPAN_MS
    with lab.progress() as progress:
        fills = [(room, table, sql) for room in lab.rooms for table, sql in _FILL.get(room, {}).items()]
        task = progress.add_task(f"{rows:,} rows in each of {len(fills)} tables", total=len(fills))
        for room, table, sql in fills:
            async with lab.owner(room) as db:
                await db.execute(sql, start_ms, rows)
                # Done now, so that no autovacuum falls into the measured part.
                await db.execute(f"VACUUM (ANALYZE) {table}")
            progress.advance(task)
    await lab.settle()
    if "billing" in lab.rooms:
        return await run_chain(lab, plan, ("metering", "billing"))
    return await run_metering(lab, plan)
