import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.config import Config, ConfigError, OutputConfig, StateConfig, load_config
from daemon.settings.values import alarm_rate_of
from deploy.backends.protocol import AUTO, BACKENDS
from deploy.model.document import DocumentError

MINIMAL = """\
version: 1
model: {path: model.pt2}
sensors: {front: {}}
input: {bind: ["ipc:///run/recald/frames"]}
output: {bind: "tcp://127.0.0.1:5556"}
"""


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "recald.yaml"
        path.write_text(text)
        return load_config(path)

    return load


@pytest.fixture
def problems(load):
    def problems(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text)
        return caught.value.problems

    return problems


def changed(**sections: str) -> str:
    lines = dict(line.split(": ", 1) for line in MINIMAL.splitlines()) | sections
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def test_the_smallest_file_gets_the_defaults(load, tmp_path):
    config = load(MINIMAL)
    assert config.model.path == tmp_path / "model.pt2"
    assert (config.model.backend, config.model.sha256, config.allow_remote) == ("onnx", None, False)
    assert config.sensors["front"].sample_every == 1
    assert (config.input.pattern, config.input.max_frame_bytes, config.input.max_age) == (
        "sub",
        64 << 20,
        5.0,
    )
    assert (config.metrics.host, config.metrics.port) == ("127.0.0.1", 9748)
    assert config.control.endpoint == "ipc:///run/recald/control"
    assert (config.recalibrate.every, config.recalibrate.frames) == (3600, 512)
    assert (config.recalibrate.timeout, config.recalibrate.backoff) == (900, 60)
    assert (config.drift.window, config.drift.interval, config.drift.threshold) == (64, 1.0, 1.6)


@pytest.mark.parametrize(
    ("user", "environment", "directory"),
    [
        (0, {}, "/var/lib/recald"),
        (0, {"XDG_STATE_HOME": "/home/a/state"}, "/var/lib/recald"),
        (1000, {"STATE_DIRECTORY": "/var/lib/private/recald:/srv/b"}, "/var/lib/private/recald"),
        (1000, {"XDG_STATE_HOME": "/home/a/state"}, "/home/a/state/recald"),
        (1000, {"XDG_STATE_HOME": "relative"}, "/home/a/.local/state/recald"),
        (1000, {}, "/home/a/.local/state/recald"),
    ],
)
def test_state_is_kept_where_nobody_cleans(load, monkeypatch, user, environment, directory):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/a"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert load(MINIMAL).state.directory == Path(directory)


def test_a_user_without_a_home_is_told_to_name_a_folder(load, problems, monkeypatch):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError))
    (problem,) = problems(MINIMAL)
    assert problem.endswith("recald.yaml:1: this user has no home: set state.directory")
    with pytest.raises(ConfigError, match="this user has no home: set state.directory"):
        StateConfig()
    assert load(changed(state="{directory: /srv/state}")).state.directory == Path("/srv/state")


def test_a_relative_state_directory_starts_at_the_folder_of_the_file(load, tmp_path):
    assert load(changed(state="{directory: state}")).state.directory == tmp_path / "state"


def test_an_absolute_model_path_is_kept(load):
    assert load(changed(model="{path: /srv/model.pt2}")).model.path == Path("/srv/model.pt2")


def test_at_least_one_thread_computes_and_a_given_number_is_kept(load):
    assert load(MINIMAL).model.thread_count >= 1
    assert load(changed(model="{path: m, threads: 3}")).model.thread_count == 3


def test_backends_are_those_of_the_table(load):
    for backend in (*BACKENDS, AUTO):
        assert load(changed(model=f"{{path: m, backend: {backend}}}")).model.backend == backend


def test_a_sensor_without_settings_may_be_left_empty(load):
    assert load(changed(sensors="\n  front:\n  rear: {sample_every: 3}")).sensors["rear"].sample_every == 3


def test_five_mistakes_are_named_at_once_with_their_lines(problems):
    messages = problems(
        """\
version: 1
model: {path: model.pt2, threads: many}
sensors:
  front: {}
  front: {}
input:
  bind: ["tcp://0.0.0.0:5555"]
  max_age: 5 seconds
  patern: sub
output: {bind: "ipc://results"}
"""
    )
    places = [(2, "model.threads"), (5, "sensors.front"), (7, "input.bind.0"), (8, "input.max_age")]
    assert len(messages) == 5
    for problem, (line, key) in zip(messages, [*places, (9, "input.patern")], strict=True):
        assert f"recald.yaml:{line}: {key}: " in problem
    assert "twice" in messages[1]
    assert "allow_remote" in messages[2]
    assert "30s" in messages[3]
    assert "pattern" in messages[4]


