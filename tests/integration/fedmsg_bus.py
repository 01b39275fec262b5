# SPDX-License-Identifier: GPL-2.0-or-later
"""The other side of the messenger `fedmsg`: certificates, a subscriber, the documented checks."""

from __future__ import annotations

import base64
import datetime as dt
import json
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import zmq
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from consumer_framework.testing.broker.place import reserve_port

if TYPE_CHECKING:
    from pathlib import Path

DAY = dt.timedelta(days=1)
PEM = serialization.Encoding.PEM


def free_url() -> str:
    with reserve_port() as port:
        return f"tcp://127.0.0.1:{port.getsockname()[1]}"


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Files:
    certfile: str
    keyfile: str


class RsaAuthority:
    """An authority as Fedora had one for fedmsg, with an empty revocation list."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = rsa.generate_private_key(65537, 2048)
        now = dt.datetime.now(dt.UTC)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = directory / "ca.crt"
        made = self._builder("ca", self._key, 10).add_extension(constraints, critical=True)
        self.certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        self.revocations = directory / "crl.pem"
        revoked = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name("ca"))
            .last_update(now - DAY)
            .next_update(now + DAY)
        )
        self.revocations.write_bytes(revoked.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(self, name: str, days: float = 5) -> Files:
        key = rsa.generate_private_key(65537, 2048)
        made = self._builder(name, key, days).sign(self._key, hashes.SHA256())
        certificate, secret = (self._directory / f"{name}.{end}" for end in ("crt", "key"))
        # Text before the certificate, as `openssl x509 -text` writes it, is not sent.
        certificate.write_bytes(b"Certificate:\n" + made.public_bytes(PEM))
        form = serialization.PrivateFormat.TraditionalOpenSSL
        secret.write_bytes(key.private_bytes(PEM, form, serialization.NoEncryption()))
        return Files(str(certificate), str(secret))

    def _builder(self, name: str, key: rsa.RSAPrivateKey, days: float) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + days * DAY)
        )

    def verify(self, message: dict[str, Any]) -> str:
        """Do the checks of fedmsg.crypto.validate, and return the name of the signer.

        Raises:
            Exception: The message is not valid.
        """
        assert message["crypto"] == "x509"
        bare = {k: v for k, v in message.items() if k not in {"signature", "certificate"}}
        texts = [message["signature"], message["certificate"]]
        for text in texts:
            assert text.endswith("\n")
            lines = text[:-1].split("\n")
            assert {len(line) for line in lines[:-1]} <= {76}
            assert 0 < len(lines[-1]) <= 76
        signature, certificate = map(base64.b64decode, texts)
        found = x509.load_pem_x509_certificate(certificate)
        found.verify_directly_issued_by(
            x509.load_pem_x509_certificate(self.certificate.read_bytes())
        )
        assert found.not_valid_after_utc > dt.datetime.now(dt.UTC)
        key = found.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        signed = json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()
        key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303
        return str(found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


class Subscriber:
    """A SUB socket: connected as fedmsg's subscribers are, or bound as its relay is.

    A thread runs it, because ZeroMQ subscribes at a new peer only when a call uses the socket.

    Args:
        room: The messages that the socket has room for; it takes none out of it, except with 0.
    """

    def __init__(self, url: str, *, topic: str = "", is_relay: bool = False, room: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, room)
        if room:
            self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        (self._socket.bind if is_relay else self._socket.connect)(url)
        self._is_taking = not room
        self._taken: queue.Queue[list[bytes]] = queue.Queue()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def _run(self) -> None:
        while not self._is_over.is_set():
            if self._socket.poll(20) and self._is_taking:
                self._taken.put(self._socket.recv_multipart())
            elif not self._is_taking:
                self._is_over.wait(0.02)

    def take(self, count: int, timeout: float = 10.0) -> list[tuple[str, dict[str, Any]]]:
        """Return at most *count* messages, fewer if none comes for *timeout* seconds."""
        found: list[tuple[str, dict[str, Any]]] = []
        with suppress(queue.Empty):
            while len(found) < count:
                topic, text = self._taken.get(timeout=timeout)
                found.append((topic.decode(), json.loads(text)))
        return found
