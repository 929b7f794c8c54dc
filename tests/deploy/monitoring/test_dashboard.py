"""The checked-in dashboard is what the code builds, its panels fit the grid, and Grafana finds it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import yaml
from places import ROOT
from prometheus_tools import MONITORING, RULES

from bench.dashboard.panels import FILE, load_dashboard, shown_panels
from calibrate.baseline.run_length import ALLOWANCE

SOURCE = "${datasource}"
PROVIDER_KEYS = {"name", "type", "orgId", "folder", "folderUid"}
PROVIDER_KEYS |= {"disableDeletion", "updateIntervalSeconds", "allowUiUpdates", "editable"}
SOURCE_KEYS = {"name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth", "basicAuthUser"}
SOURCE_KEYS |= {"withCredentials", "isDefault", "jsonData", "secureJsonData", "version", "editable"}
PROMETHEUS_KEYS = {"httpMethod", "timeInterval", "queryTimeout", "prometheusType", "prometheusVersion"}
PROMETHEUS_KEYS |= {"manageAlerts", "cacheLevel", "incrementalQuerying", "exemplarTraceIdDestinations"}
PROMETHEUS_KEYS |= {"tlsAuth", "tlsAuthWithCACert", "tlsSkipVerify", "serverName"}
SECRET_KEYS = {"basicAuthPassword", "tlsCACert", "tlsClientCert", "tlsClientKey"}
VARIABLES = dict.fromkeys(("job", "instance", "sensor", "datasource", "__rate_interval"), "x")
PANELS = shown_panels(load_dashboard(), VARIABLES)


def test_the_file_is_what_the_code_builds():
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from deploy.monitoring.dashboard import build

    assert build.FILE == FILE
    assert FILE.read_text() == build.dashboard_text(), f"{FILE.name} is out of date: run `make docs`"


def test_every_panel_says_what_it_shows():
    shown = [panel for panel in PANELS if panel.kind != "row"]
    assert [p.title for p in shown if not (p.title and p.unit and p.description.endswith(".") and p.queries)] == []
    assert len({panel.title for panel in shown}) == len(shown) >= 20


def test_no_two_panels_overlap_and_each_line_is_full():
    cells = [
        (column, line)
        for x, y, width, height in (panel.place for panel in PANELS)
        for column in range(x, x + width)
        for line in range(y, y + height)
    ]
    assert len(cells) == len(set(cells)) == 24 * (1 + max(line for _, line in cells))


def test_rows_are_fleet_camera_device():
    rows = [panel for panel in PANELS if panel.kind == "row"]
    assert [row.title.split()[0] for row in rows] == ["Fleet", "Camera", "Device"]
    assert all(one.place[1] < other.place[1] for one, other in pairwise(rows))


def test_variables_depend_on_each_other_in_their_order():
    variables = load_dashboard()["templating"]["list"]
    assert [variable["name"] for variable in variables] == ["datasource", "job", "instance", "sensor"]
    for place, variable in enumerate(variables):
        used = set(re.findall(r"\$(\w+)", str(variable["query"])))
        assert used <= {before["name"] for before in variables[:place]}


def test_a_curve_that_is_drawn_in_its_own_way_exists():
    """Grafana finds it by its name in the legend, or by a value of the label that the legend consists of."""
    for panel in PANELS:
        legends = {query.legend for query in panel.queries}
        open_labels = any(legend.startswith("{{") for legend in legends)
        assert not [name for name in panel.overrides if name not in legends and not open_labels], panel.title


def test_a_runbook_names_panels_that_exist():
    titles = {panel.title for panel in PANELS}
    pages = [*(ROOT / "docs" / "runbooks").glob("*.md"), ROOT / "docs" / "monitoring.md"]
    named = {name for page in pages for name in re.findall(r"(?<!\*)\*([A-Z][a-z ]+)\*(?!\*)", page.read_text())}
    assert len(named) >= 5 and named <= titles


def test_every_panel_has_what_grafanas_schema_demands():
    panels = load_dashboard()["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    for panel in panels:
        if panel["type"] != "row":
            assert isinstance(panel["options"], dict) and isinstance(panel["fieldConfig"]["defaults"], dict), panel[
                "title"
            ]
            letters = [target["refId"] for target in panel["targets"]]
            assert len(letters) == len(set(letters)) and {t["datasource"]["uid"] for t in panel["targets"]} == {SOURCE}


def test_marks_are_asked_of_the_chosen_data_source_and_say_what_they_mark():
    marks = load_dashboard()["annotations"]["list"]
    scraped = yaml.safe_load((RULES / "prometheus.yml").read_text())["global"]
    assert {mark["name"] for mark in marks} == {"swaps", "fits"}
    for mark in marks:
        assert mark["datasource"] == {"type": "prometheus", "uid": SOURCE}
        assert mark["enable"] and mark["useValueForTime"] and mark["step"] == scraped["scrape_interval"]
        named = set(re.findall(r"\{\{(\w+)\}\}", mark["titleFormat"]))
        (kept,) = re.findall(r"group_left \(([\w, ]+)\)", mark["expr"])
        assert named and named <= {*kept.split(", ")}, "Grafana would print the name in place of the label"


def test_the_provisioning_has_only_keys_that_grafana_knows():
    """Grafana ignores others without a word."""
    provisioning = MONITORING / "grafana" / "provisioning"
    dashboards = yaml.safe_load((provisioning / "dashboards" / "recald.yaml").read_text())
    assert dashboards["apiVersion"] == 1 and set(dashboards) == {"apiVersion", "providers"}
    for provider in dashboards["providers"]:
        assert provider["type"] == "file" and set(provider["options"]) <= {"path", "foldersFromFilesStructure"}
        assert set(provider) - {"options"} <= PROVIDER_KEYS
    for path in (provisioning / "datasources" / "recald.yaml", MONITORING / "grafana" / "central-source.yaml"):
        sources = yaml.safe_load(path.read_text())
        assert sources["apiVersion"] == 1 and set(sources) == {"apiVersion", "datasources"}
        for source in sources["datasources"]:
            assert set(source) <= SOURCE_KEYS and set(source["jsonData"]) <= PROMETHEUS_KEYS
            assert set(source.get("secureJsonData", ())) <= SECRET_KEYS


def test_grafana_looks_where_the_page_puts_the_dashboard():
    provisioning = MONITORING / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "recald.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "recald.yaml").read_text())["datasources"]
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    folder = provider["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in compose["grafana"]["volumes"]
    assert "deploy/monitoring/grafana/dashboards /etc/grafana/" in (ROOT / "docs" / "monitoring.md").read_text()
    assert folder == "/etc/grafana/dashboards" and source["type"] == "prometheus"
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in compose["prometheus"]["command"]
    assert all(
        (MONITORING / volume.split(":")[0]).exists()
        for s in compose.values()
        for volume in s["volumes"]
        if "./" in volume
    )


def test_the_evidence_line_is_that_of_the_alarm():
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from deploy.monitoring.dashboard.camera import EVIDENCE_LINE

    assert EVIDENCE_LINE == ALLOWANCE
