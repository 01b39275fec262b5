# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer status``: the instances of this host, and their workers."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.health import InstanceCondition
from consumer_framework.core.text import age, plural

from . import options, terminal
from .exit_codes import epilog
from .options import (
    HOST,
    HOST_TIMEOUT,
    JSON,
    REMOTE,
    SSH,
    complete_instance,
    instance_file,
    refuse_without_hosts,
)
from .terminal import Command, Refusal, bad, faint, good, safe, title

# Commands import these when they run: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from click.shell_completion import CompletionItem

    from consumer_framework.adapters.systemd.systemctl import Unit
    from consumer_framework.operate.status import HostStatus, InstanceStatus
    from consumer_framework.runtime.control.schema import StatusReport

# As systemctl(1) and the LSB have it.
_NOT_ALL_ACTIVE = 3
_UNKNOWN = 4
# As systemctl(1) marks units.
_UP, _DOWN, _FAILED, _CHANGING = "●", "○", "×", "↻"  # noqa: RUF001 -- theirs
_INDENT = "  "

# The word in the place of NAME that has Zabbix discover instances.
_DISCOVERY = "discovery"

# The counts that are summed up, for people and in JSON.
_TOTALS = ("handled", "running", "held", "deferred", "quarantined")


class _Unknown(Refusal):
    """There is no such instance."""

    exit_code = _UNKNOWN


@contextmanager
def _errors_are_unknown() -> Iterator[None]:
    # 1 and 2, with which other commands refuse, would be a warning and critical.
    from . import monitoring  # noqa: PLC0415

    try:
        yield
    except click.ClickException as error:
        monitoring.unknown(error.format_message())
    except (FrameworkError, OSError) as error:
        monitoring.unknown(str(error))
    except click.exceptions.Exit:
        raise
    except Exception as error:  # noqa: BLE001 -- a defect, too, is no warning about an instance
        traceback.print_exc()
        monitoring.unknown(f"a defect of fm-consumer: {type(error).__name__}: {error}")


class _Status(Command):
    """The command, with errors as a monitoring system wants them if it asks."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Now, because the parser empties the list.
        is_check = "--nagios" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            with _errors_are_unknown() if is_check else nullcontext():
                raise


def _complete_threshold(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from consumer_framework.operate.monitoring import MEASURES  # noqa: PLC0415

    return [f"{name}=" for name in MEASURES if f"{name}=".startswith(incomplete)]


def _threshold(option: str, severity: str) -> Callable[[Any], Any]:
    return click.option(
        option,
        multiple=True,
        metavar="VALUE=RANGE",
        shell_complete=_complete_threshold,
        help=f"With --nagios or --zabbix: a value outside RANGE is {severity}, as in lag=100 (more "
        "than 100). May be given several times.",
    )


@click.command(
    cls=_Status,
    epilog="""
\b
Examples:
  fm-consumer status                 # all of this host
  fm-consumer status builds          # builds, builds_2, ... and their sum
  fm-consumer status builds_2        # that worker alone
  fm-consumer status --json | jq '.groups[].totals'
  fm-consumer status sample --state-dir ./state    # as given to 'fm-consumer run'
  fm-consumer status --nagios builds --warn lag=5000 --crit quarantined=10
  fm-consumer status --zabbix discovery            # the instances
  fm-consumer status --zabbix                      # the values of each of them
  fm-consumer status --host root@web1,root@web2    # a line for each instance there
