"""What a Grafana dashboard is made of. Plain functions: no panel overlaps another, and the text is the same each time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
_SCHEMA = 39


def of(metric: str, *more: str) -> str:
    """A metric of the services and processes that the reader has chosen; `more`: further matchers."""
    matchers = ", ".join(('job=~"$job"', 'instance=~"$instance"', *more))
    return f"{metric}{{{matchers}}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: `queries` are (expression, legend). `unit` is Grafana's name of it; `bad_from`: a number is red from
    there on (`bad_below`: below it)."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    bad_from: float | None = None
    bad_below: float | None = None
    stacked: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns (of 24) and rows that it takes."""
        return (4, 4) if self.kind == "stat" else (8, 8)


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under one heading, left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page. `jobs`: a matcher for the services that it can show."""

    uid: str
    title: str
    description: str
    jobs: str
    sections: tuple[Section, ...]

    def render(self) -> dict[str, Any]:
        """Grafana's JSON model of it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["steward"],
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "schemaVersion": _SCHEMA,
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "utc",
            "links": [_LINKS],
            "annotations": {"list": []},
            "templating": {
                "list": [
                    {
                        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
                        "hide": 0, "refresh": 1,
                    },
                    _variable("job", f"label_values(steward_ready{{{self.jobs}}}, job)"),
                    _variable("instance", 'label_values(steward_ready{job=~"$job"}, instance)'),
                ]
            },
            "panels": list(_laid_out(self.sections)),
        }  # fmt: skip

    def text(self) -> str:
        """The same as text."""
        return json.dumps(self.render(), indent=2, sort_keys=True) + "\n"


_LINKS = {
    "title": "Steward", "type": "dashboards", "tags": ["steward"], "asDropdown": True, "includeVars": False,
    "keepTime": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": "",
}  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "label": name, "type": "query", "datasource": DATASOURCE, "query": query, "definition": query,
        "multi": True, "includeAll": True, "allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2, "sort": 1, "hide": 0,
    }  # fmt: skip


def _laid_out(sections: Iterable[Section]) -> Iterable[dict[str, Any]]:
    """Rows of panels, each as high as its highest, below one another."""
    number, y = 0, 0
    for section in sections:
        number += 1
        yield {
            "id": number, "type": "row", "title": section.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        }  # fmt: skip
        y, x, high = y + 1, 0, 0
        for panel in section.panels:
            w, h = panel.size
            if x + w > _WIDTH:
                x, y, high = 0, y + high, 0
            number += 1
            yield _panel(panel, number, {"x": x, "y": y, "w": w, "h": h})
            x, high = x + w, max(high, h)
        y += high


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "thresholds": _thresholds(panel)}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend, "range": True}
            for n, (expr, legend) in enumerate(panel.queries)
        ],
    }
    if panel.kind == "stat":
        return made | {
            "options": {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "colorMode": "value", "graphMode": "area", "textMode": "auto",
            }
        }  # fmt: skip
    made["fieldConfig"]["defaults"]["custom"] = {
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": 20 if panel.stacked else 0, "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none"},
        "thresholdsStyle": {"mode": "off" if panel.bad_from is None and panel.bad_below is None else "line"},
    }  # fmt: skip
    return made | {
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "red" if panel.bad_below is not None else "green", "value": None}]
    if panel.bad_below is not None:
        steps.append({"color": "green", "value": panel.bad_below})
    if panel.bad_from is not None:
        steps.append({"color": "red", "value": panel.bad_from})
    return {"mode": "absolute", "steps": steps}
