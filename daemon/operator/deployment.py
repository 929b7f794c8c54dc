"""What `recald run` would find at its start, for check-config and doctor.

Each check returns one sentence, or raises the error that `run` would end with. None leaves anything behind.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import torch
import zmq

from daemon.config import Config, ConfigError
from daemon.model.served_model import load_class_mixes, open_runner
from daemon.operator.control import NoAnswerError, ask, explain_taken
from daemon.operator.memory import WARNING_SHARE, MemoryNeed, describe_need
from daemon.operator.peer import user_name
from daemon.operator.versions import short_version
from daemon.recalibration.envelope import open_envelope
from daemon.recalibration.mode import with_default_mode
from daemon.state.earlier_place import check_earlier_place
from daemon.state.lock import StateClaim
from daemon.web.certificate import describe_certificate
from daemon.worker import fit_device
from daemon.worker.machine_memory import total_memory
from daemon.worker.memory import MIB
from daemon.zmq_sockets import check_bindable
from deploy.backends.protocol import BackendUnavailable, open_backend
from deploy.model.frozen import FrozenModel, load_frozen
from deploy.model.precision import to_precision
from deploy.model.program import ModelError

STATUS_TIMEOUT_S = 2.0
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
TEMPORARY_ADVICE = "the system may clean this temporary folder while recald runs: set another state.directory"


def check_backend(config: Config) -> str:
    """Open the backend. Raises BackendUnavailable."""
    return open_backend(config.model.backend).name


def check_fit_device(config: Config) -> str:
    """Check that the device for fits is here. Raises BackendUnavailable."""
    fit_device.check_fit_device(config.fit.device)
    return f"fit.device {config.fit.device}"


def check_model(config: Config) -> str:
    """Load the model, its clean data and the mixes of classes; compile and compare it, where that takes seconds.

    Raises ModelError, DocumentError or ConfigError.
    """
    frozen = load_frozen(config.model.path, config.model.sha256)
    load_class_mixes(config, frozen)
    clean = ", commissioned" if frozen.card.commissioned else ""
    return f"{frozen.path}, SHA-256 {short_version(frozen.digest)}, as its card says{clean}{_compiled(config, frozen)}"


def _compiled(config: Config, frozen: FrozenModel) -> str:
    try:
        backend = open_backend(config.model.backend)
    except BackendUnavailable:  # check_backend says so
        return ""
    if backend.stand_in is not None:
        return f"; {backend.name} compiles it at the first start, which is not tried here: it takes minutes"
    module = to_precision(frozen.module, config.model.precision)
    compiled = backend.compile(module, torch.zeros(1, *frozen.card.input.shape))
    open_runner(config, backend, frozen, compiled).close()
    return f"; {backend.name} computes what it does"


def check_memory(config: Config) -> str:
    """Compare what the configuration takes with the memory of this machine. Raises ConfigError where it cannot fit."""
    need = MemoryNeed.of(config, load_frozen(config.model.path, config.model.sha256))
    available = total_memory()
    sentence = describe_need(need, len(config.sensors), available)
    advice = "take fewer recalibrate.frames, a smaller drift.window, or fewer sensors"
    if need.in_all > available:
        raise ConfigError([f"not enough memory: {sentence}: {advice}"])
    if need.in_all > WARNING_SHARE * available:
        return f"WARNING: {sentence}: if other programs need memory, {advice}"
    limit = config.recalibrate.memory_mib
    if limit is not None and need.fit > limit * MIB:
        return f"WARNING: {sentence}: recalibrate.memory_mib {limit} will end fits: raise it, or {advice}"
    return sentence


def check_envelope(config: Config) -> str:
    """Open the envelope, also for the mode that suits the network where the configuration names none.

    Raises ConfigError, DocumentError or SignatureError.
    """
    envelope = open_envelope(config)
    if envelope is None:
        return "none"
    with suppress(ModelError):  # check_model says so
        frozen = load_frozen(config.model.path, config.model.sha256)
        open_envelope(with_default_mode(config, frozen.output != "none"))
    return f"{envelope}; the configuration is inside of it"


def check_state(config: Config) -> str:
    """Check that the state directory can be made, written and locked. Raises OSError, or ConfigError."""
    check_earlier_place(config.state)
    directory = config.state.directory
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file: move it, or set another state.directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = "correct its owner, or check as another user"
        raise PermissionError(f"{existing} cannot be written by the user {user_name(os.geteuid())}: {advice}")
    if directory.is_dir() and not daemon_status(config):
        StateClaim(directory).close()
    warning = f"; WARNING: {TEMPORARY_ADVICE}" if _is_temporary(directory) else ""
    return f"{directory} can be written, {shutil.disk_usage(existing).free / 2**30:.1f} GiB are free{warning}"


def _is_temporary(directory: Path) -> bool:
    return any(directory.resolve().is_relative_to(folder) for folder in TEMPORARY_FOLDERS)


def check_certificate(config: Config) -> str:
    """Read the certificate of the metrics port. Raises CertificateError."""
    return describe_certificate(config.metrics)


def check_endpoints(config: Config) -> str:
    """Check that every endpoint can be opened, unless the daemon of this configuration has them. Raises OSError."""
    if daemon_status(config):
        return f"not tried: a recald answers on {config.control.endpoint} and has them open"
    control = config.control.endpoint
    with zmq.Context() as context:
        for address in (*config.input.bind, config.output.bind):
            check_bindable(context, address)
        try:
            check_bindable(context, control)
        except OSError as error:
            raise explain_taken(control, error) from None
    return "all are free" + _metrics_warning(config.metrics.host, config.metrics.port)


def _metrics_warning(host: str, port: int) -> str:
    """Return "" or why metrics would not be served; that keeps no daemon from starting."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        return f", but metrics.port: {host}:{port} cannot be bound ({reason}): no metrics until it can"
    return ""


def daemon_status(config: Config) -> dict[str, object] | None:
    """Return the status of the daemon with this control endpoint; None where none answers."""
    try:
        return ask(config.control.endpoint, {"command": "status"}, STATUS_TIMEOUT_S)
    except NoAnswerError:
        return None