def test_a_config_error_is_a_document_error(problems):
    assert issubclass(ConfigError, DocumentError)
    assert problems("")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("2", 2), ("2.5", 2.5)],
)
def test_durations(load, text, seconds):
    assert load(changed(drift=f"{{hold: {text}}}")).drift.hold == seconds


@pytest.mark.parametrize(
    "text", ["5 s", "-5s", "1d", "s", "1h30m", "true", "[1]", ".inf", ".nan", "9" * 400, "9" * 400 + "h"]
)
def test_what_is_no_duration_is_refused(problems, text):
    (problem,) = problems(changed(drift=f"{{interval: {text}}}"))
    assert "drift.interval" in problem


NUMBERS = {
    "model": {"threads": (1, 256)},
    "input": {"max_frame_bytes": (65536, 1 << 30), "max_age": (0.01, 3600)},
    "metrics": {"port": (0, 65535)},
    "drift": {
        "window": (8, 100_000),
        "interval": (0.05, 3600),
        "hold": (0, 86400),
        "threshold": (0.001, 1000000),
    },
    "recalibrate": {
        "frames": (128, 10_000),
        "every": (1, 31_536_000),
        "timeout": (1, 86400),
        "backoff": (0, 86400),
        "keep_frames": (0, 64),
        "keep_frames_mib": (1, 65_536),
    },
}
BASE = {"model": "path: m, ", "input": "bind: ['ipc://f'], "}
BOUNDS = [(section, key, *bounds) for section, keys in NUMBERS.items() for key, bounds in keys.items()]


@pytest.mark.parametrize(("section", "key", "low", "high"), BOUNDS)
def test_every_number_has_bounds(load, problems, section, key, low, high):
    def text(value: float) -> str:
        return changed(**{section: f"{{{BASE.get(section, '')}{key}: {value}}}"})

    for value in (low, high):
        assert getattr(getattr(load(text(value)), section), key) == value
    for value in (low - 1, high + 1):
        (problem,) = problems(text(value))
        assert f"{section}.{key}: " in problem


def test_sample_every_has_bounds(problems):
    for value in (0, 1_000_001, "true", "1.5"):
        (problem,) = problems(changed(sensors=f"{{front: {{sample_every: {value}}}}}"))
        assert "sensors.front.sample_every" in problem


def test_a_mix_of_classes_adds_up_to_one(load):
    mix = load(changed(sensors="{front: {class_mix: {cat: 0.61, 1: 0.4}}}")).sensors["front"].class_mix
    assert mix == pytest.approx({"cat": 0.61 / 1.01, "1": 0.4 / 1.01}) and sum(mix.values()) == pytest.approx(1)
    assert load(changed(sensors="{front: {}}")).sensors["front"].class_mix is None


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("{cat: 0.6, dog: 0.3}", "the shares add up to 0.9: they must add up to 1"),
        ("{}", "expected a share for each class, such as {cat: 0.7, dog: 0.3}"),
        ("[0.6, 0.4]", "expected a share for each class"),
        ("{cat: 1.2, dog: -0.2}", "the share of 'cat' must be a number from 0 to 1"),
        ("{cat: .nan}", "the share of 'cat' must be a number from 0 to 1"),
        ("{cat: true}", "the share of 'cat' must be a number from 0 to 1"),
        ("{cat: '1'}", "the share of 'cat' must be a number from 0 to 1"),
    ],
)
def test_a_mix_of_classes_that_makes_no_sense_is_refused(problems, mix, said):
    (problem,) = problems(changed(sensors=f"{{front: {{class_mix: {mix}}}}}"))
    assert "sensors.front.class_mix: " in problem and said in problem


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a b", "ä", "-x", "x" * 65, "unknown", '""'])
def test_sensor_ids_that_could_not_be_folders_or_labels_are_refused(problems, name):
    (problem,) = problems(changed(sensors=f"{{{name}: {{}}}}"))
    assert "is no sensor id" in problem


