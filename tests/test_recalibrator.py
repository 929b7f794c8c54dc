"""When a sensor collects, fits and waits: decisions from plain values and a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import RecalibrateConfig
from daemon.recalibrator import AT_REST, IN_WORK, Collect, Fit, Recalibrator, State

CONFIG = RecalibrateConfig(every=1000.0, frames=64, backoff=10.0)
RESULTS = ("accepted", "factory", "rejected", "unneeded", "failed", "timeout")


@pytest.fixture
def machine():
    return Recalibrator(CONFIG, now=0.0)


def step(machine, now, alarm=False, collected=0, fitter_free=True):
    return machine.step(now, alarm=alarm, collected=collected, fitter_free=fitter_free)


def begin_fit(machine, now):
    assert step(machine, now, alarm=True) == Collect(afresh=True)
    assert step(machine, now, alarm=True, collected=64) == Fit("drift")


def test_nothing_happens_without_a_reason(machine):
    assert step(machine, 1.0) is None
    assert machine.state is State.FACTORY


def test_a_fit_waits_for_frames_and_for_the_fitter(machine):
    assert step(machine, 1.0, alarm=True) == Collect(afresh=True)
    assert step(machine, 2.0, collected=32) is None
    assert machine.progress == 0.5
    assert step(machine, 3.0, collected=64, fitter_free=False) is None
    assert machine.state is State.COLLECTING
    assert step(machine, 4.0, collected=64) == Fit("drift")
    assert machine.state is State.FITTING


def test_the_timer_fires_once_in_its_period(machine):
    assert step(machine, 999.0) is None
    assert step(machine, 1000.0) == Collect(afresh=False)
    assert step(machine, 1000.0, collected=64) == Fit("timer")
    machine.finished("unneeded", 1001.0)
    assert step(machine, 2000.0) is None
    assert step(machine, 2001.0) == Collect(afresh=False)


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ("accepted", State.ACTIVE),
        ("factory", State.FACTORY),
        ("unneeded", State.FACTORY),
        ("rejected", State.FACTORY),
        ("failed", State.FAILED),
        ("timeout", State.FAILED),
    ],
)
def test_how_a_fit_ends(machine, result, state):
    begin_fit(machine, 1.0)
    machine.finished(result, 2.0)
    assert machine.state is state


def test_the_factory_homogenizer_is_at_rest_again(machine):
    machine.finished("accepted", 1.0)
    machine.finished("factory", 2.0)
    assert machine.state is State.FACTORY


def test_back_off_doubles_and_the_operator_passes_it(machine):
    begin_fit(machine, 0.0)
    machine.finished("rejected", 0.0)
    assert step(machine, 9.0, alarm=True) is None
    begin_fit(machine, 10.0)
    machine.finished("failed", 10.0)
    assert step(machine, 29.0, alarm=True) is None
    assert machine.state is State.FAILED
    machine.request()
    assert step(machine, 29.0) == Collect(afresh=False)
    assert step(machine, 29.0, collected=64) == Fit("operator")


def test_back_off_stops_growing_after_six_doublings(machine):
    now = 0.0
    for _ in range(40):
        machine.finished("failed", now)
    assert step(machine, now + 639.0, alarm=True) is None
    assert step(machine, now + 640.0, alarm=True) == Collect(afresh=True)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.booleans(), st.integers(0, 80), st.booleans()),
            st.tuples(st.just("finished"), st.sampled_from(RESULTS)),
            st.tuples(st.just("request")),
            st.tuples(st.just("rolled_back"), st.booleans()),
            st.tuples(st.just("progressed"), st.sampled_from(State)),
        )
    )
)
def test_no_state_is_without_an_exit(events):
    machine, now = Recalibrator(CONFIG, now=0.0), 0.0
    for name, *values in events:
        now += 1.0
        if name == "step":
            alarm, collected, free = values
            decision = step(machine, now, alarm, collected, free)
            assert not isinstance(decision, Fit) or (free and collected >= CONFIG.frames)
        elif name == "finished":
            if machine.state in IN_WORK:
                machine.finished(values[0], now)
        elif name == "request":
            machine.request()
        elif name == "rolled_back":
            machine.rolled_back(values[0], now)
        else:
            before = machine.state
            machine.progressed(values[0], 0.5)
            assert before in IN_WORK or machine.state is before
        assert 0 <= machine.progress <= 1
    if machine.state in IN_WORK:
        machine.finished("rejected", now)
    if machine.state in AT_REST:
        machine.request()
        assert isinstance(step(machine, now), Collect)
    assert isinstance(step(machine, now, collected=CONFIG.frames), Fit)
