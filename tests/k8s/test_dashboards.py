"""Dashboards as Grafana's own linter wants them, and as a reader does: nothing lies over anything, every legend says something.

The rules are those of grafana/dashboard-linter (docs/rules), whose program is Go.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from itertools import combinations
from typing import Any

import promql_parser
import pytest
import yaml

from deploy.observe import documents
from deploy.observe.alerts import ALERTS
from deploy.observe.dashboards import dashboards
from deploy.observe.panels import DATASOURCE
from deploy.observe.render import FOLDER
from deploy.rooms import ROOMS
from tests.k8s import promql

MODELS = {
    path.removeprefix(f"{FOLDER}/dashboards/"): json.loads(text)
    for path, text in documents().items()
    if path.endswith(".json")
}
# Of Grafana's list of units (packages/grafana-data, valueFormats).
UNITS = {"short", "s", "h", "bytes", "reqps", "ops", "percentunit", "currencyUSD"}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def panels(model: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in model["panels"] if panel["type"] != "row"]


def expressions(model: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels(model) for target in panel["targets"]]


@every_model
def test_variables(model: dict[str, Any]) -> None:
    """template-datasource, -job, -instance, -label-promql, -on-time-change-reload, uneditable."""
    assert model["editable"] is False
    source, *others = model["templating"]["list"]
    assert (source["type"], source["name"], source["label"], source["query"]) == (
        "datasource", "datasource", "Data source", "prometheus",
    )  # fmt: skip
    assert [variable["name"] for variable in others] == ["job", "instance"]
    for variable in others:
        assert variable["label"] == variable["name"] and variable["datasource"] == DATASOURCE
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
        assert variable["refresh"] == 2
        selector = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        assert selector is not None and selector[2] == variable["name"]
        assert isinstance(promql_parser.parse(promql.plain(selector[1])), promql_parser.VectorSelector)


@every_model
def test_panels(model: dict[str, Any]) -> None:
    """panel-datasource, panel-title-description, panel-units."""
    for panel in panels(model):
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["datasource"] == DATASOURCE
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    titles = [panel["title"] for panel in panels(model)]
    assert len(titles) == len(set(titles))


@every_model
def test_queries(model: dict[str, Any]) -> None:
    """target-promql, target-job, target-instance, target-rate-interval."""
    for expr in expressions(model):
        for selector in promql.asked(expr):
            assert {"job", "instance"} <= selector.labels, expr
        for node in promql.nodes(expr):
            if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "irate"):
                (matrix,) = node.args
                assert isinstance(matrix, promql_parser.MatrixSelector)
                assert matrix.range == timedelta(minutes=5) and "[$__rate_interval]" in expr and "[5m]" not in expr


@every_model
def test_legends_say_what_tells_lines_apart(model: dict[str, Any]) -> None:
    for panel in panels(model):
        for target in panel["targets"] if panel["type"] == "timeseries" else ():
            by = promql.grouped(target["expr"])
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= (by or promql.TARGET), target["expr"]
            # `job` and `reason` may be one only; the others tell lines apart.
            assert by - {"job", "le", "reason"} <= named, target["expr"]


@every_model
def test_nothing_lies_over_anything(model: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in model["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)
    numbers = [panel["id"] for panel in model["panels"]]
    assert len(numbers) == len(set(numbers))


def test_there_is_one_for_each_service_and_three_for_all() -> None:
    assert sorted(MODELS) == sorted(f"steward-{name}.json" for name in ("mesh", "money", "privacy", *ROOMS))
    assert all(model["uid"] + ".json" == name for name, model in MODELS.items())
    # A model is one value of a ConfigMap, of which etcd takes a megabyte.
    assert max(len(dashboard.text()) for dashboard in dashboards()) < 500_000


def test_the_component_names_every_file_that_it_brings() -> None:
    rendered = documents()
    kustomization = yaml.safe_load(rendered[f"{FOLDER}/kustomization.yaml"])
    assert kustomization["kind"] == "Component"
    files = [file for made in kustomization["configMapGenerator"] for file in made["files"]]
    named = {f"{FOLDER}/{file}" for file in [*files, *kustomization["resources"]]}
    # The PodMonitors come from the services' declarations.
    assert named - {f"{FOLDER}/podmonitors.yaml"} == set(rendered) - {f"{FOLDER}/kustomization.yaml"}
    assert all(made["options"]["labels"] == {"grafana_dashboard": "1"} for made in kustomization["configMapGenerator"])
    rules = yaml.safe_load(rendered[f"{FOLDER}/rules.yaml"])
    assert sum("alert" in rule for group in rules["spec"]["groups"] for rule in group["rules"]) == len(ALERTS)


def test_it_is_the_same_each_time() -> None:
    assert documents() == documents()
