# SPDX-License-Identifier: GPL-2.0-or-later
"""Failover over a list of endpoints, for the messengers whose library has none or half of one.

A :class:`Failover` keeps one :class:`Link` to one endpoint. If the link fails, the messages whose
fate is unknown go to the next endpoint. In one call each endpoint gets one new connection,
beginning behind the endpoint that failed; so the only endpoint of a list is connected to again.
After that the messages are the caller's again, and the next call goes on with the next endpoint.

An endpoint that blocks its publishers (a memory alarm) has perhaps taken messages that it confirms
only after the alarm. Its link is the only one that will see these confirmations. So after the last
endpoint a blocked link is kept: the next call waits for the confirmations, and sends nothing twice.
"""

from __future__ import annotations

import ssl
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from . import EVERYTHING, Retry, Scope, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Endpoints, Feature, Result

# A blocked link is kept for this many times the timeout of the endpoints, before another is tried.
_PATIENCE = 10


class BlockedError(ConnectionError):
    """The endpoint does not take messages at present, and says so. The link is of use later."""


class Link(Protocol):
    """One connection to one endpoint."""

    def send(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch* in its order, and write the result of each message under its number.

        Raises:
            ConnectionError: The link is of no use any more. The messages without a result may have
                been taken.
        """
        ...

    def close(self) -> None:
        """Close the connection, whatever its state is. Never raises."""
        ...


class Failover(ABC):
    """A messenger with one link to one of several endpoints.

    Args:
        endpoints: The endpoints in the order to try them.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._link: Link | None = None
        self._at = 0
        self._blocked_since: float | None = None

    @property
    def features(self) -> frozenset[Feature]:
        """The properties of a message that this messenger keeps: all."""
        return EVERYTHING

    @abstractmethod
    def connect(self, url: str) -> Link:
        """Connect to the endpoint at *url*, within the timeout of the endpoints.

        Raises:
            OSError: It cannot be reached, or refuses the connection.
        """

    def open(self) -> None:
        """Connect to the first endpoint that answers. Does nothing if there is a connection.

        Raises:
            ConnectionError: None of them does; the message has the reason of each.
        """
        faults: list[str] = []
        for _ in self.endpoints.urls:
            if self._link is not None or self._connected(faults):
                return
        if self._link is None:
            raise ConnectionError(_reason(faults))

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Send *batch* in its order; see :meth:`.Messenger.send_many`."""
        fates: dict[int, Result] = {}
        faults: list[str] = []
        attempts = len(self.endpoints.urls)
        vetted = self.features
        while rest := [pair for pair in enumerate(batch) if pair[0] not in fates]:
            if self._link is None:
                if not attempts:
                    break
                attempts -= 1
                if not self._connected(faults):
                    continue
            try:
                self._link_in_use.send(self._unchanged(rest, vetted, fates), fates)
                self._blocked_since = None
            except BlockedError as error:
                faults.append(f"{self._name}: {error}")
                if self._keeps_blocked_link(attempts):
                    break
                self._abandon()
            except OSError as error:
                faults.append(f"{self._name}: {error}")
                self._abandon()
        unknown = Retry(_reason(faults)) if faults else Retry("no endpoint is configured")
        return [fates.get(number, unknown) for number in range(len(batch))]

    def close(self) -> None:
        """Close the connection. Doing it twice does no harm."""
        link, self._link = self._link, None
        self._blocked_since = None
        if link is not None:
            link.close()

    @property
    def is_connected(self) -> bool:
        """True if there is a connection, as far as is known."""
        return self._link is not None

    @property
    def endpoint(self) -> str:
        """The host and port of the endpoint in use; ``""`` without a connection."""
        return "" if self._link is None else self._name

    @property
    def _link_in_use(self) -> Link:
        assert self._link is not None  # noqa: S101 -- the caller has connected
        return self._link

    @property
    def _name(self) -> str:
        return host_of(self.endpoints.urls[self._at])

    def _unchanged(
        self,
        batch: list[tuple[int, Outgoing]],
        vetted: frozenset[Feature],
        fates: dict[int, Result],
    ) -> list[tuple[int, Outgoing]]:
        """Leave out the messages that only the endpoint before keeps unchanged.

        The caller knew the features of that endpoint. It gets these messages back, and asks again.
        """
        features = self.features
        if features >= vetted:
            return batch
        rest = []
        for number, message in batch:
            reason = refusal(message, features)
            if reason and not refusal(message, vetted):
                fates[number] = Retry(f"at {self._name}: {reason}", Scope.MESSAGE)
            else:
                rest.append((number, message))
        return rest

    def _connected(self, faults: list[str]) -> bool:
        try:
            self._link = self.connect(self.endpoints.urls[self._at])
        except OSError as error:
            faults.append(f"{self._name}: {error}")
            self._at = (self._at + 1) % len(self.endpoints.urls)
            return False
        return True

    def _abandon(self) -> None:
        self.close()
        self._at = (self._at + 1) % len(self.endpoints.urls)

    def _keeps_blocked_link(self, attempts: int) -> bool:
        now = time.monotonic()
        if self._blocked_since is None:
            if attempts and len(self.endpoints.urls) > 1:
                return False
            self._blocked_since = now
        return now - self._blocked_since < _PATIENCE * self.endpoints.timeout


def host_of(url: str) -> str:
    """Return host and port of *url*, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2] or "localhost"


def tls_context(endpoints: Endpoints) -> ssl.SSLContext:
    """Return a context that checks the server, and has the certificate of the client.

    Its files are read at each call, so that a new certificate is used with the next connection.

    Raises:
        OSError: A file is missing, unreadable or damaged.
    """
    context = ssl.create_default_context(cafile=endpoints.ca_cert)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Default since Python 3.13, and stricter than the consumers of the same broker are.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if endpoints.certfile and endpoints.keyfile:
        context.load_cert_chain(endpoints.certfile, endpoints.keyfile)
    return context


def _reason(faults: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(faults)) or "no endpoint is configured"
