"""A certificate that cannot work is refused with one line; its end is read from the file; a renewed one is taken up."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path

import pytest
from certificates import PASSPHRASE, Authority, Issued, ends_in

from daemon.settings.metrics import MetricsConfig
from daemon.web.certificate import (
    RENEWAL_CHECK_S,
    Certificate,
    CertificateError,
    describe_certificate,
    open_certificate,
    validity_end,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def configured(issued: Issued, **more: Path) -> MetricsConfig:
    given = {"certificate": issued.certificate, "certificate_key": issued.key} | more
    return MetricsConfig.model_validate(given)


def refused(issued: Issued, **more: Path) -> str:
    with pytest.raises(CertificateError) as caught:
        Certificate(configured(issued, **more))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "ends",
    [
        ends_in(days=400),
        datetime(1960, 1, 1, tzinfo=timezone.utc),
        datetime(1999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
        datetime(2049, 12, 31, tzinfo=timezone.utc),
        datetime(2050, 1, 1, tzinfo=timezone.utc),  # from here on another type of time
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),  # as of a certificate that never ends
    ],
    ids=lambda ends: str(ends.year),
)
def test_the_end_is_that_of_the_certificate(authority, ends):
    issued = authority.issue("device", ends)
    found = validity_end(issued.certificate.read_text())
    assert found == ends.timestamp()
    own = authority.x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    assert found == own.not_valid_after_utc.timestamp()


def test_the_end_is_that_of_the_first_certificate_of_a_chain(authority):
    issued = authority.issue("device")
    chain = f"{issued.key.read_text()}some words\n{issued.certificate.read_text()}{authority.file.read_text()}"
    assert validity_end(chain) == issued.ends.timestamp()


def test_the_end_is_exported_and_nan_without_a_certificate(authority):
    exported: list[float] = []
    issued = authority.issue("device")
    open_certificate(configured(issued), exported.append)
    assert open_certificate(MetricsConfig(), exported.append) is None
    assert exported[0] == issued.ends.timestamp() and str(exported[1]) == "nan"


def test_a_key_of_another_certificate_is_refused(authority):
    device, other = authority.issue("device"), authority.issue("other")
    assert "the key is not that of the certificate" in refused(device._replace(key=other.key))


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(authority):
    assert "has a passphrase" in refused(authority.issue("device", passphrase=PASSPHRASE))


@pytest.mark.parametrize("key", ["certificate", "certificate_key", "client_ca"])
def test_a_file_that_is_missing_is_named_with_its_key(authority, tmp_path, key):
    issued = authority.issue("device")
    gone = tmp_path / "gone.pem"
    assert refused(issued, **{key: gone}) == f"metrics.{key}: {gone}: cannot be read: No such file or directory"


@pytest.mark.parametrize("key", ["certificate", "certificate_key", "client_ca"])
def test_a_file_that_holds_something_else_is_refused(authority, tmp_path, key):
    issued = authority.issue("device")
    other = tmp_path / "other.pem"
    other.write_text("no PEM at all\n")
    assert str(other) in refused(issued, **{key: other})


@pytest.mark.parametrize("kept", [1, 2, 4, 8])
def test_a_certificate_that_was_cut_short_is_refused(authority, kept):
    issued = authority.issue("device")
    lines = issued.certificate.read_text().splitlines()
    assert len(lines) > kept + 1
    issued.certificate.write_text("\n".join([*lines[:kept], lines[-1]]) + "\n")
    assert str(issued.certificate) in refused(issued)


def test_a_certificate_that_has_ended_serves_on_and_is_told(authority, caplog):
    issued = authority.issue("device", ends_in(days=-2))
    assert Certificate(configured(issued)).ends < datetime.now().timestamp()
    assert "ended on" in caplog.text
    assert "WARNING: ended" in describe_certificate(configured(issued))


class Renewal:
    """A certificate whose clock the test moves."""

    def __init__(self, authority: Authority) -> None:
        self.now, self.exported = 0.0, []
        self.authority, self.issued = authority, authority.issue("device")
        self.certificate = Certificate(configured(self.issued), self.exported.append, lambda: self.now)

    def look(self, after: float = RENEWAL_CHECK_S) -> None:
        self.now += after
        self.certificate.refresh()


def test_a_renewed_certificate_is_taken_up(authority, caplog):
    caplog.set_level(logging.INFO)
    renewal = Renewal(authority)
    before = renewal.certificate.context
    renewal.look()
    assert renewal.certificate.context is before
    newer = authority.issue("device", ends_in(days=300))
    renewal.look(after=RENEWAL_CHECK_S / 2)
    assert renewal.certificate.context is before
    renewal.look()
    assert renewal.certificate.context is not before and renewal.certificate.ends == newer.ends.timestamp()
    assert renewal.exported == [renewal.issued.ends.timestamp(), newer.ends.timestamp()]
    assert "has a new certificate" in caplog.text


def test_a_renewal_that_cannot_be_used_is_told_once_and_the_old_one_stays(authority, caplog):
    renewal = Renewal(authority)
    before = renewal.certificate.context
    renewal.issued.certificate.write_text("half a file")
    for _ in range(3):
        renewal.look()
    assert renewal.certificate.context is before and len(caplog.records) == 1
    newer = authority.issue("device", ends_in(days=300))
    renewal.look()
    assert renewal.certificate.ends == newer.ends.timestamp()


def test_check_config_says_who_can_read_the_key(authority):
    issued = authority.issue("device")
    assert "WARNING" not in describe_certificate(configured(issued))
    issued.key.chmod(0o644)
    assert "every user of this machine can read its key" in describe_certificate(configured(issued))
    assert describe_certificate(MetricsConfig()) == "none, the metrics port speaks plain HTTP"
