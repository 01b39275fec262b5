# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics of all instances and relays of a host, as one text.

Each process has a page of its own on its control socket. Here the pages become one, in which every
sample names its instance. An instance that does not run has a few metrics all the same, so that a
rule can find it.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from consumer_framework.core.errors import FrameworkError
from consumer_framework.runtime.control.client import LOOK_TIMEOUT, ControlError, connected_to
from consumer_framework.runtime.control.client import sockets as instance_sockets
from consumer_framework.runtime.observe.exposition import (
    INSTANCE,
    INSTANCE_LABEL,
    RELAY_LABEL,
    rendered,
)
from consumer_framework.runtime.state_files import CONTROL, SYSTEM_RELAY_RUNTIME

from .status import directories_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .status import HostStatus, InstanceStatus

# The file of all instances in the directory that node-exporter reads.
FILE = "fm_consumers.prom"
_ASKED_AT_ONCE = 16
_TEXTS = {family.name: family.text for family in INSTANCE}


class MetricsError(FrameworkError):
    """The file of metrics cannot be written.

    Args:
        message: One line with the reason.
    """

    exit_code = 1


class Process(NamedTuple):
    """A process that has a page of metrics.

    Attributes:
        label: The label that names it, :data:`.INSTANCE_LABEL` or :data:`.RELAY_LABEL`.
        name: Its name.
        sockets: The sockets on which it may listen.
    """

    label: str
    name: str
    sockets: list[Path]


@dataclass(slots=True)
class HostMetrics:
    """The metrics of a host.

    Attributes:
        families: By their name.
        problems: The reasons why a process that runs has no metrics here.
    """

    families: dict[str, Metric] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, metrics: Iterable[Metric], label: str, name: str) -> None:
        """Add the page of one process; samples without the label get it."""
        for metric in metrics:
            known = self.families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            if known.type != metric.type:
                # Two authors gave one name to two things; a text cannot have both.
                self.problems.append(f"{name}: {metric.name} is of the type {metric.type} here")
                continue
            for sample in metric.samples:
                labels = {label: name, **sample.labels}
                known.samples.append(sample._replace(labels=labels))

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return rendered(self.families.values()).body

    def samples(self) -> Iterator[dict[str, Any]]:
        """Yield each sample as an object of JSON."""
        for metric in self.families.values():
            for sample in metric.samples:
                yield {"name": sample.name, "labels": sample.labels, "value": sample.value}


def gather(
    host: HostStatus,
    *,
    every: bool = False,
    state: Path | None = None,
    relays: Iterable[Path] = (),
) -> HostMetrics:
    """Ask every process for its metrics.

    Args:
        host: The instances.
        every: Also those that need not run: stopped and disabled.
        state: The state directory of the one instance; None for the usual places.
        relays: The control sockets of relays.
    """
    found = HostMetrics()
    processes = [
        Process(INSTANCE_LABEL, one.name, _sockets_of(one.name, state))
        for one in host.instances
        if one.report is not None
    ]
    processes += [Process(RELAY_LABEL, path.parent.name, [path]) for path in relays]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for process, page in zip(processes, pool.map(_page_of, processes), strict=True):
            if isinstance(page, ControlError):
                found.problems.append(str(page))
            elif page is not None:
                found.add(page, process.label, process.name)
    for one in host.instances:
        if one.report is None and (every or one.should_run):
            found.add(_of_silent(one), INSTANCE_LABEL, one.name)
            if one.is_active and one.problem:
                found.problems.append(f"{one.name}: {one.problem}")
    return found


def _sockets_of(name: str, state: Path | None) -> list[Path]:
    directories = directories_of(name, state)
    return [path for directory in directories for path in instance_sockets(directory, name)]


def _page_of(process: Process) -> list[Metric] | ControlError | None:
    try:
        with connected_to(process.sockets, LOOK_TIMEOUT) as client:
            page = client.page("/metrics") if client is not None else None
    except ControlError as error:
        return error
    try:
        return None if page is None else list(text_string_to_metric_families(page))
    except Exception as error:  # noqa: BLE001 -- the parser has no exception of its own
        # One process must not take the metrics of all others away.
        return ControlError(f"{process.name}: its metrics are not understood: {error}")


def _of_silent(one: InstanceStatus) -> Iterator[Metric]:
    """Yield the metrics of an instance that does not answer."""
    up = Metric("fm_consumer_up", _TEXTS["fm_consumer_up"], "gauge")
    up.add_sample("fm_consumer_up", {}, 0)
    yield up
    if one.stored is not None:
        name = "fm_consumer_store_messages"
        stored = Metric(name, _TEXTS[name], "gauge")
        for state in ("deferred", "quarantined"):
            stored.add_sample(name, {"state": state}, getattr(one.stored, state))
        yield stored


def relay_sockets_on_host() -> list[Path]:
    """Return the control sockets of the relays that systemd runs."""
    try:
        return sorted(SYSTEM_RELAY_RUNTIME.glob(f"*/{CONTROL}"))
    except OSError:
        return []


def write(directory: Path, text: bytes) -> Path:
    """Write the file that node-exporter reads; it never sees half of one.

    Raises:
        MetricsError: The file cannot be written; the former one stays.
    """
    target = directory / FILE
    try:
        # Its name does not end with .prom, so that node-exporter does not read it.
        with tempfile.NamedTemporaryFile(
            dir=directory, prefix=".fm_consumers-", delete=False
        ) as new:
            file = Path(new.name)
            try:
                new.write(text)
                # node-exporter has a user of its own. Not by name: the directory may be that
                # user's, and this process root's.
                os.fchmod(new.fileno(), 0o644)
                new.close()
                file.replace(target)
            except BaseException:
                file.unlink(missing_ok=True)
                raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MetricsError(f"{target}: cannot be written: {reason}") from error
    return target
