# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with a configuration that only the libraries for it, and the disk, can tell.

The values' types are checked elsewhere; nothing is said of wrong types here.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pika
from fedora_messaging import config as upstream
from fedora_messaging.exceptions import ConfigurationException

from consumer_framework.core import secrets
from consumer_framework.core.errors import Problem
from consumer_framework.core.settings import Tls

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORT_STRING = 255
# RabbitMQ's own, for everybody on its machine.
_NO_SECRET = "guest"  # noqa: S105 -- it is none


def document(merged: dict[str, Any]) -> Iterator[Problem]:
    """Say what is wrong with a configuration, fedora-messaging's defaults under it."""
    yield from _url_problems(merged)
    yield from _tls_problems(merged)
    yield from _reserved(merged)
    yield from _unencodable(merged)


def keep_password(url: Any) -> None:
    """Let nobody show the password of *url*, be it from a credential or not."""
    try:
        password = urlsplit(url).password if isinstance(url, str) else None
    except ValueError:
        return
    if password and password != _NO_SECRET:
        for form in {password, unquote(password)}:
            secrets.keep(form, "the password of amqp_url")


def _reserved(merged: dict[str, Any]) -> list[Problem]:
    if not isinstance(merged["client_properties"], dict):
        return []
    try:
        upstream.validate_client_properties(merged["client_properties"])
    except ConfigurationException as error:
        return [Problem("client_properties", error.message, "remove that key")]
    return []


def _unencodable(merged: dict[str, Any]) -> list[Problem]:
    """TOML has types, and lengths, that AMQP tables do not."""
    problems = [_table_problem("client_properties", merged["client_properties"])]
    queues, bindings = merged["queues"], merged["bindings"]
    for name, queue in queues.items() if isinstance(queues, dict) else ():
        problems.append(_length_problem("queues", name))
        if isinstance(queue, dict):
            path = f'queues."{name}".arguments'
            problems.append(_table_problem(path, queue.get("arguments")))
    for index, binding in enumerate(bindings if isinstance(bindings, list) else ()):
        if isinstance(binding, dict):
            path = f"bindings[{index}]"
            problems.append(_table_problem(f"{path}.arguments", binding.get("arguments")))
            keys = binding.get("routing_keys")
            texts = (binding.get("exchange"), *(keys if isinstance(keys, list) else ()))
            problems += [_length_problem(path, text) for text in texts]
    return [problem for problem in problems if problem]


def _table_problem(path: str, table: Any) -> Problem | None:
    try:
        pika.data.encode_table([], table if isinstance(table, dict) else {})
    except Exception as error:  # noqa: BLE001 -- pika raises whatever its encoders do
        what = f"holds a value that AMQP has no type for ({type(error).__name__})"
        return Problem(path, what, "use strings, integers, booleans, dates with time, and tables")
    return None


def _length_problem(path: str, text: Any) -> Problem | None:
    """AMQP 0-9-1, section 4.2.5.3: a short string has at most 255 bytes."""
    if isinstance(text, str) and len(text.encode()) > _SHORT_STRING:
        return Problem(path, f'"{text[:20]}..." is longer than 255 bytes', "shorten it")
    return None


def _url_problems(merged: dict[str, Any]) -> list[Problem]:
    """What is wrong with the URL; never the URL itself, which may hold a password."""
    url = merged["amqp_url"]
    if not isinstance(url, str):
        return []
    if not url.startswith(("amqp://", "amqps://")):
        what, cure = "is not an AMQP URL", 'write "amqps://USER:PASSWORD@HOST/VHOST" (or amqp://)'
        return [Problem("amqp_url", what, cure)]
    try:
        pika.URLParameters(url)
    except Exception:  # noqa: BLE001 -- pika raises whatever its parsers do
        # The error's text may show parts of a password.
        cure = "percent-encode special characters of user, password and vhost, and check the port"
        return [Problem("amqp_url", "cannot be understood", cure)]
    return []


def _tls_problems(merged: dict[str, Any]) -> list[Problem]:
    url, tls = merged["amqp_url"], merged["tls"]
    if not (isinstance(url, str) and url.startswith("amqps:") and isinstance(tls, dict)):
        return []
    files = {key: tls[key] for key in ("ca_cert", "certfile", "keyfile")}
    if not all(value is None or isinstance(value, str) for value in files.values()):
        return []
    problems = [_file_problem(key, value) for key, value in files.items() if value]
    return [p for p in problems if p] or _chain_problems(Tls(**files))


def _file_problem(key: str, value: str) -> Problem | None:
    try:
        Path(value).read_bytes()
    except OSError as error:
        link = Path(value)
        gone = isinstance(error, FileNotFoundError) and link.is_symlink()
        reason = (
            f"it is a symbolic link to {link.readlink()}, which is not there"
            if gone
            else error.strerror
        )
        what = f"{value} cannot be read: {reason}"
        return Problem(f"tls.{key}", what, "name a PEM file that this user can read")
    return None


def _chain_problems(tls: Tls) -> list[Problem]:
    problems = []
    context = ssl.create_default_context()
    if tls.ca_cert:
        try:
            context.load_verify_locations(tls.ca_cert)
        except ssl.SSLError as error:
            what = f"{tls.ca_cert} holds no CA certificates ({error.reason})"
            problems.append(Problem("tls.ca_cert", what, "name a PEM file with certificates"))
    if tls.certfile and tls.keyfile:
        try:
            context.load_cert_chain(tls.certfile, tls.keyfile)
        except ssl.SSLError as error:
            what = f"{tls.keyfile} is not the key of {tls.certfile} ({error.reason})"
            problems.append(Problem("tls.keyfile", what, "name a certificate and its own key"))
    return problems
