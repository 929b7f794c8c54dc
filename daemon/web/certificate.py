"""The certificate of the port: refused at the start where it cannot work, and read anew when it was renewed."""

from __future__ import annotations

import logging
import math
import os
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from calibrate.errors import RecaldError
from daemon.settings.metrics import MetricsConfig

RENEWAL_CHECK_S = 60.0  # between two looks at the files; a certificate is renewed days before it ends
BEGIN_CERTIFICATE, END_CERTIFICATE = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
CONSTRUCTED_VERSION, UTC_TIME, GENERALIZED_TIME = 0xA0, 0x17, 0x18  # tags of DER (RFC 5280, 4.1)
REASONS = {  # of OpenSSL, in words that say what to do
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NO_START_LINE": "no PEM block was found",
    "EE_KEY_TOO_SMALL": "the key is too short for today's TLS: make one of 2048 bits (RSA) or 256 (EC) or more",
    "CA_MD_TOO_WEAK": "it is signed with a hash that today's TLS refuses",
}

log = logging.getLogger(__name__)


class CertificateError(RecaldError):
    """A certificate or a key that the port cannot use. The message names key, file and reason."""


class Certificate:
    """`context` is for the next connection; `ends` is when its certificate does, s since the epoch."""

    def __init__(
        self,
        config: MetricsConfig,
        export: Callable[[float], None] = lambda ends: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files. Raises CertificateError. export: is given `ends` now and at each renewal. clock: s."""
        self._config = config
        self._export = export
        self._clock = clock
        self._seen = self._state_of_files()
        self._next_check = clock() + RENEWAL_CHECK_S
        self._load()
        if self.ends < time.time():
            log.warning("the certificate of the metrics port ended on %s: clients refuse it", date_of(self.ends))

    def refresh(self) -> None:
        """Read the files anew where they have changed; what cannot be used is logged, and the one before stays."""
        if self._clock() < self._next_check:
            return
        self._next_check = self._clock() + RENEWAL_CHECK_S
        if (seen := self._state_of_files()) == self._seen:
            return
        self._seen = seen
        try:
            self._load()
        except CertificateError as error:
            log.warning("%s; the certificate before goes on serving, until %s", error, date_of(self.ends))
        else:
            log.info("the metrics port has a new certificate, until %s", date_of(self.ends))

    def _load(self) -> None:
        self.context, self.ends = open_context(self._config)
        self._export(self.ends)

    def _state_of_files(self) -> list[tuple[int, ...] | None]:
        return [_identity(path) for path in _files(self._config).values()]


def open_certificate(config: MetricsConfig, export: Callable[[float], None] = lambda ends: None) -> Certificate | None:
    """Return the certificate; None where the port speaks plain HTTP. Raises CertificateError."""
    if config.certificate is None:
        export(math.nan)
        return None
    return Certificate(config, export)


def describe_certificate(config: MetricsConfig) -> str:
    """Return what `recald check-config` says of the certificate. Raises CertificateError."""
    if config.certificate is None:
        return "none, the metrics port speaks plain HTTP"
    _, ends = open_context(config)
    clients = ", clients must show one, too" if config.client_ca else ""
    ended = "WARNING: ended" if ends < time.time() else "until"
    key = config.certificate_key
    open_key = "; WARNING: every user of this machine can read its key" if key and _mode(key) & stat.S_IROTH else ""
    return f"{config.certificate}, {ended} {date_of(ends)}{clients}{open_key}"


def open_context(config: MetricsConfig) -> tuple[ssl.SSLContext, float]:
    """Return a context for the server's side, and when its certificate ends. Raises CertificateError."""
    texts = {key: _read(key, path) for key, path in _files(config).items()}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert config.certificate is not None and config.certificate_key is not None  # the configuration was checked
    try:
        ends = validity_end(texts["certificate"])
        context.load_cert_chain(config.certificate, config.certificate_key, password=_refuse_passphrase)
        if config.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(config.client_ca)
    except OSError as error:  # ssl.SSLError is one
        raise _explain(config, error) from None
    except ValueError as error:
        raise CertificateError(f"metrics.certificate: {config.certificate}: {error}") from None
    return context, ends


def _explain(config: MetricsConfig, error: OSError) -> CertificateError:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    told = REASONS.get(reason, f"OpenSSL refuses it, {reason}")
    if reason.startswith("NO_CERTIFICATE"):
        return CertificateError(f"metrics.client_ca: {config.client_ca}: holds no certificate in PEM form")
    return CertificateError(f"metrics.certificate: {config.certificate}, with key {config.certificate_key}: {told}")


def _refuse_passphrase() -> str:
    raise ValueError("its key has a passphrase, which nobody can type here: store the key without one")


def _files(config: MetricsConfig) -> dict[str, Path]:
    keys = ("certificate", "certificate_key", "client_ca")
    return {key: path for key in keys if (path := getattr(config, key)) is not None}


def _read(key: str, path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError as error:
        raise CertificateError(f"metrics.{key}: {path}: cannot be read: {error.strerror}") from None


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None  # a renewal exchanges it just now, or it is gone
    return found.st_ino, found.st_size, found.st_mtime_ns


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


# ---- the end of validity, which the standard library reads of a peer's certificate alone


def validity_end(text: str) -> float:
    """Return when the first certificate of a PEM text ends, s since the epoch. Raises ValueError."""
    begin = text.find(BEGIN_CERTIFICATE)
    end = text.find(END_CERTIFICATE, begin)
    if begin < 0 or end < 0:
        raise ValueError("holds no certificate in PEM form")
    try:
        (_, certificate), *_ = _elements(ssl.PEM_cert_to_DER_cert(text[begin : end + len(END_CERTIFICATE)]))
        (_, to_be_signed), *_ = _elements(certificate)
        fields = [field for field in _elements(to_be_signed) if field[0] != CONSTRUCTED_VERSION]
        _serial, _signature, _issuer, (_, validity), *_ = fields
        _, end_of_validity = _elements(validity)
        return _time(*end_of_validity)
    except (ValueError, IndexError) as error:
        raise ValueError(f"is no certificate that can be read: {error}") from None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of DER."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:  # the low bits then say how many bytes the length has
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError("its end is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def date_of(seconds: float) -> str:
    """Return the date and time in UTC."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
