# SPDX-License-Identifier: GPL-2.0-or-later
"""Posts each message to a URL."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import ssl
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from fedora_messaging.exceptions import ConfigurationException
from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator

from consumer_framework.author.consumer import Consumer
from consumer_framework.core.errors import (
    ConsumerFrameworkError,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Retry,
    Skip,
)
from consumer_framework.core.text import Duration, printable

from .message_json import as_object, line_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fedora_messaging.message import Message

# Bytes of an answer that a failure shows.
_SHOWN = 500
# RFC 9110, section 5.6.2: a token.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONFIGURATION = 78
_GONE = 410
# The longest wait that a server may ask for, in seconds.
_LONGEST_WAIT = 86400.0


class WebhookError(ConsumerFrameworkError):
    """The server could not handle the message.

    Attributes:
        status: The status code of its answer.
    """

    # Its lines would be those of this module.
    needs_traceback = False

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('is no URL of a web server; write "https://HOST/PATH"')
    if parts.username or parts.password:
        raise ValueError('has a user or password; write token = "credential:NAME" instead')
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("has characters that no URL has; percent-encode them")
    _ = parts.port
    return url


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError("is no name of a header")
    return name


def _header_value(text: str) -> str:
    if not text.isprintable() or not text.isascii():
        raise ValueError("has characters that no header has; use printable ASCII")
    return text


_Status: TypeAlias = Annotated[str, Field(pattern=r"^[2-5](\d\d|xx)$")]
_Then: TypeAlias = Literal["done", "skip", "drop", "retry", "quarantine", "dependency", "halt"]


class WebhookConfig(BaseModel):
    """The keys of :class:`Webhook`."""

    url: Annotated[str, AfterValidator(_url)]
    """The messages are posted here."""
    body: Literal["message", "body"] = "message"
    """The JSON that is posted: the message, or its body alone."""
    headers: dict[
        Annotated[str, AfterValidator(_header_name)], Annotated[str, AfterValidator(_header_value)]
    ] = Field(default_factory=dict)
    """More headers of the request."""
    token: SecretStr | None = None
    """Sent as `Authorization: Bearer TOKEN`. Write `"credential:NAME"`."""
    signature_secret: SecretStr | None = None
    """Sign each request with this key. Write `"credential:NAME"`."""
    signature_header: Annotated[str, AfterValidator(_header_name)] = "X-Hub-Signature-256"
    """The header with the signature: `sha256=` and the HMAC-SHA256 of the posted bytes, in hex."""
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """The server may stay silent so long."""
    ca_file: str | None = None
    """Trust the certificate authorities of this PEM file only. Default: those of the system."""
    client_certificate: str | None = None
    """A PEM file with a certificate, and its key, that the server asks for."""
    statuses: dict[_Status, _Then] = Field(default_factory=dict)
    """Other treatments of answers: a status such as `"409"`, or a class such as `"5xx"`, and
    `"done"`, `"skip"`, `"drop"`, `"retry"`, `"quarantine"`, `"dependency"` or `"halt"`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.url.startswith("http:") and (self.ca_file or self.client_certificate):
            raise ValueError("ca_file and client_certificate need a URL with https://")
        for key in ("token", "signature_secret"):
            secret: SecretStr | None = getattr(self, key)
            if secret is not None and not secret.get_secret_value():
                raise ValueError(f"{key} is empty; write the secret, or remove the key")
        if self.token is not None:
            _header_value(self.token.get_secret_value())
        return self


# The treatment of an answer by its status, the exact one first.
_TREATMENTS: dict[str, _Then] = {
    "2xx": "done",
    # The server is another one, or wants another name or password: no message is at fault.
    "3xx": "dependency",
    "401": "dependency",
    "403": "dependency",
    "407": "dependency",
    # Not now.
    "408": "retry",
    "425": "retry",
    "429": "retry",
    "410": "halt",
    "4xx": "quarantine",
    # A proxy has no server, or the server is down.
    "502": "dependency",
    "503": "dependency",
    "504": "dependency",
}

_SIGNALS: dict[str, Callable[[str], Exception]] = {
    "skip": Skip,
    "drop": Drop,
    "quarantine": Quarantine,
    "dependency": DependencyFault,
    "halt": lambda reason: Halt(_CONFIGURATION, reason, requeue=True),
}


