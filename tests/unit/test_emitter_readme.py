"""The emitter's README: its example runs, and its table has the defaults of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import shared.emitter
from shared.contract.events import Opened
from shared.emitter import Emitter
from tests.support.platform import EMITTER

README = (EMITTER / "README.md").read_text(encoding="utf-8")


def test_its_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = _code(0)
    code = code.replace("from steward", f"from {shared.emitter.__name__}").replace("/var/spool/steward", str(tmp_path))
    code = code.replace('"kafka:9092"', '"127.0.0.1:1", exit_seconds=0')
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "1\n", "one event is pending"


def test_its_sealed_field_is_what_the_contract_takes() -> None:
    names: dict[str, Any] = {}
    exec(compile(_code(1).replace("from steward", f"from {shared.emitter.__name__}"), "README.md", "exec"), names)
    Opened.model_validate(names["data"])
    assert "ada" not in str(names["data"])
    with pytest.raises(ValueError):
        Opened.model_validate(names["data"] | {"address": "ada@example.com"})


def _code(n: int) -> str:
    return str(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[n])


def test_its_defaults_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", README, re.MULTILINE)
    told = {name: eval(default) if default else inspect.Parameter.empty for name, default in rows}
    parameters = inspect.signature(Emitter).parameters
    assert told == {name: parameter.default for name, parameter in parameters.items()}
