# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads fedora-messaging's configuration file, and gives it to fedora-messaging.

The whole file is checked here before upstream sees it. Types and ranges are checked by
:mod:`consumer_framework.settings`; this module adds the problems that only the libraries for a
value, and the disk, can show. Upstream replaces tables that the file has, so that ``[qos]`` with
one key loses the other one's default; here they are merged.
"""

from __future__ import annotations

import copy
import re
import ssl
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pika
from fedora_messaging import config as upstream
from fedora_messaging.exceptions import ConfigurationException

from consumer_framework import settings as core
from consumer_framework.core import secrets
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.settings import Tls, credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.settings.credentials import Credentials

# Stands for the name of the file if there is none.
BUILT_IN = "built-in configuration"
_MERGED_TABLES = ("qos", "tls")
_SHORT_STRING = 255
# RabbitMQ's own, for everybody on its machine.
_NO_SECRET = "guest"  # noqa: S105 -- it is none


# The file.


@dataclass(frozen=True, slots=True)
class Access:
    """The sources of a configuration file's text and of the credentials that it names.

    Attributes:
        handed_over: The copy of the file that systemd made as a credential, read if only root may
            read the file itself; None for none.
        credentials: The source of every ``credential:NAME``; None if such text means nothing.
        given: The text of the file, from somebody who may read it; preferred to *handed_over*.
        lenient: A credential that only the service itself can have is no problem, nor is its
            missing value.
    """

    handed_over: Path | None = None
    credentials: Credentials | None = None
    lenient: bool = False
    given: bytes | None = field(default=None, repr=False)


PLAIN = Access()


def read(path: Path, access: Access = PLAIN) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        access: Has the text that is read instead, if this user may not read *path*.

    Raises:
        ConfigurationError: It is not there, cannot be read, or is not TOML.
    """
    try:
        text = _bytes(path, access).decode()
        return {key.lower(): value for key, value in tomllib.loads(text).items()}
    except FileNotFoundError:
        problem = _missing(path)
    except IsADirectoryError:
        problem = Problem("", "is a directory", "name a file in it")
    except PermissionError as error:
        cure = (
            "let the user that this runs as read it; for a service that is not to: systemctl edit, "
            f"[Service] LoadCredential=fm-consumer.toml:{path}"
        )
        problem = Problem("", f"cannot be read: {error.strerror}", cure)
    except OSError as error:
        problem = Problem("", f"cannot be read: {error.strerror}", "check its permissions")
    except UnicodeDecodeError as error:
        problem = Problem("", f"is not UTF-8: byte {error.start}", "save it as UTF-8")
    except RecursionError:
        problem = Problem("", "is nested too deeply", "simplify it")
    except ValueError as error:
        # TOMLDecodeError; Python refuses integers of thousands of digits itself.
        what = f"is not TOML: {error}"
        problem = Problem("", what, "mend the syntax there", line=_line_of(error))
    raise ConfigurationError(problem, source=str(path))


# The end of a message of tomllib; newer Pythons have the number as an attribute, too.
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)$")


def _line_of(error: ValueError) -> int:
    found = _AT_LINE.search(str(error))
    return int(found[1]) if found else 0


def lines_of(path: Path | None, access: Access = PLAIN) -> core.TomlLines:
    """Return the lines of the keys of a file; none if it cannot be read, or is not TOML."""
    try:
        return core.TomlLines(_bytes(path, access).decode() if path else "")
    except (OSError, UnicodeDecodeError):
        return core.TomlLines("")


def _missing(path: Path) -> Problem:
    if path.is_symlink():
        what = f"is a symbolic link to {path.readlink()}, which is not there"
        return Problem("", what, "create that file, or mend the link")
    return Problem("", "there is no such file", "create it, or name another one")


def _bytes(path: Path, access: Access) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:
        if access.given is not None:
            return access.given
        if access.handed_over is None:
            raise
        return access.handed_over.read_bytes()


def references(path: Path, access: Access = PLAIN) -> tuple[credentials.Reference, ...]:
    """Return every ``credential:NAME`` in a file.

    Raises:
        ConfigurationError: It cannot even be read.
    """
    return credentials.references(read(path, access))


def substituted(path: Path | None, access: Access = PLAIN) -> credentials.Substituted:
    """Return the document of a file, with credentials in the place of their names.

    Raises:
        ConfigurationError: It cannot even be read.
    """
    written = read(path, access) if path else {}
    if access.credentials is None:
        return credentials.Substituted(written)
    found = credentials.substitute(written, access.credentials)
    if access.lenient:
        return found
    return replace(found, problems=(*found.problems, *found.unseen), unseen=())


