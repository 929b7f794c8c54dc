"""A builder that dies costs a wait, and the next one begins by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daemon.model.engine_build import BuilderDied, EngineBuildError
from daemon.model.engine_supply import BUILD_RETRY_S, EngineSupply


class Build:
    def __init__(self, outcome: Any) -> None:
        self.outcome, self.done, self.closed = outcome, False, False
        self.progress = "compiling"

    def take(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        self.closed = True


def supply(*outcomes: Any) -> tuple[EngineSupply, list[Build], list[tuple[str, dict[str, Any]]]]:
    builds: list[Build] = []
    records: list[tuple[str, dict[str, Any]]] = []

    def begin(*_: object) -> Any:
        builds.append(Build(outcomes[len(builds)]))
        if isinstance(builds[-1].outcome, BlockingIOError):
            raise builds[-1].outcome
        return builds[-1]

    model: Any = SimpleNamespace(served_by="cuda", backend=SimpleNamespace(name="tensorrt"))
    config: Any = None
    return EngineSupply(config, model, lambda _, *record: records.append(record), begin), builds, records


def test_the_engine_is_taken_once_it_is_built():
    supplied, (build,), records = supply("engine")
    assert supplied.take(0.0) is None and supplied.progress == "compiling"
    build.done = True
    assert supplied.take(1.0) == "engine" and records == []


def test_after_a_builder_that_died_the_next_one_begins_later():
    supplied, builds, records = supply(BuilderDied("ended with -9"), "engine")
    builds[0].done = True
    assert supplied.take(0.0) is None and supplied.progress == "" and builds[0].closed
    assert records == [("not compiled", {"backend": "tensorrt", "reason": "ended with -9"})]
    assert supplied.take(BUILD_RETRY_S - 1) is None and len(builds) == 1
    assert supplied.take(BUILD_RETRY_S) is None and len(builds) == 2
    builds[1].done = True
    assert supplied.take(BUILD_RETRY_S + 1) == "engine"


def test_a_builder_that_cannot_be_started_is_tried_again_later():
    supplied, builds, records = supply(BuilderDied("ended"), BlockingIOError(11, "no process"), "engine")
    builds[0].done = True
    assert supplied.take(0.0) is None
    assert supplied.take(BUILD_RETRY_S) is None and supplied.progress == "" and "no process" in records[-1][1]["reason"]
    assert supplied.take(2 * BUILD_RETRY_S - 1) is None and len(builds) == 2
    assert supplied.take(2 * BUILD_RETRY_S) is None and len(builds) == 3 and supplied.progress == "compiling"


def test_a_model_that_cannot_be_built_and_a_gpu_that_is_lost_are_not_tried_again():
    for error in (EngineBuildError("no kernel"), OSError("the GPU failed")):
        supplied, (build,), _ = supply(error)
        build.done = True
        with pytest.raises(type(error), match=str(error)):
            supplied.take(0.0)


def test_a_stop_ends_the_build():
    supplied, (build,), _ = supply("engine")
    supplied.close()
    assert build.closed