def signal_of(
    status: int, reason: str, wait: float | None, statuses: Mapping[str, _Then]
) -> Exception | None:
    """Return the exception that fits an answer; None if the message is done.

    Args:
        status: The status code.
        reason: The answer, in words.
        wait: Seconds that the server asked for; None if it did not.
        statuses: The treatments of the configuration.
    """
    exact, kind = str(status), f"{status // 100}xx"
    found = (
        table[key] for key in (exact, kind) for table in (statuses, _TREATMENTS) if key in table
    )
    treatment = next(found, "failure")
    if treatment == "done":
        return None
    if treatment == "retry" or (treatment == "dependency" and wait is not None):
        return Retry(reason, after=wait)
    make = _SIGNALS.get(treatment)
    return make(reason) if make is not None else WebhookError(reason, status)


def wait_of(header: str | None, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header (RFC 9110, section 10.2.3); None for none."""
    if header is None:
        return None
    try:
        wait = float(header) if header.strip().isdigit() else _until(header) - now
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(wait, 0.0), _LONGEST_WAIT) if math.isfinite(wait) else None


def _until(header: str) -> float:
    return parsedate_to_datetime(header).timestamp()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the message, and the token, are for one server only."""

    def redirect_request(self, *_: Any) -> None:
        """Return None, which makes the redirect an answer like others."""


class Webhook(Consumer):
    """Post each message to a URL, as JSON; the status of the answer decides."""

    Config = WebhookConfig
    config: WebhookConfig

    def setup(self) -> None:
        """Load the certificates.

        Raises:
            ConfigurationException: A file cannot be used.
        """
        # The proxy of $https_proxy and $no_proxy is used, as by other programs.
        https = urllib.request.HTTPSHandler(context=_context(self.config))
        self._opener = urllib.request.build_opener(_NoRedirect, https)

    def handle(self, message: Message) -> None:
        """Post *message*."""
        data = line_of(as_object(message) if self.config.body == "message" else message.body)
        headers = self._headers(message, data)
        request = urllib.request.Request(  # noqa: S310 -- the URL was checked: http or https
            self.config.url, data, headers, method="POST"
        )
        error = self._answer(request)
        if error is not None:
            raise error

    def _headers(self, message: Message, data: bytes) -> dict[str, str]:
        config = self.config
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "consumer_framework",
            # The same for each attempt, so that the server can tell a repetition.
            "Idempotency-Key": printable(message.id).encode("ascii", "replace").decode(),
            **config.headers,
        }
        if config.token is not None:
            headers["Authorization"] = f"Bearer {config.token.get_secret_value()}"
        if config.signature_secret is not None:
            key = config.signature_secret.get_secret_value().encode()
            headers[config.signature_header] = (
                f"sha256={hmac.digest(key, data, hashlib.sha256).hex()}"
            )
        return headers

    def _answer(self, request: urllib.request.Request) -> Exception | None:
        try:
            with self._opener.open(request, timeout=self.config.timeout) as answer:
                return self._signal(answer)
        except urllib.error.HTTPError as error:
            with error:
                return self._signal(error)
        except (OSError, HTTPException) as error:
            # No connection, no name, no trust, no answer, or one that is no HTTP.
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            return DependencyFault(f"{self.config.url} does not answer: {reason}")

    def _signal(self, answer: Any) -> Exception | None:
        text = printable(answer.read(_SHOWN).decode(errors="replace").strip())
        place = answer.headers.get("Location", "") if 300 <= answer.status < 400 else ""  # noqa: PLR2004 -- the class of redirects
        more = f" to {printable(place)}, which is not followed" if place else ""
        reason = (
            f"{self.config.url} answered {answer.status} {printable(answer.reason or '')}{more}"
        )
        wait = wait_of(answer.headers.get("Retry-After"), time.time())
        full = f"{reason}: {text}" if text else reason
        return signal_of(answer.status, full, wait, self.config.statuses)


def _context(config: WebhookConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        raise _unusable("ca_file", config.ca_file, error) from error
    try:
        if config.client_certificate is not None:
            context.load_cert_chain(config.client_certificate)
    except OSError as error:
        raise _unusable("client_certificate", config.client_certificate, error) from error
    return context


def _unusable(key: str, file: Path | str | None, error: OSError) -> ConfigurationException:
    reason = error.strerror or str(error)
    return ConfigurationException(
        f"consumer_config.{key}: {file} cannot be used: {reason}; name a PEM file that this user "
        "can read"
    )
