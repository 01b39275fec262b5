# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs every check of an instance, in order, and collects the findings.

Nothing is started: the author's module is imported, and neither its class nor its ``setup`` is
called. An author's module may import the reactor, so call :func:`.reactor.install` before.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.adapters import config
from consumer_framework.adapters.certificates import common_name
from consumer_framework.adapters.systemd.accounts import service_account
from consumer_framework.adapters.systemd.cgroup import most_tasks, tasks_of_service
from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.runtime.assembly.access import from_outside, hands_file_over, is_relays_file
from consumer_framework.runtime.assembly.plan import tasks_problem
from consumer_framework.runtime.state_files import SYSTEM_STATE, is_directory_given, state_directory
from consumer_framework.settings import StoreKind, instance_name_problem
from consumer_framework.settings.workers import number_on_host

from .broker import CANNOT_ASK, NOT_ASKED, broker_findings
from .consumer import consumer_findings
from .fedora import fedora_findings, way_to_lasting_queues
from .files import file_findings, password_findings, state_findings, tls_findings
from .findings import Finding, Level, error, report
from .outbox import outbox_findings, relay_findings
from .queues import binding_findings, flow_findings, queue_findings
from .routes import route_findings
from .start import NamedCredentials, examine, monitoring_findings, publish_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.adapters.systemd.accounts import Account
    from consumer_framework.runtime.assembly.configuration import RunOptions
    from consumer_framework.settings import Settings

    from .findings import Report
    from .start import Start


def check(options: RunOptions, *, as_service: bool, ask_broker: bool) -> Report:
    """Check everything that an instance needs.

    Args:
        options: The options of ``fm-consumer run``.
        as_service: True for an instance of systemd's, whose rights are asked of systemd.
        ask_broker: Connect to the broker too.
    """
    account = _account(options.instance) if as_service else None
    of_relay = is_relays_file(options.path) and not options.names_callback
    access = from_outside(options.path, options.instance, of_service=as_service, of_relay=of_relay)
    options = replace(options, access=access)
    named = NamedCredentials.in_file(options.path, access)
    start = examine(options, named.absent)
    settings = start.settings
    if settings is not None and of_relay:
        found = _relay_findings(options, start, account, named)
    else:
        found = [
            *map(error, start.problems),
            *_service_findings(options, account),
            *_state_findings(options, account, settings),
            *named.findings(),
        ]
        if settings is not None:
            found += _settings_findings(settings, start, options, account, named)
            found += consumer_findings(start, named.absent, connect=ask_broker)
            found += _broker_findings(settings, start, named, ask_broker=ask_broker)
    if settings is not None:
        how = {"ask": ask_broker, "as_service": as_service}
        found += outbox_findings(settings, options.instance, named.absent, **how)
    lines = config.lines_of(options.path, access)
    return report(options.source, tuple(finding.at(options.source, lines) for finding in found))


def _account(instance: str) -> Account:
    return service_account(unit_name(instance), f"fm-{instance}")


def _relay_findings(
    options: RunOptions, start: Start, account: Account | None, named: NamedCredentials
) -> list[Finding]:
    """Return the findings about the file of a relay, which needs no callback and no queue."""
    assert start.settings is not None  # noqa: S101 -- the caller looked
    return [
        *(error(problem) for problem in start.problems if problem.path != "callback"),
        *relay_findings(options.instance, as_service=account is not None),
        *_service_findings(options, account),
        *named.findings(),
        *tls_findings(start.settings, account, datetime.now(UTC), named.paths),
        *fedora_findings(start.settings, _client_name(start.settings), consumes=False),
    ]


def _client_name(settings: Settings) -> str | None:
    file = settings.tls.certfile
    return common_name(Path(file)) if file else None


def _service_findings(options: RunOptions, account: Account | None) -> Iterator[Finding]:
    if account is not None:
        problem = instance_name_problem(options.instance)
        if problem:
            yield Finding(Level.WARNING, problem)
    if options.path is not None:
        yield from file_findings(options.path, account, lambda: hands_file_over(options.instance))


def _state_findings(
    options: RunOptions, account: Account | None, settings: Settings | None
) -> Iterator[Finding]:
    if settings is not None and settings.framework.store is StoreKind.MEMORY:
        return
    is_service = account is not None
    is_given = is_service or is_directory_given(options.state_directory)
    for finding in state_findings(_state_directory(options, account), made=is_service):
        # Without a directory that somebody named, it runs without a store, and warns.
        may_run = finding.level is Level.ERROR and not is_given
        yield replace(finding, level=Level.WARNING) if may_run else finding


def _state_directory(options: RunOptions, account: Account | None) -> Path:
    given = options.state_directory
    if account is not None and given is None and "STATE_DIRECTORY" not in os.environ:
        return SYSTEM_STATE / options.instance
    return state_directory(options.instance, given)


def _settings_findings(
    settings: Settings,
    start: Start,
    options: RunOptions,
    account: Account | None,
    named: NamedCredentials,
) -> Iterator[Finding]:
    if options.path is not None and "amqp_url" not in named.paths:
        yield from password_findings(settings.amqp_url, options.path)
    yield from tls_findings(settings, account, datetime.now(UTC), named.paths)
    yield from fedora_findings(settings, _client_name(settings))
    yield from flow_findings(settings.qos.prefetch_count, start.framework)
    yield from binding_findings(settings)
    if start.target is not None:
        yield from publish_findings(start.target)
        yield from route_findings(settings, start.target)
    worker = number_on_host(options.instance)
    yield from monitoring_findings(settings.monitoring, _state_directory(options, account), worker)
    unit = unit_name(options.instance)
    most = most_tasks() if account is None else tasks_of_service(unit)
    problem = tasks_problem(start.framework, most)
    if problem:
        yield error(problem)


def _broker_findings(
    settings: Settings, start: Start, named: NamedCredentials, *, ask_broker: bool
) -> Iterator[Finding]:
    version = None
    if not ask_broker:
        yield NOT_ASKED
    elif named.hides_the_broker:
        yield CANNOT_ASK
    else:
        version, found = broker_findings(settings)
        yield from found
    ack_timeout, lasting = start.framework.recovery.ack_timeout, way_to_lasting_queues(settings)
    for name, queue in settings.queues.items():
        in_force = queue.model_copy(update={"passive": settings.is_passive(queue)})
        yield from queue_findings(name, in_force, ack_timeout, version, lasting=lasting)
