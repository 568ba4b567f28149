"""What a correction leaves in the request log and in the sums: what it says, for as long as the row was to be kept."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.contract import events, topics
from tests.support.gateway import Gateway, body
from tests.support.world import Mesh


async def test_the_row_and_the_sums_say_what_the_correction_says(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    tokens = {"input": 100, "output": 7}
    wrong, other = (
        gateway.generation(
            "ws-1", counted=False, log_retention_days=9, tokens=tokens, input_tokens=100, output_tokens=7
        )
        for _ in range(2)
    )
    await gateway.send(mesh.env, [wrong, other])
    await mesh.idle()
    (before,) = await mesh.fetch("metering", f"SELECT * FROM request_log WHERE generation_id = '{body(wrong)['id']}'")
    said = body(wrong)["data"]
    # Meanwhile the workspace has chosen to keep no log: what is kept already goes when it was to go.
    data = said | {
        "original": body(wrong)["id"], "tokens": {"input": 3}, "input_tokens": 3, "output_tokens": 0,
        "finish_reason": "length", "log_retention_days": 0,
    }  # fmt: skip
    at = datetime.fromisoformat(body(wrong)["time"])
    at_ms = int(at.timestamp() * 1000)
    await gateway.send(
        mesh.env,
        [gateway.event(topics.GENERATIONS, events.UsageCorrected, data, key=body(wrong)["id"], at_ms=at_ms)],
    )
    await mesh.idle()
    rows = await mesh.fetch("metering", "SELECT * FROM request_log ORDER BY input_tokens")
    assert [row["input_tokens"] for row in rows] == [3, 100]
    after = rows[0]
    for kept in (
        "expires_on",
        "occurred_at",
        "retention_days",
        "generation_id",
        "generation_ref",
        "workspace",
        "key_id",
    ):
        assert after[kept] == before[kept], kept
    assert before["expires_on"] == (at + timedelta(days=9)).date()
    assert (after["quantities"], after["ended"], after["output_tokens"]) == ('{"input":3}', "completed/length", 0)
    per_token, rest = divmod(before["amount_pico"] - 100 * (after["amount_pico"] // 3), 7)
    assert per_token > 0 and rest == 0 and after["amount_pico"] % 3 == 0
    assert (after["record"], after["line"]) != (before["record"], before["line"])
    hourly = await mesh.fetch(
        "metering",
        """SELECT sum(generations) AS generations, sum(input_tokens) AS read, sum(output_tokens) AS generated,
                  sum(amount_pico) AS amount FROM rollup_hourly""",
    )
    assert dict(hourly[0]) == {
        "generations": 2, "read": 103, "generated": 7, "amount": before["amount_pico"] + after["amount_pico"],
    }  # fmt: skip
    assert not await mesh.fetch("metering", "SELECT * FROM rollup_daily")
