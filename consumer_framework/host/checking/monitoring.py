# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the monitoring server can have its port."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from consumer_framework.adapters.journal.files import is_locked_elsewhere
from consumer_framework.core.errors import Problem
from consumer_framework.core.findings import error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Monitoring


def monitoring_findings(monitoring: Monitoring | None, directory: Path) -> Iterator[Finding]:
    """Say who has the port, unless the instance itself runs and has it.

    Args:
        monitoring: Where the server is to listen; None for no server.
        directory: The state directory, which the instance has locked while it runs.
    """
    if monitoring is None or is_locked_elsewhere(directory):
        return
    family = socket.AF_INET6 if ":" in monitoring.address else socket.AF_INET
    with socket.socket(family) as probe:
        # As Twisted does: a connection that has just ended is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((monitoring.address, monitoring.port))
            probe.listen(1)
        except OSError as refused:
            if refused.errno == errno.EADDRINUSE:
                what = f"cannot listen: {os.strerror(refused.errno)}"
                yield error(Problem("monitoring.port", what, "use another port"))
