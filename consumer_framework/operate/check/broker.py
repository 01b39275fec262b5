# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the brokers, with the account of the instance, about its queues and exchanges."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from consumer_framework.adapters.amqp.inspection import UnreachableError, inspect
from consumer_framework.core.errors import Fault, Problem
from consumer_framework.core.limits import broker_version
from consumer_framework.core.text import plural
from consumer_framework.settings import toml_path

from .findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.adapters.amqp.inspection import BrokerView, QueueView
    from consumer_framework.settings import Settings

    from .findings import Finding

NOT_ASKED = info("", "the broker was not asked", "add --broker")
CANNOT_ASK = info(
    "", "the broker was not asked: that takes a credential that is not to be had here"
)

_BROKERS = "consumer_config.framework.brokers"


def broker_findings(settings: Settings) -> tuple[tuple[int, ...] | None, list[Finding]]:
    """Ask each broker; ask the first one that answers about queues.

    Returns:
        The version of RabbitMQ, None if it is unknown or another broker; and the findings.
    """
    found: list[Finding] = []
    views: list[BrokerView] = []
    faults: list[tuple[str, Fault]] = []
    for address in settings.brokers:
        path = "amqp_url" if address == settings.brokers[0] else _BROKERS
        try:
            view = inspect(settings, address)
        except Fault as fault:
            faults.append((path, fault))
        else:
            views.append(view)
            product = f"{view.product} {view.version}".rstrip()
            found.append(info(path, f"{product} at {view.host} takes the connection"))
    for path, refusal in faults:
        if views and isinstance(refusal, UnreachableError):
            found.append(warning(path, str(refusal), "until then it uses the other brokers"))
        else:
            found.append(error(Problem(path, str(refusal)), refusal.exit_code))
    if not views:
        return None, found
    return _version(views[0]), [
        *found,
        *_cluster_findings(views),
        *_queue_and_rights_findings(views[0]),
    ]


def _cluster_findings(views: list[BrokerView]) -> Iterator[Finding]:
    names = sorted({view.cluster for view in views if view.cluster})
    if len(names) > 1:
        what = f"the brokers are in {len(names)} clusters: {', '.join(names)}"
        cure = "name those of one: an instance consumes from one broker, and does not see others"
        yield warning(_BROKERS, what, cure)


def _version(view: BrokerView) -> tuple[int, ...] | None:
    return broker_version(view.version) if view.product == "RabbitMQ" else None


def _queue_and_rights_findings(view: BrokerView) -> Iterator[Finding]:
    for queue in view.queues:
        yield _queue_finding(queue)
    for fault in view.faults:
        yield error(Problem("bindings", str(fault)), fault.exit_code)
    what = "policies, and the rights to bind and to consume, cannot be seen with this account"
    vhost = shlex.quote(view.vhost)
    queues = f"rabbitmqctl list_queues -p {vhost} name type arguments policy"
    policies = f"rabbitmqctl list_policies -p {vhost}"
    cure = f"the broker's administrators see limits with `{queues}` and `{policies}`"
    yield info("", what, cure)


def _queue_finding(queue: QueueView) -> Finding:
    path = toml_path("queues", (queue.name,))
    if queue.fault is not None:
        return error(Problem(path, str(queue.fault)), queue.fault.exit_code)
    if queue.locked:
        what = "another connection has it exclusively"
        return warning(path, what, "stop that one, unless it is this instance itself")
    if not queue.exists:
        return info(path, "is not there yet; the start makes it, if the account may")
    waiting, consumers = plural(queue.messages, "message"), plural(queue.consumers, "consumer")
    return info(path, f"is there, with {waiting} and {consumers}")
