"""Writes the dashboard as Grafana reads it: `python -m deploy.monitoring.dashboard.build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from deploy.monitoring.dashboard.camera import camera
from deploy.monitoring.dashboard.device import device
from deploy.monitoring.dashboard.fleet import fleet
from deploy.monitoring.dashboard.parts import CAMERA, DATASOURCE, DEVICE, FLEET, series

FILE = Path(__file__).parents[1] / "grafana" / "dashboards" / "recald.json"
UID = "recald"  # of the dashboard: links to it contain it
SCHEMA = 38  # of Grafana 10.1; later versions convert it when they load it
ROWS = {"Fleet": fleet, "Camera $sensor on $instance": camera, "Device $instance": device}
MARK_STEP = "15s"  # Grafana's own 60 s would lose a swap that is rolled back within a minute
HOMOGENIZER_IS = series("recald_homogenizer_info", *CAMERA)
FIT_IS = series("recald_last_fit_info", *CAMERA)


class Mark(NamedTuple):
    """A mark in all panels: its colour, what it says, and the series with label `version` that it is told of."""

    colour: str
    text: str
    told_of: str


MARKS = {
    "swaps": Mark("blue", "swap: {{short}} serves", HOMOGENIZER_IS),
    "fits": Mark("purple", "recalibration {{result}} {{short}}", FIT_IS),
}


def main() -> None:
    """Write the file, and print its path."""
    FILE.write_text(dashboard_text())
    print(FILE)


def dashboard_text() -> str:
    """Return the content of the file."""
    content = json.loads(json.dumps(_dashboard().build(), cls=JSONEncoder))
    for annotation in content["annotations"]["list"]:  # the SDK does not know these keys of the Prometheus data source
        annotation |= {"useValueForTime": True, "step": MARK_STEP, "titleFormat": MARKS[annotation["name"]].text}
    return json.dumps(content | {"id": None, "schemaVersion": SCHEMA}, indent=1) + "\n"


def _dashboard() -> dashboard.Dashboard:
    built = dashboard.Dashboard("recald").uid(UID).tags(["recald"]).timezone("browser").readonly()
    built = built.description(
        "Cameras behind recald: what drifts, what was done about it, and what waits for a person."
    )
    built = built.time("now-3h", "now").refresh("15s").tooltip(models.DashboardCursorSync.CROSSHAIR)
    for variable in _variables():
        built = built.with_variable(variable)
    for name, mark in MARKS.items():
        built = built.annotation(_annotation(name, mark))
    return _with_panels(built)


def _with_panels(built: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add every row and its panels, numbered in their order."""
    number = 1
    for title, panels in ROWS.items():
        built, number = built.with_row(dashboard.Row(title).id(number)), number + 1
        for panel in panels():
            built, number = built.with_panel(panel.id(number)), number + 1
    return built


def _variables() -> list[Any]:
    source = dashboard.DatasourceVariable("datasource").label("data source").type("prometheus")
    job = _choice("job", "job", f"label_values({series('recald_build_info')}, job)").multi(True).include_all(True)
    job = job.current(models.VariableOption(text="All", value="$__all"))
    instance = _choice("instance", "device", f"label_values({series('recald_build_info', *FLEET)}, instance)")
    sensor = _choice("sensor", "camera", f"label_values({series('recald_calibration_state', *DEVICE)}, sensor)")
    return [source, job, instance, sensor]


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(DATASOURCE)
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.sort(models.VariableSort.ALPHABETICAL_ASC)


def _annotation(name: str, mark: Mark) -> dashboard.AnnotationQuery:
    """Mark the moments that a metric tells: its value is the time of the event, which Grafana needs in ms.

    What it is told of has the value 1 and changes with that time. Of a version the first letters are shown.
    """
    at = series(f"recald_last_{name.removesuffix('s')}_timestamp_seconds", *CAMERA)
    short = f'label_replace({mark.told_of}, "short", "$1", "version", "(.{{0,12}}).*")'
    expression = f"1000 * {at} * on (job, instance, sensor) group_left (short, result) {short}"
    return dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).icon_color(mark.colour).expr(expression)


if __name__ == "__main__":
    main()
