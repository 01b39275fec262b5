# SPDX-License-Identifier: GPL-2.0-or-later
"""What is allowed, and outside the guarantee: each check looks at settings alone."""

from .flow import flow_findings
from .queues import queue_findings

__all__ = ["flow_findings", "queue_findings"]
