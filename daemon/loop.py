"""The daemon: frames in, results out, and between two frames whatever has become due."""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
import zmq
from prometheus_client import CollectorRegistry

from calibrate.scoring.drift import DriftDetector
from daemon import __version__
from daemon.config import Config
from daemon.frames.latency_monitor import LatencyMonitor
from daemon.frames.quality_filter import QualityFilter
from daemon.frames.reservoir import Reservoir
from daemon.frames.stall_detector import StallDetector
from daemon.metrics import Metrics, serve_metrics
from daemon.model.engine_build import EngineBuild
from daemon.model.served_model import Unservable, open_model
from daemon.operator.control import ControlServer
from daemon.operator.orders import Order, Orders
from daemon.recalibration.controller import Controller, Event
from daemon.recalibration.drift_monitor import DriftMonitor
from daemon.recalibration.envelope import open_envelope
from daemon.recalibration.job import JobRunner
from daemon.recalibration.restore import load_withdrawn, on_probation, restore, serving_since
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import StateMachine
from daemon.serving.intake import Intake
from daemon.serving.message import Frame, FrameError
from daemon.serving.results import Publisher
from daemon.serving.serve import FrameServer
from daemon.state.audit_writer import AuditWriter
from daemon.state.lock import lock_state
from daemon.state.restart import restart_state
from daemon.state.state_writer import StateWriter
from daemon.systemd_notify import Notifier, asking_for_patience
from daemon.worker.client import WorkerClient
from deploy.audit.log import AuditLog, audit_path
from deploy.backends.protocol import Runner
from deploy.path import InferencePath
from deploy.store.artefacts import FACTORY, ArtefactStore

TICK_S = 0.05  # how often what is due is looked at, and the longest a signal waits
STATUS_S = 1.0  # between two status lines for systemd
ORDER_TIMEOUT_S = 3.0  # an order waits for the frame under way

log = logging.getLogger(__name__)