def test_at_least_one_sensor_and_one_endpoint_are_needed(problems):
    sensors, endpoint = problems(changed(sensors="{}", input="{}"))
    assert "sensors" in sensors
    assert "input: no endpoint" in endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:5555",
        "tcp://127.9.9.9:1",
        "tcp://localhost:65535",
        "tcp://127.0.0.1:*",
        "ipc://relative",
    ],
)
def test_local_endpoints_are_accepted(load, endpoint):
    assert load(changed(input=f'{{bind: ["{endpoint}"]}}')).input.bind == [endpoint]


REMOTE = [
    "tcp://*:5555",
    "tcp://0.0.0.0:5555",
    "tcp://192.168.1.4:5555",
    "tcp://camera.local:5555",
    "tcp://eth0:1",
]


@pytest.mark.parametrize("endpoint", REMOTE)
def test_remote_endpoints_need_permission_and_the_message_says_why(load, problems, endpoint):
    output = f"{endpoint}1".replace("55551", "5556")  # another port
    text = changed(input=f'{{bind: ["{endpoint}"]}}', output=f'{{bind: "{output}"}}')
    messages = problems(text)
    assert len(messages) == 2
    assert all("neither encrypted nor authenticated" in problem for problem in messages)
    assert load(text + "allow_remote: true\n").output.bind == output


def test_permission_for_one_file_does_not_outlast_it(load):
    load(changed(output='{bind: "tcp://*:5555"}', allow_remote="true"))
    with pytest.raises(ValueError, match="allow_remote"):
        OutputConfig(bind="tcp://*:5555")


def test_a_remote_metrics_host_needs_permission(load, problems):
    (problem,) = problems(changed(metrics="{host: 0.0.0.0}"))
    assert "metrics.host" in problem
    assert load(changed(metrics="{host: 0.0.0.0}", allow_remote="true")).metrics.host == "0.0.0.0"


@pytest.mark.parametrize(
    "endpoint",
    [
        "inproc://frames",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:http",
        "tcp://:5555",
        "tcp://[::1]:5555",
        "tcp://a;b:5555",
        "ipc://",
        "ipc://*",
        "ipc://@abstract",
        "ipc://" + "x" * 108,
        "udp://127.0.0.1:5555",
        "/run/frames",
        "",
    ],
)
def test_other_endpoints_are_refused_even_with_permission(problems, endpoint):
    (problem,) = problems(changed(input=f'{{bind: ["{endpoint}"]}}', allow_remote="true"))
    assert "input.bind.0" in problem


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "tcp://*:5555"])
def test_one_cannot_connect_to_anywhere(problems, endpoint):
    (problem,) = problems(changed(input=f'{{connect: ["{endpoint}"]}}', allow_remote="true"))
    assert "input.connect.0" in problem


def test_the_control_endpoint_must_be_a_file(problems):
    (problem,) = problems(changed(control='{endpoint: "tcp://127.0.0.1:5557"}'))
    assert "control.endpoint" in problem


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ("{certificate: c.pem}", "certificate and certificate_key belong together"),
        ("{certificate_key: k.pem}", "certificate and certificate_key belong together"),
        ("{client_ca: ca.pem}", "client_ca is of no use without certificate"),
        ("{page: false, show_frames: true}", "show_frames is of no use without page"),
        ('{names: ["a name"]}', "metrics.names"),
        ('{names: ["http://device"]}', "metrics.names"),
        ("{page: 1}", "metrics.page"),
    ],
)
def test_what_makes_no_sense_for_the_metrics_port_is_refused(problems, metrics, named):
    (problem,) = problems(changed(metrics=metrics))
    assert named in problem


def test_the_files_of_the_certificate_start_at_the_folder_of_the_file(load, tmp_path):
    config = load(changed(metrics="{certificate: tls/c.pem, certificate_key: /k.pem, client_ca: ca.pem}"))
    files = config.metrics.certificate, config.metrics.certificate_key, config.metrics.client_ca
    assert [path.is_absolute() for path in files] == [True] * 3 and files[0].parts[-2:] == ("tls", "c.pem")
    assert str(files[1]) == "/k.pem"


