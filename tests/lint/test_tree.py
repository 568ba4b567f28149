"""The tree obeys its own rules."""

from __future__ import annotations

import pytest

from tests.lint.framework import ROOT, Finding, Rule, files, run
from tests.lint.rules import RULES


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return run(RULES, files(), ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_holds(rule: Rule, findings: list[Finding]) -> None:
    broken = [finding for finding in findings if finding.rule == rule.name]
    if broken:
        lines = "\n".join(map(str, broken))
        pytest.fail(f"{lines}\n  why: {rule.reason}", pytrace=False)


def test_escapes_name_a_rule_and_a_reason(findings: list[Finding]) -> None:
    broken = [finding for finding in findings if finding.rule == "escape"]
    if broken:
        pytest.fail("\n".join(map(str, broken)), pytrace=False)


def test_every_source_is_seen() -> None:
    seen = {str(source.path) for source in files()}
    assert "tests/lint/test_tree.py" in seen
    assert any(path.startswith("shared/") for path in seen)
    assert not any("__pycache__" in path for path in seen)
