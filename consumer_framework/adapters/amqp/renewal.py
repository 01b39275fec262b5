# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS as fedora-messaging configures it, read again while the process runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pika
from fedora_messaging import config
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.twisted import service as upstream
from OpenSSL.SSL import Error as OpenSSLError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer  # type: ignore[import-untyped]

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable


@implementer(IOpenSSLClientConnectionCreator)
class TlsOptions:
    """What connections are made with; another connection may be made with other files.

    Args:
        options: Upstream's.
    """

    def __init__(self, options: Any) -> None:
        self._options = options

    def clientConnectionForTLS(self, protocol: Any) -> Any:  # noqa: N802 -- Twisted's name
        """Make the TLS side of a new connection."""
        return self._options.clientConnectionForTLS(protocol)

    def prepare(self, parameters: Any) -> Callable[[], None]:
        """Read the files that fedora-messaging's configuration names now.

        Args:
            parameters: The connection's, as pika has them: whether the broker is shown a
                certificate is in there.

        Returns:
            What makes the next connection use them.

        Raises:
            ConfigurationError: They cannot be used.
        """
        fresh: Any = pika.URLParameters(config.conf["amqp_url"])
        try:
            upstream._configure_tls_parameters(fresh)  # noqa: SLF001 -- nobody else reads [tls]
            options = upstream._ssl_context_factory(fresh)  # noqa: SLF001 -- as above
        except (OSError, ValueError, OpenSSLError, ConfigurationException) as error:
            what = f"the files cannot be used: {error}"
            raise ConfigurationError(Problem("tls", what, "name PEM files")) from error

        def use() -> None:
            self._options = options
            parameters.credentials = fresh.credentials
            parameters.ssl_options = fresh.ssl_options

        return use
