"""The life of the process: it opens everything, serves frames with work due between them, and closes everything."""

from __future__ import annotations

import gc
import logging
import math
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import zmq
from prometheus_client import CollectorRegistry

from calibrate.errors import RecaldError
from daemon.config import Config
from daemon.frames.latency_monitor import LatencyMonitor
from daemon.metrics import Metrics
from daemon.model.engine_build import EngineBuildError
from daemon.model.engine_supply import EngineSupply
from daemon.model.labels import ClassNames, LabelReader
from daemon.model.served_model import open_model
from daemon.monitoring.exporter import Exporter
from daemon.operator.control import ControlServer
from daemon.operator.orders import OrderQueue, Orders
from daemon.operator.page.port import MetricsPort
from daemon.operator.page.status_answer import answer_status
from daemon.operator.stored_version import find_stored
from daemon.recalibration.controller import Controller, Event
from daemon.recalibration.drift_monitor import DriftMonitor
from daemon.recalibration.envelope import open_envelope
from daemon.recalibration.job import JobRunner
from daemon.recalibration.mode import with_default_mode
from daemon.recalibration.restore import restore_sensor, start_details
from daemon.recalibration.sensor import Sensor
from daemon.serving.connection_watch import ConnectionWatch
from daemon.serving.decoders import DecodedFrame, Decoders, FramePreparer
from daemon.serving.intake import Intake
from daemon.serving.message import FrameError
from daemon.serving.refusals import Refusals
from daemon.serving.results import Publisher
from daemon.serving.serve import FrameServer
from daemon.state.audit_writer import AuditWriter
from daemon.state.earlier_place import check_earlier_place
from daemon.state.lock import StateClaim
from daemon.state.restart import restart_state
from daemon.state.state_writer import StateWriter
from daemon.supervision import SupervisedExecutor, Supervision, ThreadDied
from daemon.systemd_notify import Notifier, extending_timeout
from daemon.worker.client import WorkerClient
from daemon.worker.fit_device import check_fit_device
from deploy.audit.log import AuditLog, audit_path
from deploy.backends.engine_cache import prune_cache
from deploy.backends.protocol import Runner
from deploy.frame_gaps import FrameGaps
from deploy.path import InferenceError, InferencePath
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.retention import remove_orphans

TICK_S = 0.05  # how often due work is done, and the longest that a signal waits
EXIT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal that it ran in was closed
STATUS_INTERVAL_S = 1.0  # between two status lines for systemd, and between two retries of failed writes

log = logging.getLogger(__name__)


