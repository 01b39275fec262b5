# SPDX-License-Identifier: GPL-2.0-or-later
"""What is allowed, and outside the guarantee: each check looks at settings alone."""

from .bindings import binding_findings
from .flow import flow_findings
from .queues import queue_findings
from .tasks import tasks_problem

__all__ = ["binding_findings", "flow_findings", "queue_findings", "tasks_problem"]
