"""promtool's files made of our declarations, one of each per alert, and promtool's verdict on them."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.local.prometheus_binaries import find_prometheus
from deploy.observe.alerts import RECORDINGS
from deploy.observe.rules import Alert, Case, recorded, rule_of


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """promtool's answer. The first call on a machine fetches it."""
    promtool = find_prometheus().promtool
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=110, check=False)


def past(alert: Alert) -> dict[str, Any]:
    """The alert with its threshold beyond what its firing case has."""
    return rule_of(alert, name=f"{alert.name}Past", limit=alert.past)


def near(alert: Alert) -> dict[str, Any]:
    """The alert with its threshold below what its quiet case has, or with another part changed to that end."""
    if isinstance(alert.near, str):
        return rule_of(alert, name=f"{alert.name}Near", limit=alert.near)
    rule = rule_of(alert, name=f"{alert.name}Near")
    assert alert.near[0] in rule["expr"], f"{alert.name}: what `near` replaces is not there"
    return rule | {"expr": rule["expr"].replace(*alert.near)}


def write(alert: Alert, rules: Sequence[dict[str, Any]], folder: Path, *, quiet: bool = True) -> Path:
    """A rule file with `rules` and the series they are made of, and a test of `alert` beside it; the test's path.

    `quiet`: with the quiet case, too.
    """
    text = " ".join(rule["expr"] for rule in rules)
    needed = [recorded(recording) for recording in RECORDINGS if recording.name in text]
    group = {"name": alert.name, "rules": [*needed, *rules]}
    (folder / f"{alert.name}.rules.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    test = folder / f"{alert.name}.test.yaml"
    made = _test(alert)
    test.write_text(yaml.safe_dump(made if quiet else made | {"tests": made["tests"][:1]}))
    return test


def _test(alert: Alert) -> dict[str, Any]:
    labels = "".join(f', {name}="{value}"' for name, value in alert.fires.labels.items() if value)
    firing = 'count(ALERTS{{alertname="{}", alertstate="firing"{}}})'
    # How many evaluations it was pending for: its `for`.
    pending = f'ALERTS{{alertname="{alert.name}", alertstate="pending"{labels}}}[{alert.fires.at + 1}m]'
    return {
        "rule_files": [f"{alert.name}.rules.yaml"],
        "evaluation_interval": f"{alert.step}m",
        "tests": [
            _case(
                f"{alert.name} fires",
                alert.fires,
                {
                    firing.format(alert.name, labels): 1,
                    firing.format(alert.name, ""): alert.fires.alerts,
                    firing.format(f"{alert.name}Past", ""): None,
                    f"max(count_over_time({pending}))": math.ceil(alert.minutes / alert.step) or None,
                },
            ),
            _case(
                f"{alert.name} is quiet",
                alert.quiet,
                {firing.format(alert.name, ""): None, firing.format(f"{alert.name}Near", "") + " > bool 0": 1},
            ),
        ],
    }


def _case(name: str, case: Case, wanted: dict[str, int | None]) -> dict[str, Any]:
    return {
        "name": name,
        "interval": f"{case.every}m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": f"{case.at}m",
                "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
            }
            for expr, value in wanted.items()
        ],
    }


def judge(tests: Iterable[Path]) -> subprocess.CompletedProcess[str]:
    """promtool's verdict on these tests, in one run."""
    return run("test", "rules", *tests)
