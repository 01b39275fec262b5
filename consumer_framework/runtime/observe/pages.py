# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of an instance for monitoring systems: ``/metrics``, ``/live`` and ``/ready``.

The control socket has them, and so has the port of ``[monitoring]``. The bodies of ``/live`` and
``/ready`` are those of fedora-messaging's own server, and a page that is bad news says why.
"""

from __future__ import annotations

import json
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.store.files import DATABASE
from consumer_framework.core.errors import StoreError
from consumer_framework.core.health import Unhealthy
from consumer_framework.core.lifecycle import State
from consumer_framework.core.secrets import redacted
from consumer_framework.runtime.control.routes import JSON, Page, product_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from consumer_framework.core.health import Verdict
    from consumer_framework.publishing.report import RelayReport
    from consumer_framework.runtime.instance import Instance
    from consumer_framework.runtime.watchdog import Watchdog

    from .exposition import InstanceFacts

# Files of SQLite beside the database.
_FILES = ("", "-wal", "-shm")


class InstancePages:
    """The pages of *instance*, whose *watchdog* gives the verdict of ``/live``.

    Args:
        name: The name of the instance.

    Attributes:
        by_path: A function for each page, which takes the ``Accept`` header.
    """

    def __init__(self, instance: Instance, watchdog: Watchdog, name: str) -> None:
        self._instance = instance
        self._watchdog = watchdog
        self._name = name
        self.by_path: dict[str, Callable[[str], Page]] = {
            "/metrics": self.metrics,
            "/live": lambda _accept: live(watchdog.verdict()),
            "/ready": lambda _accept: self.ready(),
        }

    def ready(self) -> Page:
        """Tell whether the instance consumes from every queue, with upstream's counts."""
        instance = self._instance
        found = {"consuming": self.is_ready, **instance.session.service.stats.as_dict()}
        if not self.is_ready:
            state = instance.state.name.lower()
            found |= {"state": state, "reason": instance.trouble or f"the instance is {state}"}
        return _json(self.is_ready, found)

    @property
    def is_ready(self) -> bool:
        """True if the instance consumes from every queue."""
        is_consuming = self._instance.state is State.CONSUMING
        return is_consuming and self._instance.session.service.consuming

    def metrics(self, accept: str) -> Page:
        """Show the metrics of the instance, and those that the author's code registered."""
        from . import exposition  # noqa: PLC0415 -- for the first reader

        metrics = [
            *exposition.of_instance(self._facts()),
            *exposition.of_process(exposition.INSTANCE_LABEL, self._name),
        ]
        return exposition.rendered(metrics, accept)

    def _facts(self) -> InstanceFacts:
        from .exposition import InstanceFacts  # noqa: PLC0415 -- likewise

        instance, watchdog = self._instance, self._watchdog
        framework, store = instance.plan.framework, instance.files.store
        stored = None
        # The end of the instance closes the store.
        if instance.state is not State.STOPPED:
            with suppress(StoreError):
                stored = store.stats()
        due = stored.next_due if stored is not None else None
        relay = instance.publications.status
        return InstanceFacts(
            self._name,
            product_version(),
            instance.status.report(),
            self.is_ready,
            instance.counters,
            durations=instance.executor.durations if instance.executor is not None else None,
            reasons=tuple(instance.gate.reasons),
            slots=framework.slots,
            connections=instance.session.connections,
            is_connected=instance.session.is_connected,
            is_blocked=bool(instance.remarks.get("blocked")),
            stored=stored,
            store_limit=framework.quarantine_max_bytes if store.keeps else None,
            store_file=_size_of(instance.files.directory),
            overdue=max(0.0, instance.clock.time() - due) if due else 0.0,
            watchdog=instance.notifier.watchdog_seconds,
            margin=watchdog.margin,
            published=instance.publications.published,
            relay=relay.report() if relay is not None else None,
        )


def live(verdict: Verdict) -> Page:
    """Tell the verdict of the watchdog; a process whose event loop is blocked answers nothing."""
    if isinstance(verdict, Unhealthy):
        return _json(False, {"status": "stuck", "reason": verdict.reason})  # noqa: FBT003 -- short
    return _json(True, {"status": "OK"})  # noqa: FBT003 -- likewise


class RelayPages:
    """The pages of a relay in a process of its own.

    Args:
        name: The name of the relay.
        report: Returns its report.
        is_stuck: Tells whether its thread does not move.

    Attributes:
        by_path: A function for each page, which takes the ``Accept`` header.
    """

    def __init__(
        self, name: str, report: Callable[[], RelayReport], is_stuck: Callable[[], bool]
    ) -> None:
        self._name = name
        self._report = report
        self._is_stuck = is_stuck
        self.by_path: dict[str, Callable[[str], Page]] = {
            "/metrics": self.metrics,
            "/live": lambda _accept: self.live(),
            "/ready": lambda _accept: self.ready(),
        }

    def metrics(self, accept: str) -> Page:
        """Show the metrics of the relay."""
        from . import exposition  # noqa: PLC0415 -- for the first reader

        metrics = [
            *exposition.of_relay(self._report(), self._name),
            *exposition.of_process(exposition.RELAY_LABEL, self._name),
        ]
        return exposition.rendered(metrics, accept)

    def live(self) -> Page:
        """Tell whether the thread of the relay moves."""
        if self._is_stuck():
            reason = "neither the messenger nor the database returns"
            return live(Unhealthy(reason))
        return _json(True, {"status": "OK"})  # noqa: FBT003 -- short

    def ready(self) -> Page:
        """Tell whether the relay sends, or stands by for another one."""
        report = self._report()
        is_ready = report.state in {"sending", "standby"}
        found: dict[str, Any] = {"sending": report.state == "sending", "state": report.state}
        if not is_ready:
            found["reason"] = report.trouble or report.action
        return _json(is_ready, found)


def _json(is_good: bool, found: dict[str, Any]) -> Page:  # noqa: FBT001 -- of this module
    # A reason may quote an error of a library, with the URL of a broker or database.
    body = json.dumps(redacted(found)).encode() + b"\n"
    return Page(body, JSON, HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE)


def _size_of(directory: Path | None) -> int | None:
    if directory is None:
        return None
    size = 0
    for suffix in _FILES:
        with suppress(OSError):
            size += (directory / f"{DATABASE}{suffix}").stat().st_size
    return size
