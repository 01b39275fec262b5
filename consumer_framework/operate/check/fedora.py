# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks the rules of Fedora's broker, for a file that connects to it.

The rules are those of Fedora Infrastructure (docs.fedoraproject.org/en-US/infra/developer_guide/
messaging). ``/pubsub`` is the virtual host of Fedora's own applications: an account creates nothing
and reads only queues whose names begin with its own name. ``/public_pubsub`` is open to everybody
with the certificates in the package fedora-messaging: its queues have a UUID as their name, and do
not last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from consumer_framework.core.errors import ExitCode, Problem
from consumer_framework.settings import (
    PRIVATE,
    PUBLIC,
    is_fedoras_host,
    toml_path,
    virtual_host,
)

from .findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.settings import Queue, Settings

    from .findings import Finding

# The exchange of all messages, and that of the ZeroMQ publishers before it.
EXCHANGE, HISTORICAL = "amq.topic", "zmq.topic"
# The environment suffix of Fedora's Ansible, in the names of accounts.
STAGING_SUFFIX = ".stg"
# A property with this value was not set: fedora-messaging writes it.
_UNKNOWN = "Unknown"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PLACEHOLDER = "00000000-0000-0000-0000-000000000000"
_CAPS = {
    PRIVATE: "a queue keeps 1 GiB at most: beyond it, the broker drops the oldest messages",
    PUBLIC: "a queue keeps 50 MB at most, and is deleted after 1h without a consumer",
}
_CERTIFICATE = {
    PRIVATE: "ask Fedora Infrastructure for a certificate, in a ticket with the name of the user",
    PUBLIC: "name those of the package fedora-messaging, in /etc/fedora-messaging",
}


def way_to_lasting_queues(settings: Settings) -> str:
    """Return the way to a queue that lasts, if the file's virtual host has none; "" if it has."""
    if not settings.is_fedoras or _Login.of(settings, None).vhost != PUBLIC:
        return ""
    return f"ask Fedora Infrastructure for an account on {PRIVATE}, where queues last"


def fedora_findings(
    settings: Settings, common_name: str | None, *, consumes: bool = True
) -> Iterator[Finding]:
    """Find the settings that Fedora's broker refuses, or Fedora's rules forbid.

    Args:
        settings: The configuration. Nothing is found if it is for another broker.
        common_name: The common name in the client certificate; None if it is unknown.
        consumes: False for a relay, which has no queue.
    """
    if not settings.is_fedoras:
        return
    login = _Login.of(settings, common_name)
    yield from _vhost_findings(login)
    yield from _tls_findings(settings, login)
    yield from _user_findings(login)
    yield from _property_findings(settings)
    if settings.publish_exchange != EXCHANGE:
        what = f'Fedora\'s applications take messages from "{EXCHANGE}"'
        yield warning("publish_exchange", what, f'write "{EXCHANGE}", or remove this key')
    if consumes:
        yield from _exchange_findings(settings)
        yield from _queue_findings(settings, login)


@dataclass(frozen=True, slots=True)
class _Login:
    """The account, and the place of it.

    Attributes:
        host: The host name of ``amqp_url``.
        vhost: The virtual host.
        written: The user in ``amqp_url``; "" for none.
        common_name: That of the certificate; "" if it is unknown.
    """

    host: str
    vhost: str
    written: str
    common_name: str

    @classmethod
    def of(cls, settings: Settings, common_name: str | None) -> _Login:
        parts = urlsplit(settings.amqp_url)
        vhost = virtual_host(settings.amqp_url)
        user = unquote(parts.username or "")
        return cls(settings.brokers[0].name.lower(), vhost, user, common_name or "")

    @property
    def user(self) -> str:
        # The broker takes the name of the certificate, whatever the URL says.
        return self.common_name or self.written

    @property
    def path(self) -> str:
        return "tls.certfile" if self.common_name else "amqp_url"


def _vhost_findings(login: _Login) -> Iterator[Finding]:
    if login.vhost in _CAPS:
        yield info("amqp_url", f"on {login.vhost}, {_CAPS[login.vhost]}")
    elif login.vhost.strip("/") in {"", "pubsub", "public_pubsub"}:
        what = f'the virtual host is "{login.vhost}", which Fedora\'s broker does not give'
        cure = "end the URL with /%2Fpubsub, or for everybody's account with /%2Fpublic_pubsub"
        yield error(Problem("amqp_url", what, cure), ExitCode.CONNECTION)
    else:
        what = f'the virtual host "{login.vhost}" has rules of its own, which are not checked'
        yield info("amqp_url", what)


def _tls_findings(settings: Settings, login: _Login) -> Iterator[Finding]:
    if not settings.amqp_url.startswith("amqps:"):
        what = "Fedora's broker takes no connection without TLS"
        yield error(Problem("amqp_url", what, "write amqps://"), ExitCode.CONNECTION)
    cure = _CERTIFICATE.get(login.vhost, _CERTIFICATE[PRIVATE])
    for key, meaning in _TLS_KEYS.items():
        if not getattr(settings.tls, key):
            what = f"is required by Fedora's broker: it is the file with {meaning}"
            yield error(Problem(f"tls.{key}", what, cure), ExitCode.CONNECTION)


_TLS_KEYS = {
    "ca_cert": "the CA certificate that vouches for the broker",
    "certfile": "the certificate of the account",
    "keyfile": "the key of that certificate",
}


