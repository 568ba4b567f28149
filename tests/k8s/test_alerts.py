"""Alerts, judged by Prometheus's own tool: each fires, each stays quiet, and each does so because of its threshold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploy.observe.alerts import ALERTS, GROUPS, RECORDINGS
from deploy.observe.rules import LIMIT, Alert, groups_of, prometheus_rule, rule_of, to_yaml
from tests.k8s import promtool

BY_NAME = {alert.name: alert for alert in ALERTS}


def test_each_alert_fires_and_stays_quiet_by_its_threshold(tmp_path: Path) -> None:
    tests = [
        promtool.write(alert, [rule_of(alert), promtool.past(alert), promtool.near(alert)], tmp_path)
        for alert in ALERTS
    ]
    verdict = promtool.judge(tests)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_a_moved_threshold_fails(tmp_path: Path) -> None:
    """The tool does say no: with every alert's threshold past its firing case, every firing test is red."""
    tests = []
    for alert in ALERTS:
        moved = promtool.past(alert) | {"alert": alert.name}
        tests.append(promtool.write(alert, [moved], tmp_path, quiet=False))
    verdict = promtool.judge(tests)
    assert verdict.returncode == 1
    said = verdict.stdout + verdict.stderr
    silent = [alert.name for alert in ALERTS if f'alertname=\\"{alert.name}\\"' not in said]
    assert silent == []


def test_the_rules_are_sound(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(to_yaml(groups_of(GROUPS)))
    verdict = promtool.run("check", "rules", "--lint=all", "--lint-fatal", file)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert f"{len(ALERTS) + len(RECORDINGS)} rules found" in verdict.stdout + verdict.stderr


def test_the_resource_holds_the_same_rules() -> None:
    resource = yaml.safe_load(to_yaml(prometheus_rule(GROUPS)))
    assert resource["spec"] == groups_of(GROUPS)
    assert (resource["kind"], resource["metadata"]["namespace"]) == ("PrometheusRule", "steward")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_a_reader_needs(alert: Alert) -> None:
    assert re.fullmatch(r"([A-Z][a-z]+)+", alert.name)
    assert LIMIT in alert.expr and LIMIT not in alert.query()
    assert alert.description.endswith(".") and not alert.summary.endswith(".")
    # What a text names is a label of the alert that fires.
    named = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
    assert named <= set(alert.fires.labels)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_its_threshold_is_pinned_from_both_sides(alert: Alert) -> None:
    """A case far from the threshold would not notice that it has moved."""
    limit = float(alert.limit)
    tolerated = max(abs(limit) / 2, 2.0 if limit.is_integer() else 0.0)
    for moved in (alert.past, alert.near):
        assert isinstance(moved, tuple) or 0 < abs(float(moved) - limit) <= tolerated


def test_names_are_unique_and_recordings_say_what_they_are() -> None:
    assert len(BY_NAME) == len(ALERTS)
    assert len({recording.name for recording in RECORDINGS}) == len(RECORDINGS)
    for recording in RECORDINGS:
        assert re.fullmatch(r"[a-z_]+:steward_[a-z_]+:[a-z0-9_]+", recording.name)