CLASHES = [  # input, output, metrics, control, and which of them is named
    ('{bind: ["ipc://f", "ipc://./f"]}', "ipc://r", 0, "ipc://c", "input.bind.1: .* as input.bind.0"),
    ('{bind: ["ipc://f"], connect: ["ipc://f"]}', "ipc://r", 0, "ipc://c", "input.connect.0: .* as input.bind.0"),
    ('{connect: ["ipc://r"]}', "ipc://r", 0, "ipc://c", "output.bind: .* as input.connect.0"),
    ('{bind: ["ipc://f"]}', "ipc://c", 0, "ipc://a/../c", "control.endpoint: .* as output.bind"),
    ('{bind: ["tcp://localhost:5550"]}', "tcp://127.0.0.1:5550", 0, "ipc://c", "output.bind: .* as input.bind.0"),
    ('{bind: ["tcp://*:5550"]}', "tcp://127.0.0.1:05550", 0, "ipc://c", "output.bind: .* as input.bind.0"),
    ('{bind: ["tcp://127.0.0.1:9748"]}', "ipc://r", 9748, "ipc://c", "metrics.port: .* as input.bind.0"),
    ('{connect: ["tcp://127.0.0.1:5551"]}', "tcp://*:5551", 0, "ipc://c", "output.bind: .* as input.connect.0"),
]


@pytest.mark.parametrize(("given", "output", "port", "control", "named"), CLASHES)
def test_two_sockets_at_one_place_are_refused_with_the_line_of_the_second(
    problems, given, output, port, control, named
):
    text = changed(input=given, output=f'{{bind: "{output}"}}', metrics=f"{{port: {port}}}")
    (problem,) = problems(text + f'control: {{endpoint: "{control}"}}\nallow_remote: true\n')
    line = {"input": 4, "output": 5, "metrics": 6, "control": 7}[named.partition(".")[0]]
    assert re.search(f"recald.yaml:{line}: {named}, .*: give each its own$", problem)


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ('{bind: ["tcp://127.0.0.1:*", "tcp://127.0.0.1:*"]}', "tcp://127.0.0.1:*"),
        ('{bind: ["tcp://127.0.0.1:5550"]}', "tcp://127.0.0.2:5550"),
        ('{connect: ["tcp://192.168.1.5:5550", "tcp://192.168.1.6:5550"]}', "tcp://*:5550"),
    ],
)
def test_sockets_at_different_places_are_accepted(load, given, output):
    text = changed(input=given, output=f'{{bind: "{output}"}}') + "allow_remote: true\n"
    assert load(text).output.bind == output


ANYTHING = ["yes", "3", "-1", "1e400", "[]", "[[]]", "{}", "{a: b}", "~", '""', "5 weeks", "!!float 1.5", "true"]
PYDANTIC_WORDS = re.compile(r"Input|[Ee]xtra|should|valid |pars|type=|Literal|instance|Value error|strict")
KEYS_OF_FILE = list(Config.model_fields) + [
    f"{section}.{key}"
    for section, field in Config.model_fields.items()
    for key in getattr(field.annotation, "model_fields", {})
]


@pytest.mark.parametrize("key", KEYS_OF_FILE)
def test_whatever_stands_at_a_key_the_message_is_in_plain_words(tmp_path, key):
    path = tmp_path / "recald.yaml"
    section, _, inner = key.partition(".")
    for value in ANYTHING:
        path.write_text(changed(**{section: f"{{{inner}: {value}}}" if inner else value}))
        try:
            load_config(path)
        except ConfigError as error:
            for problem in error.problems:
                assert not PYDANTIC_WORDS.search(problem), problem


def test_a_duration_is_shown_as_it_was_written_and_its_bound_has_a_unit(problems):
    (problem,) = problems(changed(recalibrate="{every: 500ms}"))
    assert problem.endswith("recalibrate.every: '500ms' cannot be used: write 1 s or more")


@settings(deadline=None, max_examples=50)
@given(st.ip_addresses(v=4))
def test_only_loopback_addresses_are_local(address):
    try:
        OutputConfig(bind=f"tcp://{address}:5555")
    except ValueError:
        assert not ipaddress.ip_address(address).is_loopback
    else:
        assert ipaddress.ip_address(address).is_loopback


@pytest.mark.parametrize("text", ["2 per 1m", "1 per 59s", "0 per 1d", "1 per day", "1", "1 per -3d", "one per 1d"])
def test_a_rate_of_false_alarms_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match="such as 1 per 90d"):
        alarm_rate_of(text)


def test_a_rate_of_false_alarms_is_read_and_written_alike():
    rate = alarm_rate_of("3 per 90d")
    assert rate.interval == 30 * 86_400 and str(rate) == "3 per 90d" and alarm_rate_of(rate) is rate