def _user_findings(login: _Login) -> Iterator[Finding]:
    if login.common_name and login.written not in {"", login.common_name}:
        what = (
            f'the user "{login.written}" is not the common name "{login.common_name}" of the '
            "certificate, which the broker takes for the user"
        )
        yield warning("amqp_url", what, f'write "{login.common_name}" as the user')
    if login.vhost != PRIVATE or not login.user or not is_fedoras_host(login.host):
        return
    is_staging = ".stg." in login.host
    if is_staging and not login.user.endswith(STAGING_SUFFIX):
        what = f'the user "{login.user}" of the staging broker has no suffix "{STAGING_SUFFIX}"'
        yield warning(login.path, what, f'use the account "{login.user}{STAGING_SUFFIX}"')
    elif not is_staging and login.user.endswith(STAGING_SUFFIX):
        what = f'the user "{login.user}" is one of the staging broker, not of this one'
        yield warning(
            login.path, what, "use the account of production, or rabbitmq.stg.fedoraproject.org"
        )


def _property_findings(settings: Settings) -> Iterator[Finding]:
    properties = settings.client_properties
    if properties.get("app") in (None, "", _UNKNOWN):
        what = "is not set: Fedora's rules require the name of the application"
        yield warning("client_properties.app", what, 'write app = "NAME"')
    if not properties.get("app_version"):
        what = "is not set: Fedora's administrators ask for the version of the application"
        yield info("client_properties.app_version", what, 'write app_version = "VERSION"')


def _exchange_findings(settings: Settings) -> Iterator[Finding]:
    bound = {(binding.queue, binding.exchange) for binding in settings.bindings}
    for index, binding in enumerate(settings.bindings):
        path = f"bindings[{index}].exchange"
        if binding.exchange == HISTORICAL:
            what = f'"{HISTORICAL}" is historical: only ZeroMQ publishers (fedmsg) sent to it'
            is_alone = (binding.queue, EXCHANGE) not in bound
            cure = f'bind to "{EXCHANGE}"' if is_alone else "remove this binding"
            yield (warning if is_alone else info)(path, what, cure)
        elif binding.exchange not in {EXCHANGE, ""}:
            what = f'"{binding.exchange}" is no exchange of Fedora\'s messages'
            yield warning(path, what, f'bind to "{EXCHANGE}"')


def _queue_findings(settings: Settings, login: _Login) -> Iterator[Finding]:
    look = {PRIVATE: _private_findings, PUBLIC: _public_findings}.get(login.vhost)
    for name, queue in settings.queues.items() if look else ():
        assert look is not None  # noqa: S101 -- the line above
        yield from look(name, queue, _passive(settings, name, queue), login)


def _passive(settings: Settings, name: str, queue: Queue) -> tuple[bool, str]:
    # The value in force, and the key that has it.
    own = queue.passive is not None
    key = toml_path("queues", (name, "passive")) if own else "passive_declares"
    return settings.is_passive(queue), key


def _private_findings(
    name: str, _: Queue, passive: tuple[bool, str], login: _Login
) -> Iterator[Finding]:
    is_passive, key = passive
    if not is_passive:
        what = f"must be true: on {PRIVATE} no account may create queues and bindings"
        cure = "the role rabbit/queue of Fedora's Ansible creates them"
        yield error(Problem(key, what, cure), ExitCode.BAD_DECLARATION)
    path = toml_path("queues", (name,))
    prefix = login.user or "the user's name"
    if not name:
        what = f"on {PRIVATE} the broker names no queue: no account may create one"
        cure = f"declare [queues.NAME]; NAME begins with {prefix}"
        yield error(Problem(path, what, cure), ExitCode.BAD_DECLARATION)
    elif login.user and not name.startswith(login.user):
        what = f'the name does not begin with "{login.user}", and this user may read no other queue'
        cure = f'have the role rabbit/queue create "{login.user}_{name}", for one'
        yield error(Problem(path, what, cure), ExitCode.PERMISSION)


def _public_findings(
    name: str, queue: Queue, passive: tuple[bool, str], _: _Login
) -> Iterator[Finding]:
    path = toml_path("queues", (name,))
    if name and not _UUID.fullmatch(name):
        what = f"the name is no UUID, and {PUBLIC} allows no other"
        yield error(Problem(path, what, "take the output of uuidgen"), ExitCode.BAD_DECLARATION)
    elif name == _PLACEHOLDER:
        what = "the name is that of fedora-messaging's example: others take messages of the queue"
        yield warning(path, what, "take the output of uuidgen")
    if passive[0]:
        what = f"must be false: on {PUBLIC} the instance creates its own queue"
        yield warning(passive[1], what, "set it to false, or remove it")
    yield from _lifetime_findings(path, queue)


def _lifetime_findings(path: str, queue: Queue) -> Iterator[Finding]:
    if queue.durable:
        what = f"a queue on {PUBLIC} does not last: the broker deletes it 1h after its consumer"
        yield warning(f"{path}.durable", what, "set it to false")
    if not queue.auto_delete:
        what = "the queue stays for up to 1h after its consumer, and fills memory for nobody"
        yield info(f"{path}.auto_delete", what, "set it to true")
    if not queue.exclusive:
        what = f"everybody on {PUBLIC} may take messages from a queue that is not exclusive"
        yield warning(f"{path}.exclusive", what, "set it to true")
