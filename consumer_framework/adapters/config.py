# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads fedora-messaging's configuration file, and gives it to fedora-messaging.

The file is checked here, whole, before upstream sees it. Upstream replaces tables that the file
has, so that ``[qos]`` with one key loses the other one's default; here they are merged.
"""

from __future__ import annotations

import copy
import ssl
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
from fedora_messaging import config as upstream
from fedora_messaging.exceptions import ConfigurationException

from consumer_framework.core import settings as core
from consumer_framework.core.errors import ConfigurationError, Problem

# What stands for the file where there is none.
BUILT_IN = "built-in configuration"
_SHORT_STRING = 255
_MERGED_TABLES = ("qos", "tls")


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigurationError: It is not there, cannot be read, or is not TOML.
    """
    try:
        text = path.read_bytes().decode()
        return {key.lower(): value for key, value in tomllib.loads(text).items()}
    except FileNotFoundError:
        problem = _missing(path)
    except IsADirectoryError:
        problem = Problem("", "is a directory", "name a file in it")
    except OSError as error:
        problem = Problem("", f"cannot be read: {error.strerror}", "check its permissions")
    except UnicodeDecodeError as error:
        problem = Problem("", f"is not UTF-8: byte {error.start}", "save it as UTF-8")
    except RecursionError:
        problem = Problem("", "is nested too deeply", "simplify it")
    except tomllib.TOMLDecodeError as error:
        problem = Problem("", f"is not TOML: {error}", "mend the syntax there")
    raise ConfigurationError(problem, source=str(path))


def _missing(path: Path) -> Problem:
    if path.is_symlink():
        what = f"is a symbolic link to {path.readlink()}, which is not there"
        return Problem("", what, "create that file, or mend the link")
    return Problem("", "there is no such file", "create it, or name another one")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read and checked.

    Attributes:
        settings: What it says.
        document: The same as fedora-messaging takes it.
    """

    settings: core.Settings
    document: dict[str, Any]


def load(path: Path | None, overrides: core.Overrides = core.NO_OVERRIDES) -> core.Settings:
    """Load, check and freeze a configuration, and make it fedora-messaging's own.

    Args:
        path: The TOML file; None for fedora-messaging's defaults.
        overrides: What the command line says instead.

    Raises:
        ConfigurationError: With every problem there is, each with the file and its TOML path.
    """
    loaded = examine(path, overrides)
    give_to_upstream(loaded.document)
    return loaded.settings


def examine(path: Path | None, overrides: core.Overrides = core.NO_OVERRIDES) -> Loaded:
    """As :func:`load`, without making it fedora-messaging's own."""
    written = read(path) if path else {}
    try:
        merged = _merge(written)
        settings = _check(core.override(merged, overrides), written)
    except ConfigurationError as error:
        source = str(path) if path else BUILT_IN
        raise ConfigurationError(*error.problems, source=source) from None
    return Loaded(settings, core.override(merged, overrides))


def preview(path: Path) -> dict[str, Any]:
    """Read a file that :func:`load` refuses, and make of it what authors' modules see.

    For a process that goes no further than to say what else is wrong.

    Raises:
        ConfigurationError: It cannot even be read.
    """
    merged = _merge(read(path))
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


def _check(merged: dict[str, Any], written: dict[str, Any]) -> core.Settings:
    document = {
        **merged,
        "qos": _qos(merged["qos"], written),
        "log_config": written.get("log_config"),
        "monitoring": merged["monitoring"] or None,
    }
    problems = [*_url_problems(merged), *_tls_problems(merged), *_reserved(merged)]
    problems += _unencodable(merged)
    try:
        settings = core.parse(document, default_bindings="bindings" not in written)
    except ConfigurationError as error:
        problems = [*error.problems, *problems]
    if problems:
        raise ConfigurationError(*problems)
    return settings


def _qos(merged: Any, written: dict[str, Any]) -> Any:
    """Upstream's default of ``prefetch_count`` is not the file's word: slots decide without one."""
    if not isinstance(merged, dict):
        return merged
    said = written.get("qos", {})
    return {k: v for k, v in merged.items() if k != "prefetch_count" or k in said}


def give_to_upstream(document: dict[str, Any]) -> dict[str, Any]:
    """Handlers read ``config.conf``, and upstream's connection code does.

    Args:
        document: From :class:`Loaded`, or what this function returned.

    Returns:
        What they read before.
    """
    before = dict(upstream.conf.items())
    upstream.conf.loaded = True
    upstream.conf.update(document)
    upstream.validate_monitoring(upstream.conf["monitoring"])
    return before


# Those below look at values whose type is checked elsewhere, and say nothing of wrong types.


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
    return [p for p in problems if p] or _chain_problems(core.Tls(**files))


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


def _chain_problems(tls: core.Tls) -> list[Problem]:
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
