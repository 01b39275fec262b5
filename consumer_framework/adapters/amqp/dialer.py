# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks the names of brokers up, and connects to one address after the other.

A host has the addresses that ``getaddrinfo`` gives, IPv6 and IPv4, in its order. The factory in
:mod:`.connection` says when the next one is due, and when to begin with the first host again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service as TwistedService
from twisted.internet import defer
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.settings import Address

    from .connection import Factory, ReactorClock

# Seconds.
LOOKUP_TIMEOUT = 30.0
CONNECT_TIMEOUT = 30.0
# The same where another address can be tried.
SHORT_CONNECT_TIMEOUT = 10.0


class Dialer(TwistedService):
    """Connects a factory to the next address, each time it is asked to.

    Args:
        hosts: Where brokers are, in the order to try them.
        factory: Twisted's client factory; it is told of lookups that fail, too.
        clock: Twisted's reactor.
        tls_for: Returns the options of a TLS connection to a host; None without TLS.

    Attributes:
        host: The latest host.
        address: Its latest address; "" before the first one is known.
    """

    def __init__(
        self,
        hosts: Sequence[Address],
        factory: Factory,
        clock: ReactorClock,
        tls_for: Callable[[str], Any] | None,
    ) -> None:
        self.host = hosts[0]
        self.address = ""
        self._hosts = tuple(hosts)
        self._factory = factory
        self._clock = clock
        self._tls_for = tls_for
        self._later_hosts: deque[Address] = deque()
        self._addresses: deque[str] = deque()
        self._has_several = False
        self._connection: Any = None
        self._lookup: defer.Deferred[Any] | None = None

    def startService(self) -> None:  # noqa: N802 -- Twisted's name
        """Dial the first address."""
        super().startService()  # type: ignore[no-untyped-call]
        self.dial()

    def stopService(self) -> Any:  # noqa: N802 -- Twisted's name
        """Dial no more, and disconnect."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._lookup is not None:
            self._lookup.cancel()
        if self._connection is not None:
            self._connection.disconnect()

    @property
    def has_another(self) -> bool:
        """True while there is an address that was not tried in this round."""
        return bool(self._addresses or self._later_hosts)

    @property
    def text(self) -> str:
        """The host as ``HOST:PORT``, with the address where the host has several."""
        address = f" ({self.address})" if self._has_several and self.address else ""
        return f"{self.host}{address}"

    def begin_anew(self) -> None:
        """Dial the first address of the first host the next time."""
        self._addresses.clear()
        self._later_hosts.clear()

    def dial(self) -> None:
        """Connect to the next address; the factory is told of the outcome."""
        if self._addresses:
            self._connect()
            return
        if not self._later_hosts:
            self._later_hosts.extend(self._hosts)
        self.host, self.address = self._later_hosts.popleft(), ""
        self._has_several = False
        receiver = _AddressReceiver()
        self._clock.nameResolver.resolveHostName(
            receiver, self.host.name, self.host.port, transportSemantics="TCP"
        )
        self._lookup = receiver.done
        receiver.done.addTimeout(LOOKUP_TIMEOUT, self._clock)
        receiver.done.addCallbacks(self._found, self._not_found)

    def _found(self, addresses: list[str]) -> None:
        self._lookup = None
        if not self.running:
            return
        self._addresses.extend(addresses)
        self._has_several = len(addresses) > 1
        if addresses:
            self._connect()
        else:
            self._factory.unreachable(DNSLookupError(f'no address for "{self.host.name}"'))

    def _not_found(self, failure: Any) -> None:
        self._lookup = None
        if self.running:
            late = failure.check(defer.TimeoutError)
            why = f"no answer in {LOOKUP_TIMEOUT:.0f} s" if late else failure.getErrorMessage()
            error = DNSLookupError(f'looking up "{self.host.name}" failed: {why}')
            self._factory.unreachable(error)

    def _connect(self) -> None:
        self.address = self._addresses.popleft()
        timeout = SHORT_CONNECT_TIMEOUT if self.has_another else CONNECT_TIMEOUT
        where = (self.address, self.host.port, self._factory)
        if self._tls_for is None:
            self._connection = self._clock.connectTCP(*where, timeout=timeout)
            return
        try:
            options = self._tls_for(self.host.name)
        except Exception as error:  # noqa: BLE001 -- files, OpenSSL's errors, Twisted's
            # They may be right again at the next attempt.
            unusable = ConnectionError(f"the files of [tls] cannot be used: {error}")
            self._factory.unreachable(unusable)
        else:
            self._connection = self._clock.connectSSL(*where, options, timeout=timeout)


@implementer(IResolutionReceiver)
class _AddressReceiver:
    """Collects the addresses of one name."""

    def __init__(self) -> None:
        self.done: defer.Deferred[list[str]] = defer.Deferred()
        self._addresses: list[str] = []

    def resolutionBegan(self, _resolution: object) -> None:  # noqa: N802 -- Twisted's name
        pass

    def addressResolved(self, address: Any) -> None:  # noqa: N802 -- Twisted's name
        if address.host not in self._addresses:
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:  # noqa: N802 -- Twisted's name
        if not self.done.called:
            self.done.callback(self._addresses)