"""
    + epilog("status"),
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_instance)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Where the one instance NAME keeps its state, as given to 'fm-consumer run'.",
)
@JSON
@click.option(
    "--nagios",
    "form",
    flag_value="nagios",
    help="Print one line with performance data, and end with the exit code of a Nagios plugin.",
)
@click.option(
    "--zabbix",
    "form",
    flag_value="zabbix",
    help="Print the values of each NAME as JSON; 'discovery' in the place of NAME lists the "
    "instances.",
)
@_threshold("--warn", "a warning")
@_threshold("--crit", "critical")
@HOST
@SSH
@REMOTE
@HOST_TIMEOUT
def status(  # noqa: PLR0913, PLR0917 -- one for each option
    names: tuple[str, ...],
    state_dir: Path | None,
    form: str | None,
    warn: tuple[str, ...],
    crit: tuple[str, ...],
    hosts: tuple[str, ...],
    ssh: str,
    remote: str,
    timeout: float,
    *,
    as_json: bool,
) -> None:
    """Show how instances are: each NAME with its workers, or all of this host.

    The state is systemd's. The instance itself counts the messages that it handled, that run and
    that wait; to ask it takes root or its own user. If it does not answer, deferred and
    quarantined messages are counted in its store. An instance that was started by hand is found
    in its state directory; its NAME is that of its configuration file, without .toml.

    --nagios and --zabbix judge each instance by its state and by thresholds. A RANGE is that of
    the Monitoring Plugins: 10 alerts above 10, 10: below 10, 10:20 outside, @10:20 inside, ~:
    never. A length of time may be written as 5m.

    --host asks other hosts in parallel, and prints a line for each instance. It runs
    'fm-consumer status --json' there, without asking for a password.
    """
    with _errors_are_unknown() if form == "nagios" else nullcontext():
        if as_json and form:
            raise click.UsageError(f"give either --json or --{form}, not both")
        if (warn or crit) and not form:
            raise click.UsageError("--warn and --crit need --nagios or --zabbix")
        refuse_without_hosts(hosts)
        if hosts:
            if form or state_dir:
                raise click.UsageError("--host goes with NAME and --json alone")
            _print_hosts(hosts, names, (ssh, remote, timeout), as_json=as_json)
            return
        match form:
            case "nagios":
                _check(names, state_dir, warn, crit)
            case "zabbix":
                _print_for_zabbix(names, state_dir, warn, crit)
            case _:
                _print_status(names, state_dir, as_json=as_json)


def look(
    names: tuple[str, ...], state_dir: Path | None, timeout: float | None = None
) -> HostStatus:
    """Look for instances of this host.

    Args:
        names: As on the command line; none for all.
        state_dir: The state directory of the one instance in *names*; None for the usual places.
        timeout: Seconds for the answer of an instance; None for that of an order.
    """
    if state_dir and len(names) != 1:
        raise click.UsageError("--state-dir needs the NAME of one instance")
    for name in names:
        # Refuses a name that no instance can have.
        instance_file(name)
    from consumer_framework.adapters.systemd.systemctl import Systemctl  # noqa: PLC0415
    from consumer_framework.operate import status  # noqa: PLC0415

    where = (options.CONFIGURATION_DIRECTORY, Systemctl(), state_dir)
    return status.instances_on_host(names, *where, timeout)


def _print_status(names: tuple[str, ...], state_dir: Path | None, *, as_json: bool) -> None:
    from consumer_framework.runtime.control.client import LOOK_TIMEOUT  # noqa: PLC0415

    found = look(names, state_dir, LOOK_TIMEOUT)
    refuse_unknown(found, names)
    _show(found, as_json=as_json)
    counted = (one for one in found.instances if names or one.should_run)
    if not all(instance.is_active for instance in counted):
        raise click.exceptions.Exit(_NOT_ALL_ACTIVE)


def _print_hosts(
    hosts: tuple[str, ...], names: tuple[str, ...], way: tuple[str, str, float], *, as_json: bool
) -> None:
    for name in names:
        instance_file(name)
    from . import status_of_hosts  # noqa: PLC0415

    exit_code = status_of_hosts.show(hosts, names, status_of_hosts.way_of(*way), as_json=as_json)
    raise click.exceptions.Exit(exit_code)


# For monitoring systems.


def _check(
    names: tuple[str, ...], state_dir: Path | None, warn: Sequence[str], crit: Sequence[str]
) -> None:
    from consumer_framework.operate.monitoring import judge_all, thresholds, worst  # noqa: PLC0415

    from . import monitoring  # noqa: PLC0415

    limits = thresholds(warn, crit)
    verdicts = judge_all(look(names, state_dir), limits, time.time(), every=bool(names))
    if not verdicts:
        monitoring.unknown(f"no instance of {options.CONFIGURATION_DIRECTORY} is to run")
    click.echo(monitoring.nagios_line(verdicts, limits))
    raise click.exceptions.Exit(worst(verdict.severity for verdict in verdicts))


def _print_for_zabbix(
    names: tuple[str, ...], state_dir: Path | None, warn: Sequence[str], crit: Sequence[str]
) -> None:
    from consumer_framework.operate.monitoring import judge_all, thresholds  # noqa: PLC0415

    from . import monitoring  # noqa: PLC0415

    limits = thresholds(warn, crit)
    if names == (_DISCOVERY,):
        terminal.print_json(monitoring.discovery(look((), None)))
        return
    found = look(names, state_dir)
    refuse_unknown(found, names)
    verdicts = judge_all(found, limits, time.time(), every=True)
    terminal.print_json(monitoring.items(verdicts, found))


def refuse_unknown(found: HostStatus, names: tuple[str, ...]) -> None:
    """Refuse a name in *names* of which there is no trace.

    Raises:
        click.ClickException: With the names of those that there are.
    """
    unknown = [one.name for one in found.instances if one.name in names and not one.is_known]
    if unknown:
        known = ", ".join(options.instance_names())
        cure = f"the instances here are {known}" if known else "'fm-consumer run --help' tells more"
        raise _Unknown(f"there is no instance {unknown[0]!r}; {cure}")


def _show(found: HostStatus, *, as_json: bool) -> None:
    if as_json:
        terminal.print_json(document(found))
        return
    if not found.groups:
        click.echo(f"no instance is configured in {options.CONFIGURATION_DIRECTORY}, and none runs")
    now = time.time()
    for name, group in found.groups.items():
        for line in _group_lines(name, group, now):
            click.echo(line)
    if found.problem:
        click.echo(terminal.faint(f"\nsystemd was not asked: {terminal.safe(found.problem)}"))


# JSON.


def _totals(group: Sequence[InstanceStatus]) -> dict[str, int]:
    sums = Counter(dict.fromkeys(_TOTALS, 0))
    for instance in group:
        if instance.report:
            counts = instance.report.counts
            sums.update(handled=counts.acked, running=counts.running)
            sums.update(held=instance.report.held)
        if instance.stored:
            sums.update(deferred=instance.stored.deferred, quarantined=instance.stored.quarantined)
    return dict(sums)


def document(host: HostStatus) -> dict[str, Any]:
    """Return the instances of a host as ``--json`` prints them."""
    return {
        "systemd": host.problem == "",
        "problem": host.problem,
        "groups": [
            {
                "name": name,
                "workers": len(group),
                "active": sum(instance.is_active for instance in group),
                "totals": _totals(group),
                "instances": [_instance_document(instance) for instance in group],
            }
            for name, group in host.groups.items()
        ],
    }


def _instance_document(instance: InstanceStatus) -> dict[str, Any]:
    stored = instance.stored
    return {
        "name": instance.name,
        "configured": instance.is_configured,
        "active": instance.is_active,
        "answers": instance.report is not None,
        "should_run": instance.should_run,
        "unit": asdict(instance.unit) if instance.unit else None,
        "report": asdict(instance.report) if instance.report else None,
        "deferred": stored.deferred if stored else None,
        "quarantined": stored.quarantined if stored else None,
        "next_due": stored.next_due if stored else None,
        "problem": instance.problem,
    }


# Text.


def _group_lines(name: str, group: Sequence[InstanceStatus], now: float) -> Iterator[str]:
    if len(group) == 1:
        yield from _instance_lines(group[0], now, 0)
        return
    active = sum(instance.is_active for instance in group)
    sums = [f"{count:,} {what}" for what, count in _totals(group).items() if count]
    counts = f"; {', '.join(sums)}" if sums else ""
    head = f"{name}: {active} of {plural(len(group), 'worker')} active"
    colour: Callable[[str], str] = title if active == len(group) else bad
    yield f"{colour(head)}{counts}"
    widest = max(len(instance.name) for instance in group)
    for instance in group:
        for line in _instance_lines(instance, now, widest):
            yield f"{_INDENT}{line}"


def _instance_lines(instance: InstanceStatus, now: float, name_width: int) -> Iterator[str]:
    mark, colour = _mark(instance)
    name, state = instance.name.ljust(name_width), _state(instance, now)
    yield f"{colour(mark)} {title(name)}  {colour(safe(state))}"
    indent = " " * len(f"{mark} {name}  ")
    for text, style in _details(instance, now):
        # Uncut, and wrapped by the terminal: a reader wants to know the reason.
        yield f"{indent}{style(safe(text))}"


def _plain(text: str) -> str:
    return text


def _mark(instance: InstanceStatus) -> tuple[str, Callable[[str], str]]:
    if instance.is_active:
        return _UP, bad if instance.report and _needs_attention(instance.report) else good
    match instance.unit.active if instance.unit else "inactive":
        case "failed":
            return _FAILED, bad
        case "inactive":
            return _DOWN, bad if instance.should_run else _plain
    return _CHANGING, bad


def _needs_attention(report: StatusReport) -> bool:
    conditions = {each.value: each for each in InstanceCondition}
    condition = conditions.get(report.condition)
    return condition is not None and condition.needs_attention


def _state(instance: InstanceStatus, now: float) -> str:
    unit = instance.unit
    if unit is None or (unit.active == "inactive" and instance.is_active):
        return _by_hand(instance)
    parts = [f"{unit.active} ({_why(unit)})"]
    if unit.since is not None:
        parts[0] += f" for {age(now - unit.since)}"
    if unit.pid:
        parts.append(f"PID {unit.pid}")
    if unit.restarts:
        parts.append(plural(unit.restarts, "restart"))
    parts += _condition(instance)
    if not unit.is_enabled:
        parts.append(unit.file_state or "disabled")
    if not instance.is_configured:
        parts.append("without a configuration file")
    return ", ".join(parts)


def _condition(instance: InstanceStatus) -> list[str]:
    condition = instance.report.condition if instance.report else ""
    return [condition] if condition not in {"", InstanceCondition.CONSUMING.value} else []


def _by_hand(instance: InstanceStatus) -> str:
    if instance.report:
        return ", ".join([f"runs by hand, PID {instance.report.pid}", *_condition(instance)])
    if instance.is_silent:
        return "runs by hand, and does not answer"
    return (
        "does not run" if instance.is_configured else "does not run, without a configuration file"
    )


def _why(unit: Unit) -> str:
    if unit.active != "failed":
        return unit.sub
    is_exit = unit.result == "exit-code" and unit.exit_status
    return f"exit code {unit.exit_status}" if is_exit else unit.result


def _details(instance: InstanceStatus, now: float) -> Iterator[tuple[str, Callable[[str], str]]]:
    text = instance.report.status if instance.report else _last_words(instance.unit)
    if text:
        yield text, _plain
    if waiting := _waiting(instance, now):
        yield waiting, _plain
    if instance.report and (cure := _cure(instance.report)):
        yield cure, faint
    if instance.problem:
        yield instance.problem, bad
    if instance.unit and not instance.is_active and instance.unit.active != "inactive":
        yield f"journalctl -u fm-consumer@{instance.name} -n 50", faint
    if instance.stored and instance.stored.quarantined:
        yield f"fm-consumer quarantine list {instance.name}", faint


def _cure(report: StatusReport) -> str:
    """Return the remedy for the loss that the status line shows; "" for none."""
    loss = report.loss
    return f"against the loss: {loss.cure}" if loss and loss.subject in report.status else ""


def _last_words(unit: Unit | None) -> str:
    return unit.text if unit else ""


def _waiting(instance: InstanceStatus, now: float) -> str:
    parts = []
    if instance.report:
        numbers = {
            "running": instance.report.counts.running,
            "held": instance.report.held,
        }
        parts += [f"{count:,} {what}" for what, count in numbers.items() if count]
    if stored := instance.stored:
        if stored.deferred:
            due = "" if stored.next_due is None else f" ({_due(stored.next_due, now)})"
            parts.append(f"{stored.deferred:,} deferred{due}")
        if stored.quarantined:
            parts.append(f"{stored.quarantined:,} quarantined")
    return f"now: {', '.join(parts)}" if parts else ""


def _due(when: float, now: float) -> str:
    return f"the next due in {age(when - now)}" if when > now else "due now"
