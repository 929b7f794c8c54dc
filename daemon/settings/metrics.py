"""The section `metrics` of the configuration: the port for Prometheus, health checks and the page."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from daemon.settings.endpoints import check_name
from daemon.settings.section import GivenPath, Host, Section

HostName = Annotated[str, AfterValidator(check_name)]


class MetricsConfig(Section):
    """Where Prometheus scrapes (`/metrics`), supervisors ask (`/healthz`, `/readyz`) and people look (`/`)."""

    host: Host = "127.0.0.1"
    """The address to listen on. The default is open to this machine alone."""
    port: int = Field(default=9748, ge=0, le=65535)
    """The TCP port to listen on; 0 takes any free port, which the log names."""
    page: bool = True
    """`false` serves no page, and no data for it. The page only shows; orders are given with the commands."""
    show_frames: bool = False
    """`true` shows the newest frame of each camera on the page, as received and as restored. The default shows none,
    since frames may show people, and whoever reaches the port sees the page.
    """
    names: list[HostName] = []
    """Host names by which others call this port, such as `device-7.example.com`. A request by another name is refused,
    so that no web site can read the port through a visitor's browser. IP addresses, `localhost`, `host` and the name of
    this machine need no entry; with a certificate the names in it count, and nothing is refused here.
    """
    certificate: GivenPath | None = None
    """The certificate of this port in PEM form, with the intermediate ones behind it; the port then speaks HTTPS alone,
    TLS 1.2 or later. A renewed file is taken up within a minute. By default the port speaks plain HTTP. A relative path
    starts at the folder of the configuration file.
    """
    certificate_key: GivenPath | None = None
    """The private key of the certificate in PEM form, without a passphrase, since nobody is there to type it."""
    client_ca: GivenPath | None = None
    """Certificates of the authorities, in PEM form, one of which must have signed the certificate of every client, of
    Prometheus and browsers alike. By default clients show none.
    """

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> MetricsConfig:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("certificate and certificate_key belong together: give both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca is of no use without certificate: the port speaks plain HTTP")
        return self

    @model_validator(mode="after")
    def _frames_have_page(self) -> MetricsConfig:
        if self.show_frames and not self.page:
            raise ValueError("show_frames is of no use without page: set page: true")
        return self
