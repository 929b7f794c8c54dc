"""The demo's processes: a configuration that the daemon takes, errors that quote it, scrapes read by name and label."""

import pytest

from daemon.config import load_config
from daemon.demo.digits import DemoError
from daemon.demo.processes import DaemonProcess, RunFolder, Scrape, export, free_port, write_config
from deploy.files import digest_file


def test_the_configuration_is_one_the_daemon_takes(tmp_path):
    folder = RunFolder(tmp_path)
    write_config(folder, ["front", "rear"], 12345, frames=128)
    config = load_config(folder.config)
    assert list(config.sensors) == ["front", "rear"] and config.model.path == folder.model
    assert config.metrics.port == 12345 and config.recalibrate.frames == 128


@pytest.mark.process
def test_the_model_is_frozen_by_the_command(model, tmp_path):
    network, _ = model
    export(network, tmp_path / "model.pt2")
    assert len(digest_file(tmp_path / "model.pt2")) == 64
    with pytest.raises(DemoError, match="recald export failed with .*no function 'lenet'"):
        export(network._replace(builder="daemon.demo.networks:lenet"), tmp_path / "model.pt2")


@pytest.mark.process
def test_a_daemon_that_does_not_start_is_quoted(tmp_path):
    folder = RunFolder(tmp_path)
    port = free_port()
    write_config(folder, ["front"], port, frames=128)
    with DaemonProcess(folder.config, folder.log, port) as daemon:
        with pytest.raises(DemoError, match=r"^recald ended with \d+: .*model.pt2"):
            daemon.wait_until_serving()


def test_a_scrape_is_read_by_name_and_label():
    scrape = Scrape(
        "# TYPE recald_frames_dropped counter\n"
        'recald_frames_dropped_total{sensor="front",reason="superseded"} 3\n'
        'recald_frames_dropped_total{sensor="front",reason="stale"} 1\n'
        'recald_frames_dropped_total{sensor="rear",reason="superseded"} 5\n'
        "# TYPE recald_calibration_state gauge\n"
        'recald_calibration_state{sensor="front",state="factory"} 0\n'
        'recald_calibration_state{sensor="front",state="fitting"} 1\n'
    )
    assert scrape.total("recald_frames_dropped_total", sensor="front") == 4
    assert scrape.total("recald_frames_dropped_total", sensor="front", reason="superseded") == 3
    assert scrape.total("recald_swaps_total") == 0
    assert scrape.state("front") == "fitting" and scrape.state("rear") == "unknown"
