# SPDX-License-Identifier: GPL-2.0-or-later
"""What the broker says to the account of the instance, and what it does not say."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from consumer_framework.adapters.amqp.inspection import inspect
from consumer_framework.core.errors import Fault, Problem
from consumer_framework.core.findings import error, info, warning
from consumer_framework.core.settings import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.adapters.amqp.inspection import QueueView, View
    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Settings

NOT_ASKED = info("", "the broker was not asked", "add --broker")
CANNOT_ASK = info(
    "", "the broker was not asked: that takes a credential that is not to be had here"
)


def broker_findings(settings: Settings) -> tuple[tuple[int, ...] | None, list[Finding]]:
    """Ask the broker.

    Returns:
        RabbitMQ's version, None where it is unknown or another broker; and what was found.
    """
    try:
        view = inspect(settings)
    except Fault as fault:
        return None, [error(Problem("amqp_url", str(fault)), fault.exit_code)]
    return _version(view), list(_findings(view))


def _version(view: View) -> tuple[int, ...] | None:
    numbers = re.match(r"\d+(\.\d+)*", view.version)
    if view.product != "RabbitMQ" or numbers is None:
        return None
    return tuple(int(number) for number in numbers[0].split("."))


def _findings(view: View) -> Iterator[Finding]:
    product = f"{view.product} {view.version}".rstrip()
    yield info("amqp_url", f"{product} at {view.host} takes the connection")
    for queue in view.queues:
        yield _queue(queue)
    for fault in view.faults:
        yield error(Problem("bindings", str(fault)), fault.exit_code)
    what = "policies, and the rights to bind and to consume, cannot be seen with this account"
    vhost = shlex.quote(view.vhost)
    queues = f"rabbitmqctl list_queues -p {vhost} name type arguments policy"
    policies = f"rabbitmqctl list_policies -p {vhost}"
    cure = f"the broker's administrators see limits with `{queues}` and `{policies}`"
    yield info("", what, cure)


def _queue(queue: QueueView) -> Finding:
    path = toml_path("queues", (queue.name,))
    if queue.fault is not None:
        return error(Problem(path, str(queue.fault)), queue.fault.exit_code)
    if queue.locked:
        what = "another connection has it exclusively"
        return warning(path, what, "stop that one, unless it is this instance itself")
    if not queue.exists:
        return info(path, "is not there yet; the start makes it, if the account may")
    waiting, consumers = _counted(queue.messages, "message"), _counted(queue.consumers, "consumer")
    return info(path, f"is there, with {waiting} and {consumers}")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
