# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand-ins for the services that real consumers talk to, each on a free loopback port."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import pwd
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import xmlrpc.client
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consumer_framework.testing.broker import reserve_port

from .instance import until

HOST = "127.0.0.1"


class PostgreSQL:
    """A private PostgreSQL server; as root it runs as the user ``postgres``.

    Args:
        programs: The directory of its programs.
        disk: The directory for its files; None for that of temporary files.
    """

    def __init__(self, programs: Path, disk: Path | None = None) -> None:
        self._programs = programs
        self._place = Path(tempfile.mkdtemp(prefix="postgresql-", dir=disk))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self._place, owner.pw_uid, owner.pw_gid)
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        with reserve_port() as holder:
            self.port: int = holder.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def programs() -> Path | None:
        """Return the directory of the server's programs, or None if there is none."""
        found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        on_path = shutil.which("initdb")
        return max(found, default=Path(on_path).parent if on_path else None)

    def __enter__(self) -> Self:
        data = str(self._place / "data")
        initdb = [str(self._programs / "initdb"), "-D", data, "-A", "trust", "-U", "postgres"]
        subprocess.run(
            [*initdb, "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd="/", **self._user
        )
        settings = [f"port={self.port}", f"listen_addresses={HOST}", "fsync=off"]
        settings += ["min_wal_size=32MB", "max_wal_size=64MB"]
        settings += [f"unix_socket_directories={self._place}"]
        self._command = [str(self._programs / "postgres"), "-D", data]
        self._command += [f"-c{one}" for one in settings]
        self.start()
        return self

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.DEVNULL, cwd="/", **self._user
        )
        until(lambda: self._psql("postgres", "SELECT 1").returncode == 0, "PostgreSQL answers")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        assert self._process is not None
        # "Fast shutdown": it does not wait for clients.
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._place)

    def url(self, database: str, driver: str = "postgresql") -> str:
        return f"{driver}://postgres@{HOST}:{self.port}/{database}"

    def query(self, database: str, statement: str) -> list[str]:
        """Return the rows of *statement*, columns separated by ``|``."""
        done = self._psql(database, statement)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def _psql(self, database: str, statement: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / "psql"), "-qAtX", self.url(database), "-c", statement]
        return subprocess.run(command, capture_output=True, text=True, check=False)


class MariaDB:
    """A private MariaDB server; as root it runs as the user ``mysql``. Its user is ``root``.

    Args:
        disk: The directory for its files; None for that of temporary files.
    """

    def __init__(self, disk: Path | None = None) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="mariadb-", dir=disk))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("mysql")
            os.chown(self._place, owner.pw_uid, owner.pw_gid)
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        with reserve_port() as holder:
            self.port: int = holder.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def program(name: str) -> str | None:
        """Return the path of a program of the server, or None if it is not installed."""
        return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")

    def __enter__(self) -> Self:
        data = f"--datadir={self._place / 'data'}"
        install, server = self.program("mariadb-install-db"), self.program("mariadbd")
        assert install
        assert server
        # Without the machine's own configuration, and with a root that has no password.
        command = [install, "--no-defaults", data, "--auth-root-authentication-method=normal"]
        with suppress(KeyError):
            command.append(f"--user={pwd.getpwuid(self._user['user']).pw_name}")
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        self._command = [
            *(server, "--no-defaults", data, f"--port={self.port}", f"--bind-address={HOST}"),
            *(f"--socket={self._place / 'socket'}", "--innodb-flush-log-at-trx-commit=2"),
        ]
        self.start()
        return self

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **self._user,
        )
        until(lambda: self._mariadb("SELECT 1").returncode == 0, "MariaDB answers")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._place)

    def url(self, database: str) -> str:
        return f"mariadb://root@{HOST}:{self.port}/{database}"

    def query(self, statement: str) -> list[str]:
        """Return the rows of *statement*, columns separated by tabs."""
        done = self._mariadb(statement)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def _mariadb(self, statement: str) -> subprocess.CompletedProcess[str]:
        client = self.program("mariadb")
        assert client
        command = [client, "--no-defaults", "--socket", str(self._place / "socket"), "-u", "root"]
        command += ["-N", "-B", "-e", statement]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass
class WebService:
    """An HTTP server that records each request and gives prepared answers.

    Attributes:
        pages: JSON by path. Any other path is 404.
        methods: Results by the name of an XML-RPC method. An exception becomes a fault, once.
            The result of any other method is None.
        certificate: A PEM file with certificate and key, with which the server speaks TLS.
        calls: The requests. Each is a path, or an XML-RPC method with its parameters.
    """

    pages: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, Any] = field(default_factory=dict)
    certificate: Path | None = None
    calls: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.calls.append(self.path)
                found = self.path in service.pages
                page = service.pages.get(self.path, {"message": "not found"})
                self._answer(200 if found else 404, json.dumps(page))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(200, service.call(body))

            def _answer(self, status: int, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                kind = "text/xml" if text.startswith("<") else "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{HOST}:{self._server.server_address[1]}"

    def call(self, request: bytes) -> str:
        """Record a call of XML-RPC and return its answer."""
        parameters, method = xmlrpc.client.loads(request, use_builtin_types=True)
        self.calls.append((method, parameters))
        result = self.methods.get(str(method))
        if isinstance(result, Exception):
            del self.methods[str(method)]
            return xmlrpc.client.dumps(xmlrpc.client.Fault(1, str(result)))
        return xmlrpc.client.dumps((result,), methodresponse=True, allow_none=True)


def self_signed(path: Path) -> Path:
    """Write a certificate for 127.0.0.1, and its key, to *path*."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(encoding) + private)
    return path
