"""The panels of the dashboard as Grafana asks for them: its file, with the variables substituted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "grafana" / "dashboards" / "recald.json"


class PanelQuery(NamedTuple):
    """An expression of a panel, what its curves are called, and the letter that Grafana gives it."""

    expression: str
    legend: str
    letter: str


class ShownPanel(NamedTuple):
    """A panel: what it says of itself, and its place (x, y, width, height) on the grid of 24 columns."""

    title: str
    kind: str
    unit: str
    description: str
    queries: list[PanelQuery]
    place: tuple[int, int, int, int]
    overrides: dict[str, dict[str, Any]]  # by the legend of a curve, how it is drawn
    options: dict[str, Any]
    stacked: bool
    steps: list[tuple[float, str]]  # from which value on it has which colour, rising
    columns: dict[str, str]  # of a table: the titles of its fields, in their order

    @property
    def base_colour(self) -> str:
        """The colour of values that no step is below."""
        return self.colour_of(float("inf"))

    def colour_of(self, value: float) -> str:
        """Return the colour of a value."""
        return next((colour for least, colour in reversed(self.steps) if value >= least), "green")


def load_dashboard(path: Path = FILE) -> dict[str, Any]:
    """Return the file's content."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def shown_panels(dashboard: Mapping[str, Any], variables: Mapping[str, str]) -> list[ShownPanel]:
    """Return all panels, rows included: their kind is "row". variables: their values by name."""
    return [_shown(panel, variables) for panel in dashboard["panels"]]


def marks(dashboard: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return expression and colour of each kind of annotation, by its name."""
    annotations = dashboard["annotations"]["list"]
    return {each["name"]: (substituted(each["expr"], variables), each["iconColor"]) for each in annotations}


def substituted(text: str, variables: Mapping[str, str]) -> str:
    """Put the values in the place of $name. Raises KeyError for a variable that has none."""
    return re.sub(r"\$(\w+)", lambda found: variables[found[1]] if not found[1].isdigit() else found[0], text)


def _shown(panel: dict[str, Any], variables: Mapping[str, str]) -> ShownPanel:
    targets, field = panel.get("targets", []), panel.get("fieldConfig", {})
    defaults: dict[str, Any] = field.get("defaults", {})
    queries = [PanelQuery(substituted(t["expr"], variables), t.get("legendFormat", ""), t["refId"]) for t in targets]
    grid, steps = panel["gridPos"], defaults.get("thresholds", {}).get("steps", [])
    return ShownPanel(
        substituted(panel["title"], variables),
        panel["type"],
        defaults.get("unit", ""),
        panel.get("description", ""),
        queries,
        (grid["x"], grid["y"], grid["w"], grid["h"]),
        {rule["matcher"]["options"]: _properties(rule) for rule in field.get("overrides", [])},
        panel.get("options", {}),
        "stacking" in defaults.get("custom", {}),
        [(float("-inf") if step["value"] is None else step["value"], step["color"]) for step in steps],
        next((t["options"]["renameByName"] for t in panel.get("transformations", []) if t["id"] == "organize"), {}),
    )


def _properties(override: dict[str, Any]) -> dict[str, Any]:
    return {each["id"].removeprefix("custom."): each["value"] for each in override["properties"]}


def named(legend: str, labels: Mapping[str, str]) -> str:
    """Return what a curve is called: the legend with the values of its labels."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend)
