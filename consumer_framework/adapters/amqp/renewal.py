# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS as fedora-messaging configures it, read again while the process runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pika
from fedora_messaging import config
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.twisted import service as upstream
from OpenSSL.SSL import Error as OpenSSLError

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class TlsOptions:
    """What TLS connections are made with: the files as they are when a connection begins.

    Args:
        parameters: The connections', as pika has them: whether the broker is shown a certificate
            is in there.
    """

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters
        # By host: what its latest connection was made with.
        self._latest: dict[str, Any] = {}

    def for_host(self, host: str) -> Any:
        """Return the options of a new connection to *host*, whose certificate must name it.

        Files that cannot be used, for they are being replaced, leave those of before in use.
        """
        try:
            fresh = _fresh(host)
            self._latest[host] = upstream._ssl_context_factory(fresh)  # noqa: SLF001
        except _UNUSABLE as error:
            if host not in self._latest:
                raise
            _log.warning("the files of [tls] cannot be used; those of before still are: %s", error)
        else:
            self._use(fresh)
        return self._latest[host]

    def prepare(self) -> Callable[[], None]:
        """Read the files that fedora-messaging's configuration names now.

        Returns:
            What makes the next connection use them.

        Raises:
            ConfigurationError: They cannot be used.
        """
        try:
            fresh = _fresh(self._parameters.host)
            upstream._ssl_context_factory(fresh)  # noqa: SLF001 -- nobody else reads [tls]
        except _UNUSABLE as error:
            what = f"the files cannot be used: {error}"
            raise ConfigurationError(Problem("tls", what, "name PEM files")) from error
        return lambda: self._use(fresh)

    def _use(self, fresh: Any) -> None:
        self._parameters.credentials = fresh.credentials
        self._parameters.ssl_options = fresh.ssl_options


_UNUSABLE = (OSError, ValueError, OpenSSLError, ConfigurationException)


def _fresh(host: str) -> Any:
    """Return parameters for *host* as the configuration, and the files, say now."""
    fresh: Any = pika.URLParameters(config.conf["amqp_url"])
    fresh.host = host
    upstream._configure_tls_parameters(fresh)  # noqa: SLF001 -- nobody else reads [tls]
    return fresh