# The configuration.


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read and checked.

    Attributes:
        settings: Its values.
        document: The same values as fedora-messaging takes them.
    """

    settings: core.Settings
    document: dict[str, Any]


def load(
    path: Path | None, overrides: core.Overrides = core.NO_OVERRIDES, access: Access = PLAIN
) -> core.Settings:
    """Load, check and freeze a configuration, and make it fedora-messaging's own.

    Args:
        path: The TOML file; None for fedora-messaging's defaults.
        overrides: Values of the command line, which replace those of the file.
        access: The sources of the file's text and of its credentials.

    Raises:
        ConfigurationError: With every problem there is, each with the file and its TOML path.
    """
    loaded = examine(path, overrides, access)
    give_to_upstream(loaded.document)
    return loaded.settings


def examine(
    path: Path | None, overrides: core.Overrides = core.NO_OVERRIDES, access: Access = PLAIN
) -> Loaded:
    """Load, check and freeze a configuration, as :func:`load` does, without giving it away."""
    return _examined(substituted(path, access), overrides, str(path) if path else BUILT_IN)


def load_values(
    values: dict[str, Any], source: str, overrides: core.Overrides = core.NO_OVERRIDES
) -> core.Settings:
    """Load, check and freeze a configuration without a file, as :func:`load` does.

    Args:
        values: The values that a file would have; the others are fedora-messaging's defaults.
        source: The name of their origin, for errors.
        overrides: As for :func:`load`.

    Raises:
        ConfigurationError: With every problem there is.
    """
    loaded = _examined(credentials.Substituted(values), overrides, source)
    give_to_upstream(loaded.document)
    return loaded.settings


def _examined(written: credentials.Substituted, overrides: core.Overrides, source: str) -> Loaded:
    try:
        merged = _merge(written.document)
        _keep_password(merged["amqp_url"], "amqp_url")
        for url in _urls_of_outbox(merged):
            _keep_password(url, "a URL of the outbox")
        settings = _check(core.override(merged, overrides), written)
    except ConfigurationError as error:
        raise ConfigurationError(*error.problems, source=source) from None
    return Loaded(settings, core.override(merged, overrides))


def preview(path: Path, access: Access = PLAIN) -> dict[str, Any]:
    """Give a file that :func:`load` refuses to fedora-messaging, for authors' modules to see.

    Only a process that looks for more problems, and then ends, may do this.

    Raises:
        ConfigurationError: It cannot even be read.
    """
    merged = _merge(substituted(path, access).document)
    upstream.conf.loaded = True
    upstream.conf.update(merged)
    return merged


def _merge(written: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = copy.deepcopy(dict(upstream.DEFAULTS))
    merged = {**defaults, **written}
    for name in _MERGED_TABLES:
        if isinstance(merged[name], dict):
            merged[name] = {**defaults[name], **merged[name]}
    return merged


def _check(merged: dict[str, Any], written: credentials.Substituted) -> core.Settings:
    document = {
        **merged,
        "qos": _qos(merged["qos"], written.document),
        "log_config": written.document.get("log_config"),
        "monitoring": merged["monitoring"] or None,
    }
    problems = list(_problems(merged))
    settings = None
    try:
        settings = core.parse(document, default_bindings="bindings" not in written.document)
    except ConfigurationError as error:
        problems = [*error.problems, *problems]
    # The stand-in for a missing credential is not the file's fault.
    problems = [*written.problems, *(p for p in problems if p.path not in written.absent)]
    if problems or settings is None:
        raise ConfigurationError(*(problems or written.unseen))
    return settings


def _qos(merged: Any, written: dict[str, Any]) -> Any:
    # Without upstream's default of ``prefetch_count``: slots decide unless the file names one.
    if not isinstance(merged, dict):
        return merged
    said = written.get("qos", {})
    return {k: v for k, v in merged.items() if k != "prefetch_count" or k in said}


def give_to_upstream(document: dict[str, Any]) -> dict[str, Any]:
    """Make *document* fedora-messaging's configuration, which handlers read too.

    Args:
        document: The document of :class:`Loaded`, or the return value of this function.

    Returns:
        The configuration before.
    """
    before = dict(upstream.conf.items())
    upstream.conf.loaded = True
    upstream.conf.update(document)
    upstream.validate_monitoring(upstream.conf["monitoring"])
    return before


# Problems that only libraries and the disk can show. Wrong types are found elsewhere.


def _problems(merged: dict[str, Any]) -> Iterator[Problem]:
    yield from _url_problems(merged)
    yield from _tls_problems(merged)
    yield from _reserved(merged)
    yield from _unencodable(merged)


def _url_problems(merged: dict[str, Any]) -> list[Problem]:
    # No problem shows the URL itself, which may hold a password.
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


def _urls_of_outbox(merged: dict[str, Any]) -> list[Any]:
    table: Any = merged
    for key in ("consumer_config", "framework", "outbox"):
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return []
    endpoints = table.get("endpoints")
    return [table.get("database"), *(endpoints if isinstance(endpoints, list) else ())]


def _keep_password(url: Any, name: str) -> None:
    try:
        password = urlsplit(url).password if isinstance(url, str) else None
    except ValueError:
        return
    if password and password != _NO_SECRET:
        for form in {password, unquote(password)}:
            secrets.hide(form, f"the password of {name}")


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
    except ValueError:
        return Problem(f"tls.{key}", "no file has a name with a null character", "name a PEM file")
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


def _reserved(merged: dict[str, Any]) -> list[Problem]:
    if not isinstance(merged["client_properties"], dict):
        return []
    try:
        upstream.validate_client_properties(merged["client_properties"])
    except ConfigurationException as error:
        return [Problem("client_properties", error.message, "remove that key")]
    return []


def _unencodable(merged: dict[str, Any]) -> list[Problem]:
    # TOML has types, and lengths, that AMQP tables do not have.
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
    # AMQP 0-9-1, section 4.2.5.3: a short string has at most 255 bytes.
    if isinstance(text, str) and len(text.encode()) > _SHORT_STRING:
        return Problem(path, f'"{text[:20]}..." is longer than 255 bytes', "shorten it")
    return None