class Daemon:
    """`run` is the whole life: startup, ticks, shutdown. The thread that runs it, the frame thread, owns all state."""

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry,
        notifier: Notifier,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Open nothing yet: startup() does. clock: monotonic, s."""
        self.config = config
        self.metrics = Metrics(registry)
        self.should_exit = False
        self._supervision = Supervision(self.metrics)
        self.sensors: dict[str, Sensor] = {}
        self._refusals = Refusals(self.metrics, clock)
        self._registry = registry
        self._notifier = notifier
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()  # from other threads, for the controller
        self._engine_supply: EngineSupply | None = None
        self._closing = ExitStack()  # what shutdown() closes, the newest first
        self._next_work = self._next_status = -math.inf

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP.

        Raises RecaldError for what a restart cannot cure: a mistake in configuration or model. Any other exception may
        be gone after a restart. ThreadDied: one of the daemon's threads has ended.
        """
        with self._captured_signals(), self._supervision:
            try:
                self.startup()
                self._serve_until_exit()
            finally:
                self.shutdown()

    def _serve_until_exit(self) -> None:
        try:
            while not self.should_exit:
                self.on_tick()
        except EngineBuildError:
            raise
        except RecaldError as error:
            raise RuntimeError(f"a fault while serving: {error}") from error  # no mistake of the user's configuration

    # ---- startup

    def startup(self) -> None:
        """Prove everything before the first socket opens; report READY to systemd once frames are served."""
        self._port = MetricsPort(self.config, self._registry, self.metrics, self._clock)
        check_earlier_place(self.config.state)
        self._claim = StateClaim(self.config.state.directory)
        self._closing.callback(self._claim.close)
        self._envelope = open_envelope(self.config)
        if self._envelope is not None:
            log.info("envelope: %s", self._envelope)
        check_fit_device(self.config.fit.device)
        self._model = open_model(self.config, self._notifier)
        self._closing.callback(lambda: self._model.runner.close())  # by then it may be another runner
        self._settle_mode()
        self._open_state()
        self._open_sensors()
        self._prepare_workers()
        self._start_engine_build()
        self._publish_start()
        gc.collect()
        gc.freeze()  # a search of all that PyTorch made for garbage keeps frames waiting for 0.1 s and more
        self._open_sockets()
        self._drift_monitor.start()
        self._notifier.ready()
        log.info("serving %s on %s", ", ".join(self.sensors), ", ".join(self._intake.endpoints))

    def _settle_mode(self) -> None:
        """Take the mode that suits the network where the configuration names none; the envelope must allow it, too."""
        self.config = with_default_mode(self.config, self._model.is_classifier)
        self._envelope = open_envelope(self.config)

    def _open_state(self) -> None:
        """Open the stored homogenizers, and the two writers that keep the disk away from the frame thread."""
        self._store = ArtefactStore(self.config.state.directory)
        self._store.sweep()
        remove_orphans(self._store)
        prune_cache(self._store.root)
        self._background = SupervisedExecutor(self._supervision, thread_name_prefix="background")
        self._state_writer = StateWriter(self._store, self._model.digest, self._background, self.metrics.count_fault)
        self._audit_writer = AuditWriter(self._open_audit, self._background, self.metrics, self._claim.check)
        self._closing.callback(self._audit_writer.close)
        self._closing.callback(self._background.shutdown, wait=True)

    def _open_audit(self) -> AuditLog:
        """Open the log and post what it says about the time before the start. Called in the background."""
        with ExitStack() as on_failure:
            audit = AuditLog(audit_path(self.config.state.directory))
            on_failure.callback(audit.close)
            budget, now = self.config.recalibrate, time.time()
            states = [restart_state(audit, name, budget, now) for name in self.config.sensors]
            on_failure.pop_all()
        for state in states:
            self._events.put(state)
        return audit

    def _open_sensors(self) -> None:
        """Let the homogenizers serve again that served before the restart."""
        gaps = FrameGaps()
        with extending_timeout(self._notifier):  # they may have to be compiled
            for name in self.config.sensors:
                path = InferencePath(self._model.runner, closer=self._close_later, gaps=gaps)
                self._closing.callback(path.close)
                self.sensors[name] = restore_sensor(
                    name,
                    path,
                    self.config,
                    self._store,
                    self._model,
                    self._envelope,
                    self._clock,
                    self._audit_writer.record,
                )
        self._closing.callback(self._discard_candidates)

    def _close_later(self, runner: Runner) -> None:
        self._background.submit(runner.close)

    def _discard_candidates(self) -> None:
        for sensor in self.sensors.values():
            if sensor.candidate is not None:
                sensor.path.discard(sensor.candidate.prepared)

    def _prepare_workers(self) -> None:
        """Prepare drift checks and recalibrations, each with a worker process: a fit must not delay a check."""
        config = self.config
        worker = (config.model.path, self._model.digest, self._model.backend.name, config.state.directory)
        start = partial(WorkerClient, *worker, class_mixes=self._model.class_mixes, on_fault=self.metrics.count_fault)
        fit_worker = start(threads=config.model.thread_count, fit_device=config.fit.device)
        check_worker = start(threads=1)
        self._workers = {"checks": check_worker, "fits": fit_worker}
        self._job_runner = JobRunner(
            fit_worker,
            self._store,
            self._model,
            config.recalibrate.timeout,
            config.drift.threshold,
            self._events.put,
            {"frames": config.recalibrate.keep_frames, "mib": config.recalibrate.keep_frames_mib},
            self._envelope,
            config.recalibrate.memory_mib,
        )
        self._closing.callback(self._job_runner.close)
        self._controller = Controller(
            self._job_runner,
            self._state_writer,
            config.recalibrate.frames,
            self.metrics,
            self._background,
            self._audit_writer,
            self._clock,
        )
        self._orders = OrderQueue(
            Orders(self._controller, self._audit_writer),
            self.sensors,
            partial(find_stored, self._store, self._model.digest),
            LabelReader(ClassNames(self._model.frozen.class_count, self._model.classes)).read,
            self._audit_writer.wait_until_written,
        )
        post, wants_frames = self._events.put, self._port.wants_frames
        self._drift_monitor = DriftMonitor(config.drift, self.sensors, check_worker, post, wants_frames)
        self._closing.callback(self._drift_monitor.close)

    def _start_engine_build(self) -> None:
        """Build the engine of the requested backend, where a stand-in serves the model."""
        if self._model.has_stand_in:
            self._engine_supply = EngineSupply(self.config, self._model, self._audit_writer.record)
            self._closing.callback(self._engine_supply.close)

    def _publish_start(self) -> None:
        """Export and record what serves from this start on."""
        watched = (self._model, self.sensors, self._store, self._audit_writer, self._background, self._workers)
        self._exporter = Exporter(self.metrics, self.config, *watched, self._clock)
        self._closing.callback(self._exporter.close)
        self.metrics.set_model(self._model.digest, self._model.served_by)
        details = start_details(self.config, self._model, self._envelope, self.sensors)
        self._audit_writer.record("", "start", details)
        for sensor in self.sensors.values():
            self._controller.export_homogenizer(sensor, "restored")
            self._controller.export_state(sensor)
        self._closing.callback(self._record_stop)

    def _record_stop(self) -> None:
        """Record how a stop ends what runs, and how many frames each sensor served."""
        for sensor in self.sensors.values():
            self._controller.stop(sensor)
        self._audit_writer.record("", "stop", {name: sensor.frames for name, sensor in self.sensors.items()})

    def _open_sockets(self) -> None:
        """Open the endpoints: frames in, results out, orders and status, metrics; start to receive."""
        context = self._closing.enter_context(zmq.Context())
        watch = ConnectionWatch()
        self._closing.callback(watch.close)
        publisher = Publisher(context, self.config.output.bind, self.sensors, watch, self.metrics.result_overruns.inc)
        self._closing.callback(publisher.close)
        self._frame_server = FrameServer(self._model, publisher, self.metrics)
        values = {name: sensor.pixel_values for name, sensor in self.sensors.items()}
        preparer = FramePreparer(self._model.preprocessor, values, self.metrics)
        self._decoders = Decoders(self.sensors, preparer, self._refusals.add, self._refusals.superseded)
        self._closing.callback(self._decoders.close)
        self._intake = Intake(
            context, self.config.input, self.config.sensors, self.metrics, self._decoders.put, self._refusals.add, watch
        )
        self._closing.callback(self._intake.close)
        control = ControlServer(context, self.config.control.endpoint, self._answer, self.metrics.count_fault)
        self._closing.callback(control.close)
        self._update_port(self._clock())
        self._port.open()
        self._closing.callback(self._port.close)
        watch.start()
        self._decoders.start()
        self._intake.start()
        control.start()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of an operator. Called by the control thread, which only reads plain values."""
        return self._status() if request["command"] == "status" else self._orders.submit(request)

    def _status(self) -> dict[str, Any]:
        return answer_status(self.config, self._model, self.sensors, self._refusals, self._problem())

    def _update_port(self, now: float) -> None:
        self._port.update(self._status(), self._audit_writer.recent, self.sensors, now)

    # ---- a tick

    def on_tick(self) -> None:
        """Serve the next frame if one arrives within a tick; then do the work that is due."""
        frame = self._decoders.take(TICK_S)
        if frame is not None:
            self._serve(frame, self.sensors[frame.sensor])
        now = self._clock()
        if now >= self._next_work:
            self._next_work = now + TICK_S
            self._do_due_work(now)

    def _serve(self, frame: DecodedFrame, sensor: Sensor) -> None:
        """Serve one frame; a frame on which inference fails ends nothing. Any other error is a fault of recald."""
        sensor.hold = frame.hold
        try:
            self._frame_server.serve(frame, sensor)
        except InferenceError as error:
            self._serve_again(frame, sensor, error)

    def _serve_again(self, frame: DecodedFrame, sensor: Sensor, error: InferenceError) -> None:
        """Roll back after a runner failed, and serve its frame; drop it where the factory homogenizer serves."""
        log.error("%s: inference failed: %s", sensor.name, error)
        if sensor.path.version == FACTORY:
            self._refusals.add(FrameError("inference", f"the model failed: {error}", sensor.name))
            return
        self._controller.roll_back(sensor, "error")
        self._serve(frame, sensor)

    def _do_due_work(self, now: float) -> None:
        """Do what waits for a moment between two frames: orders, events of other threads, decisions, reports."""
        self._supervision.check()
        if self._job_runner.hangs:
            raise ThreadDied("a recalibration goes on although its worker was killed: its thread hangs")
        self._audit_writer.check(now)
        self._orders.carry_out_all()
        if self._engine_supply is not None and self._job_runner.free:  # a proof must not run across the exchange
            engine = self._engine_supply.take(now)
            if engine is not None:
                self._engine_supply = None
                self._serve_with(engine)
        while not self._events.empty():
            event = self._events.get()
            self._controller.handle(event, self.sensors[event.sensor], now)
        for sensor in self.sensors.values():
            self._controller.step(sensor, now)
        self._notifier.watchdog()
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL_S
            self._notifier.status(self._status_line())
            self._exporter.update()
            self._state_writer.retry()
            self._update_port(now)

    def _serve_with(self, runner: Runner) -> None:
        """Exchange the stand-in: from the next frame on, the requested backend serves the model."""
        stand_in = self._model.runner
        self._model = self._model.with_requested_backend(runner)
        for sensor in self.sensors.values():
            sensor.path.replace_model(runner)
            sensor.latency_monitor = LatencyMonitor()  # the durations of the stand-in say nothing about this runner
        self._close_later(stand_in)
        self.metrics.set_model(self._model.digest, self._model.served_by)
        details = {"served_by": self._model.served_by, "backend": self._model.backend.version()}
        self._audit_writer.record("", "compiled", details)
        log.info("%s serves the model from now on", self._model.served_by)

    def _problem(self) -> str:
        """Return what an operator must know of the state directory, or ""."""
        problem = self._audit_writer.problem
        return problem and f"no new homogenizer serves: {problem}"

    def _status_line(self) -> str:
        """Return one line for `systemctl status`."""
        progress = [self._problem(), "" if self._engine_supply is None else self._engine_supply.progress]
        sensors = [sensor.status_line for sensor in self.sensors.values()]
        return "; ".join(filter(None, [*progress, *sensors]))

    # ---- shutdown

    def shutdown(self) -> None:
        """Close everything that was opened, in reverse order; safe after a startup that failed halfway."""
        self._notifier.stopping()
        self._closing.close()
        log.info("stopped")

    @contextmanager
    def _captured_signals(self) -> Iterator[None]:
        """Let the signals that ask for an end stop the loop after the current tick, not the process at once."""
        before = {number: signal.signal(number, self._handle_exit) for number in EXIT_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.should_exit = True
