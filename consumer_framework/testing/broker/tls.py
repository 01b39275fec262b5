# SPDX-License-Identifier: GPL-2.0-or-later
"""A private RabbitMQ node that demands client certificates, as Fedora's broker does.

A client that connects by TLS is the user that its certificate names as the common name, without a
password (SASL EXTERNAL): https://www.rabbitmq.com/docs/ssl and the plugin
rabbitmq_auth_mechanism_ssl. The plain port stays open, so that a test can publish and count.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError as error:
    raise ImportError(
        f"{__name__} needs cryptography; install it with `pip install 'consumer-framework[broker]'`"
    ) from error

from . import Broker
from .place import HOST, port_of, reserve_port

if TYPE_CHECKING:
    import socket
    from pathlib import Path

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A private certificate authority.

    Args:
        directory: The directory of its files.
        name: Its name, and the name of its files.

    Attributes:
        certificate: The authority's own certificate, a PEM file.
    """

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name_of(f"Test {name}")
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        made = self._builder(self._name, self._key, 10).add_extension(constraints, critical=True)
        self.certificate = directory / f"{name}.pem"
        self.certificate.write_bytes(self._signed(made))

    def issue(self, common_name: str, *, days: float = 10, file: str = "") -> Pair:
        """Make a certificate for a client, or for a server on this machine.

        Args:
            common_name: The name of its owner.
            days: The number of days until it ends; negative for a certificate that has ended.
            file: The name of its files; "" for the common name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST)))
        made = self._builder(_name_of(common_name), key, days).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        pair = Pair(*(self._directory / f"{file or common_name}.{end}" for end in ("crt", "key")))
        pair.certificate.write_bytes(self._signed(made))
        secret = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
        pair.key.chmod(0o600)
        return pair

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * _DAY)
            .not_valid_after(now + days * _DAY)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def _name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


class TlsBroker(Broker):
    """A :class:`.Broker` with a TLS port that takes only clients with a certificate.

    Args:
        directory: The directory of its certificates.
        options: As for :class:`.Broker`.

    Attributes:
        authority: Signs the certificates of the node and of its clients.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        self.authority = Authority(directory)
        self._tls_port: socket.socket | None = reserve_port()
        server = self.authority.issue("localhost", file="server")
        settings = {
            "listeners.ssl.1": f"{HOST}:{self.tls_port}",
            "ssl_options.cacertfile": str(self.authority.certificate),
            "ssl_options.certfile": str(server.certificate),
            "ssl_options.keyfile": str(server.key),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "true",
            "ssl_cert_login_from": "common_name",
            "auth_mechanisms.1": "EXTERNAL",
            "auth_mechanisms.2": "PLAIN",
            **options.pop("config", {}),
        }
        plugins = ["rabbitmq_auth_mechanism_ssl", *options.pop("plugins", ())]
        super().__init__(plugins=plugins, config=settings, **options)

    @property
    def tls_port(self) -> int:
        """The TLS port on 127.0.0.1."""
        assert self._tls_port is not None  # noqa: S101 -- it is closed otherwise
        return port_of(self._tls_port)

    @property
    def tls_url(self) -> str:
        """The URL of the default virtual host for clients with a certificate."""
        return f"amqps://localhost:{self.tls_port}/%2F"

    def add_certificate_user(self, name: str, *, file: str = "", days: float = 10) -> Pair:
        """Add a user without a password, who may do everything, and issue their certificate.

        Raises:
            BrokerError: rabbitmqctl failed.
        """
        self.add_user(name, "for a moment", configure=".*", write=".*", read=".*")
        self.ctl("clear_password", name)
        return self.authority.issue(name, file=file, days=days)

    def close(self) -> None:
        """End the node for good."""
        super().close()
        if self._tls_port is not None:
            self._tls_port.close()
            self._tls_port = None