class Daemon:
    """`run` is the life of the process: startup, ticks, shutdown. All state belongs to the thread that runs it."""

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry,
        notifier: Notifier,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.config = config
        self.metrics = Metrics(registry)
        self.should_exit = False
        self.sensors: dict[str, Sensor] = {}
        self._registry = registry
        self._notifier = notifier
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[tuple[Order, Future[dict[str, Any]]]] = queue.SimpleQueue()
        self._closing = ExitStack()
        self._due = self._status_due = -math.inf

    def run(self) -> None:
        with self._captured_signals():
            try:
                self.startup()
                self._serve_until_told_to_stop()
            finally:
                self.shutdown()

    def _serve_until_told_to_stop(self) -> None:
        try:
            while not self.should_exit:
                self.on_tick()
        except Unservable:
            raise
        except ValueError as error:
            # Startup has accepted what comes from outside. This is a fault of ours, which a restart may cure:
            # it must not pass for a mistake in the configuration.
            raise RuntimeError(f"a fault while serving: {error}") from error

    # ---- startup

    def startup(self) -> None:
        """Everything is proven before the first socket opens; READY is sent when frames are served."""
        self._closing.callback(os.close, lock_state(self.config.state.directory))
        self._envelope = open_envelope(self.config)
        if self._envelope is not None:
            log.info("envelope: %s", self._envelope)
        self._model = open_model(self.config, self._notifier)
        self._closing.callback(lambda: self._model.runner.close())
        self._store = ArtefactStore(self.config.state.directory)
        self._store.sweep()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._state_writer = StateWriter(self._store, self._model.digest, self._background)
        self._audit_writer = AuditWriter(self._open_audit, self._background, self.metrics)
        self._closing.callback(self._audit_writer.close)
        self._closing.callback(self._background.shutdown, wait=True)
        with asking_for_patience(self._notifier):
            for name in self.config.sensors:
                self.sensors[name] = self._new_sensor(name)
        self._closing.callback(self._drop_candidates)
        self._open_workers()
        self._begin_to_compile()
        self._publish_facts()
        self._open_sockets()
        self._notifier.ready()
        log.info("serving %s on %s", ", ".join(self.sensors), ", ".join(self._intake.endpoints))

    def _new_sensor(self, name: str) -> Sensor:
        config = self.config
        path = InferencePath(self._model.runner, closer=self._close_later)
        self._closing.callback(path.close)
        restore(name, path, self._store, self._model, self._envelope)
        window = config.drift.window
        return Sensor(
            name,
            path,
            Reservoir(
                config.recalibrate.frames + window,
                config.sensors[name].sample_every,
                window=window,
                quality_filter=QualityFilter(),
            ),
            DriftDetector(config.drift.threshold, config.drift.hold),
            self._new_state_machine(name, path.version),
            stall_detector=StallDetector(self._clock()),
            operator_hold=None,
            withdrawn=load_withdrawn(name, self._store),
        )

    def _new_state_machine(self, sensor: str, version: str) -> StateMachine:
        """A homogenizer that had not served its probation before the restart begins it anew."""
        config, since = self.config.recalibrate, serving_since(sensor, version, self._store)
        anew = version != FACTORY and on_probation(since, time.time(), config.probation)
        return StateMachine(
            config,
            self._clock(),
            serving=version != FACTORY,
            on_probation=anew,
            strict=self._envelope is not None and self._envelope.limits_budget,
        )

    def _open_audit(self) -> AuditLog:
        """In the background, as soon as it can be opened; what it tells of the time before the start is posted."""
        config = self.config
        with ExitStack() as on_failure:
            audit = AuditLog(audit_path(config.state.directory))
            on_failure.callback(audit.close)
            past = [restart_state(audit, name, config.recalibrate, time.time()) for name in config.sensors]
            on_failure.pop_all()
        for event in past:
            self._events.put(event)
        return audit

    def _drop_candidates(self) -> None:
        for sensor in self.sensors.values():
            if sensor.candidate is not None:
                sensor.path.discard(sensor.candidate.prepared)

    def _close_later(self, runner: Runner) -> None:
        self._background.submit(runner.close)

    def _open_workers(self) -> None:
        """The watch's and the fits' own processes; a fit may not delay a drift check."""
        common = (self.config.model.path, self._model.backend.name, self.config.state.directory)
        self._jobs = JobRunner(
            WorkerClient(*common, threads=self.config.model.thread_count),
            self._store,
            self._model,
            self.config.recalibrate.timeout,
            self.config.drift.threshold,
            self._events.put,
            {"frames": self.config.recalibrate.keep_frames, "mib": self.config.recalibrate.keep_frames_mib},
            self._envelope,
        )
        self._closing.callback(self._jobs.close)
        frames = self.config.recalibrate.frames
        self._controller = Controller(
            self._jobs,
            self._state_writer,
            frames,
            self.metrics,
            self._background,
            self._audit_writer,
            self._clock,
        )
        self._orders = Orders(self._controller, self._audit_writer)
        watch = DriftMonitor(self.config.drift, self.sensors, WorkerClient(*common, threads=1), self._events.put)
        self._closing.callback(watch.close)
        watch.start()

    def _begin_to_compile(self) -> None:
        """Φ with the backend that was asked for, where a stand-in serves it."""
        self._build: EngineBuild | None = None
        if self._model.stands_in:
            log.info("%s serves until %s has compiled the model", self._model.served_by, self._model.backend.name)
            self._build = EngineBuild(self.config, self._model)
            self._closing.callback(self._build.close)

    def _publish_facts(self) -> None:
        backend = self._model.backend.name
        self.metrics.build_info.labels(__version__, torch.__version__, backend).set(1)
        self.metrics.set_model(self._model.digest, self._model.served_by)
        self._audit_writer.record("", "start", self._facts())
        for sensor in self.sensors.values():
            self._controller.export_homogenizer(sensor, "restored")
            self._controller.export_state(sensor)

    def _facts(self) -> dict[str, Any]:
        """What runs, for the audit log."""
        return {
            "recald": __version__,
            "torch": str(torch.__version__),
            "backend": self._model.backend.version(),
            "model": self._model.digest,
            "served_by": self._model.served_by,
            "precision": self.config.model.precision,
            "mode": self.config.recalibrate.mode,
            "envelope": self._envelope and self._envelope.digest,
            "envelope_signed": self._envelope is not None and self._envelope.signed,
            "homogenizers": {name: sensor.path.version for name, sensor in self.sensors.items()},
        }

    def _open_sockets(self) -> None:
        config = self.config
        context = self._closing.enter_context(zmq.Context())
        publisher = Publisher(context, config.output.bind)
        self._closing.callback(publisher.close)
        self._serving = FrameServer(self._model, publisher, self.metrics)
        self._intake = Intake(context, config.input, self.sensors, self.metrics)
        self._closing.callback(self._intake.close)
        control = ControlServer(context, config.control.endpoint, self._answer)
        self._closing.callback(control.close)
        scrape = serve_metrics(config.metrics.host, config.metrics.port, self._registry)
        self._closing.callback(scrape.close)
        log.info("metrics on http://%s:%d/metrics", config.metrics.host, scrape.port)
        self._intake.start()
        control.start()

    # ---- a tick

    def on_tick(self) -> None:
        """Serve the next frame if there is one, then do what has become due."""
        frame = self._intake.take(TICK_S)
        if frame is not None:
            self._serve(frame, self.sensors[frame.sensor])
        now = self._clock()
        if now >= self._due:
            self._due = now + TICK_S
            self._do_what_is_due(now)

    def _serve(self, frame: Frame, sensor: Sensor) -> None:
        sensor.hold = frame.hold
        try:
            self._serving.serve(frame, sensor)
        except FrameError as error:
            self.metrics.frames_dropped.labels(sensor.name, error.reason).inc()
        except RuntimeError as error:
            self._survive(frame, sensor, error)

    def _survive(self, frame: Frame, sensor: Sensor, error: RuntimeError) -> None:
        """A runner failed on a frame: go back one step where that helps and serve the frame again, else count it."""
        log.error("%s: inference failed: %s", sensor.name, error)
        if sensor.path.version == FACTORY:
            self.metrics.frames_dropped.labels(sensor.name, "inference").inc()
            return
        self._controller.roll_back(sensor, "error")
        self._serve(frame, sensor)

    # ---- what is due

    def _do_what_is_due(self, now: float) -> None:
        self._obey()
        if self._build is not None and self._build.done and self._jobs.free:
            self._take_compiled(self._build)  # no homogenizer is just being proven in front of the stand-in
        while not self._events.empty():
            event = self._events.get()
            self._controller.handle(event, self.sensors[event.sensor], now)
        for sensor in self.sensors.values():
            self._controller.step(sensor, now)
        self._notifier.watchdog()
        if now >= self._status_due:
            self._status_due = now + STATUS_S
            self._notifier.status(self._status_line())
            self._audit_writer.retry()
            self._state_writer.retry()

    def _take_compiled(self, build: EngineBuild) -> None:
        """Let the backend that was asked for serve Φ from the next frame on."""
        before, self._build = self._model, None
        self._model = before.served_as_asked(build.take())
        for sensor in self.sensors.values():
            sensor.path.replace_model(self._model.runner)
            sensor.latency_monitor = LatencyMonitor()  # what a frame took before tells nothing of now
        self._close_later(before.runner)
        self.metrics.set_model(self._model.digest, self._model.served_by)
        self._audit_writer.record("", "compiled", {"served_by": self._model.served_by, "backend": self._model.backend.version()})
        log.info("%s serves the model from now on", self._model.served_by)

    def _status_line(self) -> str:
        build = [] if self._build is None else [self._build.told]
        sensors = [
            f"{s.name}: {s.state_machine.state.value}, drift {s.drift_score:.2f}, ρ {s.path.version[:12]}"
            for s in self.sensors.values()
        ]
        return "; ".join([*build, *sensors])

    # ---- commands

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Called by the control thread: reads plain values, queues what changes something."""
        command, name = request["command"], request.get("sensor")
        if command == "status":
            return {
                "version": __version__,
                "model": self._model.digest,
                "backend": self._model.served_by,
                "compiling": self._model.backend.name if self._model.stands_in else None,
                "sensors": {n: s.status() for n, s in self.sensors.items()},
            }
        if command not in self._orders.names():
            raise ValueError(f"unknown command {command!r}: status, {', '.join(self._orders.names())}")
        if name not in self.sensors:
            raise ValueError(f"unknown sensor {name!r}: configured are {', '.join(self.sensors)}")
        answer: Future[dict[str, Any]] = Future()
        order = Order(command, name, str(request.get("by", "unknown")), request.get("version"))
        self._commands.put((order, answer))
        try:
            return answer.result(ORDER_TIMEOUT_S)
        except FutureTimeout:
            answer.cancel()
            raise ValueError("the daemon is busy, and the order was dropped: try again") from None

    def _obey(self) -> None:
        while not self._commands.empty():
            order, answer = self._commands.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._orders.carry_out(order, self.sensors[order.sensor]))
            except ValueError as error:
                answer.set_exception(ValueError(f"{order.sensor}: {error}"))

    # ---- the end

    def shutdown(self) -> None:
        """Close whatever was opened, in reverse order; safe after a half-finished startup."""
        self._notifier.stopping()
        if self.sensors:
            self._audit_writer.record("", "stop", {name: sensor.frames for name, sensor in self.sensors.items()})
        self._closing.close()
        log.info("stopped")

    @contextmanager
    def _captured_signals(self) -> Iterator[None]:
        before = {s: signal.signal(s, self._handle_exit) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.should_exit = True
