# SPDX-License-Identifier: GPL-2.0-or-later
"""Says before a start whether an instance will work, and what lies outside the guarantee.

Starts nothing: the author's module is imported, and neither its class nor its ``setup`` is called.
Import it after :func:`.reactor.install`.

What is allowed, and outside the guarantee: each check looks at settings alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from consumer_framework.adapters.systemd.accounts import service_account
from consumer_framework.adapters.systemd.cgroup import most_tasks, tasks_of_service
from consumer_framework.runtime.assembly.access import from_outside, hands_file_over
from consumer_framework.runtime.assembly.plan import tasks_problem
from consumer_framework.runtime.state_files import SYSTEM_STATE, is_directory_given, state_directory
from consumer_framework.settings import StoreKind, instance_name_problem

from .broker import CANNOT_ASK, NOT_ASKED, broker_findings
from .files import file_findings, password_findings, state_findings, tls_findings
from .findings import Finding, Level, error, report
from .queues import binding_findings, flow_findings, queue_findings
from .start import Named, examine, monitoring_findings, named_in, publish_findings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.adapters.systemd.accounts import Account
    from consumer_framework.runtime.assembly.configuration import RunOptions
    from consumer_framework.settings import Settings

    from .findings import Report
    from .start import Start

__all__ = ["binding_findings", "flow_findings", "queue_findings", "tasks_problem"]


def check(options: RunOptions, *, as_service: bool, ask_broker: bool) -> Report:
    """Look at everything that an instance needs.

    Args:
        options: What ``fm-consumer run`` would be told.
        as_service: The instance is one of systemd's: what it may read is asked of systemd.
        ask_broker: Connect to the broker too.
    """
    source = options.source
    account = _account(options.instance) if as_service else None
    access = from_outside(options.path, options.instance, of_service=as_service)
    options = replace(options, access=access)
    named = named_in(options.path, access)
    start = examine(options, named.absent)
    found = [*map(error, start.problems), *_service_findings(options, account)]
    found += _state_findings(options, account, start.settings)
    found += named.findings()
    if start.settings is not None:
        found += _settings_findings(start, options.path, account, named)
        unit = f"fm-consumer@{options.instance}.service"
        most = most_tasks() if account is None else tasks_of_service(unit)
        problem = tasks_problem(start.framework, most)
        directory = _state_directory(options, account)
        found += monitoring_findings(start.settings.monitoring, directory)
        found += [error(problem)] if problem else []
        unasked = None if ask_broker else NOT_ASKED
        if ask_broker and named.hides_the_broker:
            unasked = CANNOT_ASK
        found += _broker_and_queues(start, start.settings, unasked)
    return report(source, tuple(finding.at(source) for finding in found))


def _account(instance: str) -> Account:
    return service_account(f"fm-consumer@{instance}.service", f"fm-{instance}")


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
        # Without one that somebody named, it runs without a store, and says so.
        may_run = finding.level is Level.ERROR and not is_given
        yield replace(finding, level=Level.WARNING) if may_run else finding


def _state_directory(options: RunOptions, account: Account | None) -> Path:
    given = options.state_directory
    if account is not None and given is None and "STATE_DIRECTORY" not in os.environ:
        return SYSTEM_STATE / options.instance
    return state_directory(options.instance, given)


def _settings_findings(
    start: Start, path: Path | None, account: Account | None, named: Named
) -> Iterator[Finding]:
    settings = start.settings
    assert settings is not None  # noqa: S101 -- its caller looked
    if path is not None and "amqp_url" not in named.paths:
        yield from password_findings(settings.amqp_url, path)
    yield from tls_findings(settings, account, datetime.now(UTC), named.paths)
    yield from flow_findings(settings.qos.prefetch_count, start.framework)
    yield from binding_findings(settings)
    if start.target is not None:
        yield from publish_findings(start.target)


def _broker_and_queues(
    start: Start, settings: Settings, unasked: Finding | None
) -> Iterator[Finding]:
    version, found = broker_findings(settings) if unasked is None else (None, [unasked])
    yield from found
    for name, queue in settings.queues.items():
        yield from queue_findings(name, queue, start.framework.recovery.ack_timeout, version)
