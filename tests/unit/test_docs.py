# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation agrees with the code, and builds."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pydantic
import pytest
from fedora_messaging import config as upstream
from fedora_messaging import exceptions
from fedora_messaging.message import Message
from pydantic.json_schema import GenerateJsonSchema
from sqlalchemy import inspect

import consumer_framework
from consumer_framework import publishing, settings
from consumer_framework.adapters.executor import signal_of
from consumer_framework.cli import main
from consumer_framework.cli.exit_codes import epilog, exit_codes_of
from consumer_framework.core import errors, text
from consumer_framework.core.delivery import Failed, Skipped, Succeeded
from consumer_framework.core.disposition import (
    Ack,
    Defer,
    GiveBack,
    Halt,
    Hold,
    Quarantine,
    Reject,
    Requeue,
)
from consumer_framework.core.errors import ExitCode
from consumer_framework.core.health import InstanceCondition
from consumer_framework.core.lag import Lag
from consumer_framework.core.lifecycle import State
from consumer_framework.core.loss import FORECASTS
from consumer_framework.core.recovery import OnExhausted, Policy, Rule, Situation, Then, decide
from consumer_framework.core.stats import Snapshot
from consumer_framework.operate.check.queues import queue_findings
from consumer_framework.publishing import events
from consumer_framework.publishing.message import Outgoing
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.runtime.observe.status import StatusFacts, status_line
from consumer_framework.testing import make_delivery

if TYPE_CHECKING:
    from pydantic import BaseModel

    from consumer_framework.core.delivery import Outcome
    from consumer_framework.core.recovery import Decision

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"), *DOCS.glob("*/*.md")]
)

TABLES: dict[str, type[BaseModel]] = {
    "Top level": settings.Settings,
    "`[queues.NAME]`": settings.Queue,
    "`[[bindings]]`": settings.Binding,
    "`[qos]`": settings.Qos,
    "`[tls]`": settings.Tls,
    "`[monitoring]`": settings.Monitoring,
}
FRAMEWORK_TABLES: dict[str, type[BaseModel]] = {
    "`[consumer_config.framework]`": settings.Framework,
    "`[consumer_config.framework.batch]`": settings.Batch,
    "`[consumer_config.framework.thresholds]`": settings.Thresholds,
    "`[consumer_config.framework.queue_policy]`": settings.QueuePolicy,
}
PUBLISHING_TABLES: dict[str, type[BaseModel]] = {
    "`[consumer_config.framework.outbox]`": settings.OutboxSettings,
    "`[[consumer_config.framework.outbox.rules]]`": settings.OutboxRule,
}
RECOVERY_TABLES: dict[str, type[BaseModel]] = {
    "`[consumer_config.framework.recovery]`": settings.Recovery,
    "`[consumer_config.framework.recovery.breaker]`": settings.BreakerSettings,
    "`[[consumer_config.framework.recovery.rules]]`": settings.RuleSettings,
}
DERIVED = {(settings.Qos, "prefetch_count")}
KINDS: dict[tuple[type[BaseModel], str], str] = {(settings.Framework, "rate"): "rate"}
# The only numbers of the models that are no lengths of time.
TOML_TYPES = {"object": "table", "number": "length of time"}

RAISED: dict[str, BaseException | None] = {
    "nothing: the handler returns": None,
    "`consumer_framework.Skip(reason)`": errors.Skip("reason"),
    "`consumer_framework.Retry(reason)`": errors.Retry("reason"),
    '`consumer_framework.Retry(reason, after="5m")`': errors.Retry("reason", after="5m"),
    "`fedora_messaging.exceptions.Nack`": exceptions.Nack(),
    "`consumer_framework.Defer(until, reason)`": errors.Defer(4000.0, "reason"),
    "`consumer_framework.Drop(reason)`": errors.Drop("reason"),
    "`fedora_messaging.exceptions.Drop`": exceptions.Drop(),
    "`consumer_framework.Quarantine(reason)`": errors.Quarantine("reason"),
    "`consumer_framework.DependencyFault(reason)`": errors.DependencyFault("reason"),
    "`consumer_framework.Halt(exit_code, reason)`": errors.Halt(3, "reason"),
    "`consumer_framework.Halt(exit_code, reason, requeue=True)`": errors.Halt(
        3, "reason", requeue=True
    ),
    "`fedora_messaging.exceptions.HaltConsumer`": exceptions.HaltConsumer(3, requeue=True),
    "any other exception, `SystemExit` included": SystemExit(0),
}
POLICY = Policy(schedule=(7.0, 70.0), dependency=30.0, defer=300.0)
NOW = 1000.0


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of *page*."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table under *heading*, without its head."""
    text = page.read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def toml_type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the TOML type of a JSON schema, in which null means that a key may be missing."""
    if "anyOf" in schema:
        [schema] = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    name: str = schema.get("type", "object")
    return TOML_TYPES.get(name, name)


def shown_default(value: Any, kind: str, item_kind: str) -> str:
    if value is None:
        return "none"
    if kind == "length of time":
        return f"`{json.dumps(text.duration_text(value))}`"
    if item_kind == "length of time":
        return f"`{json.dumps([text.duration_text(item) for item in value])}`"
    if isinstance(value, Enum):
        return f"`{json.dumps(value.value)}`"
    if isinstance(value, pydantic.BaseModel) or (isinstance(value, dict | list) and value):
        return "see below"
    return f"`{json.dumps(value)}`"


def expected_rows(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    # Only a class can name the exceptions themselves.
    schema = model.model_json_schema(schema_generator=SchemaOfFiles)
    definitions = schema.get("$defs", {})
    rows = {}
    for name, field in model.model_fields.items():
        described = schema["properties"][name]
        kind = KINDS.get((model, name)) or toml_type(described, definitions)
        items = described.get("items", {})
        item_kind = toml_type(items, definitions) if "type" in items else ""
        default = field.default
        if model is settings.Settings:
            default = upstream.DEFAULTS[name]  # type: ignore[literal-required]
        elif field.is_required():
            rows[name] = (kind, "required")
            continue
        derived = (model, name) in DERIVED
        rows[name] = (kind, "derived" if derived else shown_default(default, kind, item_kind))
    return rows


class SchemaOfFiles(GenerateJsonSchema):
    """Leaves out the values that only a class may have."""

    def is_subclass_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "null"}


def all_commands(group: click.Group, prefix: str) -> list[str]:
    """Return the command lines of all commands of *group*."""
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        line = f"{prefix} {name}"
        found += all_commands(command, line) if isinstance(command, click.Group) else [line]
    return found


@pytest.mark.parametrize("heading", TABLES)
def test_the_configuration_reference_lists_the_keys_their_types_and_defaults(heading):
    cells = table(DOCS / "reference/configuration.md", heading)
    documented = {key.strip("`"): (kind, default) for key, kind, default, _ in cells}
    assert documented == expected_rows(TABLES[heading])


@pytest.mark.parametrize("heading", FRAMEWORK_TABLES)
def test_the_framework_reference_lists_the_settings_their_types_and_defaults(heading):
    cells = table(DOCS / "reference/framework.md", heading)
    documented = {key.strip("`"): (kind, default) for key, kind, default, _ in cells}
    assert documented == expected_rows(FRAMEWORK_TABLES[heading])


@pytest.mark.parametrize("heading", PUBLISHING_TABLES)
def test_the_publishing_reference_lists_the_settings_their_types_and_defaults(heading):
    cells = table(DOCS / "reference/publishing.md", heading)
    documented = {key.strip("`"): (kind, default) for key, kind, default, _ in cells}
    assert documented == expected_rows(PUBLISHING_TABLES[heading])


def test_the_publishing_reference_lists_the_tables_and_columns_of_the_outbox(tmp_path):
    with closing(OutboxStore.connect(f"sqlite:///{tmp_path / 'outbox'}")) as store:
        store.migrate()
        found = inspect(store.engine)
        tables = {name for name in found.get_table_names() if not name.startswith("sqlite_")}
        columns = {column["name"] for column in found.get_columns("fm_outbox")}
    text = (DOCS / "reference/publishing.md").read_text(encoding="utf-8")
    section = text.partition("## Databases")[2].partition("## ")[0]
    documented = {
        name
        for cell in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
        for name in names(cell)
    }
    assert documented == tables | columns


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_publishing_reference_lists_the_lines_of_a_relay(caplog):
    message = Outgoing("ID", "TOPIC", b"{}", {}, "EXCHANGE")
    log = events.RelayLog()
    for event in (
        events.LeaseChanged(is_held=True),
        events.LeaseChanged(is_held=False),
        events.Published(message, routed=False),
        events.Postponed(message, "REASON", 10, 0),
        events.Buried(message, "REASON"),
        events.Skipped(3, "REASON", message),
        events.TopicPaused("EXCHANGE", "TOPIC", "REASON", time.time() + 60),
        events.EndpointDown("REASON", time.time() + 60),
        events.EndpointUp(),
        events.ClaimsLost(3),
        events.StoreUp(),
    ):
        with caplog.at_level(logging.INFO):
            log.notify(event)
    written = [re.sub(r"\b(1 min|60 s|\d+ s)\b", "TIME", line) for line in caplog.messages]
    lines = table(DOCS / "reference/publishing.md", "The lines of a relay's log")
    shown = [cells[0].strip("`").replace("N ", "3 ") for cells in lines]
    assert [line.replace("failed 10", "failed 3") for line in written] == shown
    levels = [record.levelname.lower() for record in caplog.records]
    assert levels == [cells[1] for cells in lines]


@pytest.mark.parametrize("heading", RECOVERY_TABLES)
def test_the_recovery_reference_lists_the_settings_their_types_and_defaults(heading):
    cells = table(DOCS / "reference/recovery.md", heading)
    documented = {key.strip("`"): (kind, default) for key, kind, default, _ in cells}
    assert documented == expected_rows(RECOVERY_TABLES[heading])


def test_the_reload_reference_has_the_action_of_each_key():
    page = DOCS / "reference/reload.md"
    for heading, takes in (
        ("The effort for each key", settings.TAKES),
        ("The effort for each key of the framework", settings.FRAMEWORK_TAKES),
    ):
        documented = {key.strip("`"): word for key, word in table(page, heading)}
        assert documented == {key: what.value for key, what in takes.items()}


def test_the_framework_reference_lists_the_values_of_ordering():
    cells = table(DOCS / "reference/framework.md", "Ordering")
    choices = [choice.value for choice in settings.Ordering]
    assert [row[0].strip('`"') for row in cells[: len(choices)]] == choices


def test_the_framework_reference_adds_up_the_prefetched_messages():
    text = (DOCS / "reference/framework.md").read_text(encoding="utf-8")
    [(parts, total)] = re.findall(r"That is ([\d +]+) = (\d+) by default", text)
    default = settings.Framework()
    assert sum(map(int, parts.split("+"))) == int(total) == default.prefetch_count


def test_the_check_reference_lists_the_arguments_that_are_warned_of():
    cells = table(DOCS / "reference/check.md", "Arguments of queues")
    values = {"x-queue-type": "quorum"}
    queue = {"durable": True, "auto_delete": False, "exclusive": False}
    for argument in (row[0].strip("`") for row in cells):
        arguments = {argument: values.get(argument, 5)}
        (finding,) = queue_findings(
            "one", settings.Queue.model_validate({**queue, "arguments": arguments}), 1800.0
        )
        assert finding.problem.path == f"queues.one.arguments.{argument}"


def test_the_check_reference_shows_the_real_output(tmp_path):
    [shown] = blocks(DOCS / "reference/check.md", "text")
    text = blocks(ROOT / "README.md", "toml")[0]
    text = text.replace("sample:", "sampel:").replace(
        "arguments = {}", "arguments = {x-message-ttl = 3600000}"
    )
    file = tmp_path / "sample.toml"
    file.write_text(text)
    program = str(Path(sys.executable).with_name("fm-consumer"))
    result = subprocess.run(
        [program, "check", "--conf", str(file), "--state-dir", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == ExitCode.CONFIGURATION
    printed = result.stdout.replace(str(file), "/etc/fedora-messaging/sample.toml")
    assert printed.splitlines() == shown.splitlines()


def test_the_exit_code_reference_lists_the_codes_and_their_names():
    cells = table(DOCS / "reference/exit-codes.md", "Exit codes")
    documented = {name.strip("`"): int(code) for code, name, _, _ in cells if name}
    assert documented == {code.name: code.value for code in ExitCode}


@pytest.mark.parametrize("line", all_commands(main, "fm-consumer"))
def test_every_command_shows_its_exit_codes_with_help(line):
    name = line.removeprefix("fm-consumer ")
    assert exit_codes_of(name)[0].codes == "0"
    assert epilog(name).rstrip() in (click_command(line).epilog or "")


def decision_on(error: BaseException | None, policy: Policy = POLICY) -> Decision:
    """Return the disposition of a message that came a second ago."""
    delivery = make_delivery(received_at=NOW - 1)
    outcome: Outcome = Failed(signal_of(error)) if error else Succeeded()
    if isinstance(error, errors.Skip):
        outcome = Skipped(error.reason)
    return decide(delivery, outcome, policy, Situation(NOW, 0.5, may_hold=True))


def fate(decision: Decision) -> str:
    match decision.disposition:
        case Ack() | Halt(requeue=False):
            return "acknowledged"
        case Hold(until) | Defer(until):
            return {
                7: "tried again after the next of the delays",
                300: "tried again after `after`",
                3000: "runs again at `until`",
                30: "tried again after the first `probe` delay",
            }[round(until - NOW)]
        case Quarantine():
            return "quarantined"
        case Reject():
            return "rejected"
        case Requeue() | GiveBack() | Halt():
            return "requeued"


@pytest.mark.parametrize("raised", RAISED)
def test_the_recovery_reference_has_the_disposition_of_each_signal(raised):
    cells = table(DOCS / "reference/recovery.md", "Exceptions that a handler may raise")
    assert [row[0] for row in cells] == list(RAISED)
    [(_, counts, message, instance)] = [row for row in cells if row[0] == raised]
    decision = decision_on(RAISED[raised])
    assert counts == ("yes" if decision.history.attempts else "no")
    assert fate(decision) in message or message == "as its `requeue` says"
    assert instance.startswith("goes on") is not isinstance(decision.disposition, Halt)
    assert ("pauses" in instance) is decision.dependency_fault


BROKER = "rabbitmq.example.org:5671"
BUSY = StatusFacts(
    BROKER,
    2,
    Snapshot(acked=41200),
    118.2,
    3,
    0,
    2,
    40,
    Lag(2.5, "message"),
    up=3 * 86400 + 60,
)
# In the order of the page.
STATUS_LINES = [
    (State.BUILDING, StatusFacts(left=299)),
    (State.BUILDING, StatusFacts(trouble="the database is gone; attempt 3 in 4 s", left=295)),
    (State.CONNECTING, StatusFacts(BROKER, left=298)),
    (
        State.CONNECTING,
        StatusFacts(BROKER, trouble="connection refused; attempt 4 in 8 s", left=290),
    ),
    (State.SUBSCRIBING, StatusFacts(BROKER, left=297)),
    (
        State.SUBSCRIBING,
        StatusFacts(
            BROKER,
            trouble='waiting for the queue "sample", which another one has: '
            "405 RESOURCE_LOCKED - cannot obtain exclusive access; attempt 4 in 4 s",
            left=280,
        ),
    ),
    (State.CONSUMING, BUSY),
    (State.CONSUMING, StatusFacts(queues=1, up=7.9)),
    (
        State.PAUSED,
        replace(
            BUSY,
            trouble="the database is gone; next probe in 30 s",
            held=4,
            quarantined=0,
            lag=None,
        ),
    ),
    (
        State.PAUSED,
        replace(
            BUSY,
            trouble="ordered by hazel (the database moves)",
            held=4,
            quarantined=0,
            lag=None,
        ),
    ),
    (
        State.FAILING,
        StatusFacts(trouble='the queue "builds" is gone', awaited="1 running", left=41.5),
    ),
    (State.DRAINING, StatusFacts(awaited="2 running", left=41.5)),
    (State.DRAINING, StatusFacts(awaited="the handler's teardown", left=590)),
    (State.STOPPED, StatusFacts(counts=Snapshot(acked=41200, quarantined=2))),
]


def test_the_status_reference_shows_the_lines_that_there_are():
    cells = table(DOCS / "reference/status.md", "Lines")
    lines = [
        [state.name.lower(), f"`{status_line(state, facts)}`"] for state, facts in STATUS_LINES
    ]
    assert cells == lines
    assert {state for state, _ in STATUS_LINES} == set(State)


def test_the_status_reference_explains_every_part():
    shown = status_line(State.CONSUMING, replace(BUSY, deferred=1, due=38000)).removeprefix(
        "consuming "
    )
    parts = [
        part.strip("`") for part, _ in table(DOCS / "reference/status.md", "The parts of the line")
    ]
    assert parts == shown.split(", ")


def test_the_status_reference_lists_the_conditions_in_their_order():
    cells = table(DOCS / "reference/status.md", "The condition")
    assert [row[0].strip("`") for row in cells] == [one.value for one in InstanceCondition]
    names = {name for name in settings.Thresholds.model_fields if f"`{name}`" in str(cells)}
    assert names == {*settings.Thresholds.model_fields} - {"loss"}


def test_the_status_reference_lists_the_origins_of_the_lag_in_time():
    cells = table(DOCS / "reference/status.md", "The lag in time")
    assert [row[0].strip("`") for row in cells] == ["message", "estimate", '""']


def test_the_status_reference_lists_the_forecasts():
    assert len(table(DOCS / "reference/status.md", "The next loss")) == len(FORECASTS)


def test_every_signal_is_in_the_recovery_reference_and_in_that_of_handlers():
    signals = {kind.__name__ for kind in errors.Signal.__subclasses__()}
    text = " ".join(RAISED)
    assert {name for name in signals if f"`consumer_framework.{name}(" in text} == signals
    cells = table(DOCS / "reference/handlers.md", "Exceptions that a handler may raise")
    assert {row[0].strip("`") for row in cells} == signals


@pytest.mark.parametrize("then", Then)
def test_the_recovery_reference_lists_the_actions_of_rules(then):
    cells = table(DOCS / "reference/recovery.md", "Answers of a rule")
    said = {row[0].strip('`"'): row[1] for row in cells}
    assert list(said) == [choice.value for choice in Then]
    expression, _, later = said[then.value].partition(", 5 minutes later")
    assert bool(later or then is Then.DEFER) is (then is Then.DEFER)
    names = {name: getattr(consumer_framework, name) for name in consumer_framework.__all__}
    names["until"] = NOW + 300
    raised = eval(expression.strip("`"), names)  # noqa: S307 -- our own text
    by_rule = decision_on(KeyError(), Policy(rules=(Rule((LookupError,), then),)))
    by_signal = decision_on(raised, Policy())
    assert without_reason(by_rule) == without_reason(by_signal)


def without_reason(decision: Decision) -> tuple[Any, ...]:
    disposition = decision.disposition
    names = ("until", "exit_code", "requeue")
    values = [getattr(disposition, name, None) for name in names]
    return type(disposition), values, len(decision.history.attempts), decision.dependency_fault


@pytest.mark.parametrize("choice", OnExhausted)
def test_the_recovery_reference_lists_the_values_of_on_exhausted(choice):
    cells = table(DOCS / "reference/recovery.md", "After the last attempt")
    said = {row[0].strip('`"'): row[1] for row in cells}
    assert list(said) == [choice.value for choice in OnExhausted]
    decision = decision_on(KeyError(), Policy(schedule=(), on_exhausted=choice))
    assert said[choice.value].startswith(fate(decision))
    if isinstance(decision.disposition, Halt):
        assert said[choice.value].endswith(f"exits with {int(decision.disposition.exit_code)}")


def test_the_schedule_in_the_explanation_is_the_default_one():
    cells = table(DOCS / "explanation/recovery.md", "The attempts of a failing message")
    units = {"minute": "m", "minutes": "m", "seconds": "s"}
    found = [re.search(r"about (\d+) (\w+) later", row[1]) for row in cells]
    said = [text.seconds(f"{m[1]}{units[m[2]]}") for m in found if m]
    assert (0.0, *said) == Policy().schedule
    assert cells[-2][0] == str(len(Policy().schedule) + 1)


def test_the_shown_test_without_a_broker_passes():
    [source] = [s for s in blocks(DOCS / "howto/tune-recovery.md", "python") if "Harness" in s]
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 -- our own text
    namespace["test_it_is_tried_five_times_and_quarantined"]()


def test_the_tests_of_the_testing_how_to_do_as_it_says(tmp_path):
    page = (DOCS / "howto/test-a-consumer.md").read_text()
    written = r"(?:Write|Add to)\s`(\w+\.py)`:\n\n```python\n(.*?)```"
    for name, source in re.findall(written, page, re.DOTALL):
        with (tmp_path / name).open("a") as file:
            file.write(f"{source}\n\n")
    # The integration tests have a broker.
    (tmp_path / "test_broker.py").unlink()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "1 failed, 8 passed" in result.stdout, result.stdout
    [shown] = [
        block for block in blocks(DOCS / "howto/test-a-consumer.md", "text") if "E  " in block
    ]
    assert shown.replace("/home/me", str(tmp_path)) in result.stdout


def test_the_settings_on_the_recovery_pages_are_valid():
    names = ["howto/tune-recovery.md", "reference/framework.md", "reference/recovery.md"]
    pages = [DOCS / name for name in names]
    documents = [tomllib.loads(text) for page in pages for text in blocks(page, "toml")]
    assert documents
    for document in documents:
        own = document.get("consumer_config", {}).get("framework", {})
        settings.Framework.model_validate(own)
        settings.Qos.model_validate(document.get("qos", {}))


@pytest.mark.parametrize("page", ["howto/tune-recovery.md", "reference/handlers.md"])
def test_every_consumer_with_settings_of_its_own_is_valid(page):
    sources = [s for s in blocks(DOCS / page, "python") if "Recovery(" in s]
    assert sources
    for source in sources:
        exec(source, {"__name__": "consumer"})  # noqa: S102 -- our own text


def test_the_shown_output_of_explain_is_the_real_one():
    page = DOCS / "howto/repair-quarantined-messages.md"
    [shown] = [text for text in blocks(page, "text") if "decided by" in text]
    program = str(Path(sys.executable).with_name("fm-consumer"))
    result = subprocess.run(
        [program, "explain", "KeyError"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(shown)


def test_the_settings_in_the_python_reference_have_their_defaults():
    text = (DOCS / "reference/python-api.md").read_text(encoding="utf-8")
    [arguments] = re.findall(r"```text\nRecovery\((.*?)\)\n```", text, re.DOTALL)
    call = f"dict({arguments.removeprefix('*, ')})"
    shown = eval(call)  # noqa: S307 -- our own text
    assert list(shown) == list(settings.Recovery.model_fields)
    assert settings.Recovery(**shown) == settings.Recovery()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_a_page_exists_with_its_options(page):
    known = all_commands(main, "fm-consumer")
    lines = [line.strip() for block in blocks(page, "sh") for line in block.splitlines()]
    shown = [line for block in blocks(page, "console") for line in block.splitlines()]
    lines += [line[2:] for line in shown if line.startswith(("$ ", "# "))]
    for line in lines:
        found = re.match(r"(?:[A-Z_]+=\S+ )*(fm-consumer .*)", line)
        if found is None:
            continue
        [name] = [name for name in known if f"{found[1]} ".startswith(f"{name} ")]
        arguments = shlex.split(found[1].removeprefix(name), comments=True)
        click_command(name).make_context(name, arguments, resilient_parsing=False)


def click_command(line: str) -> click.Command:
    """Return the command of a command line without arguments."""
    command: Any = main
    for word in line.split()[1:]:
        command = command.get_command(click.Context(command), word)
    found: click.Command = command
    return found


def test_the_python_reference_has_every_public_name():
    text = (DOCS / "reference/python-api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    assert sorted(documented) == sorted(consumer_framework.__all__)
    documented = re.findall(r"^### `consumer_framework\.publishing\.(\w+)`$", text, re.MULTILINE)
    assert sorted(documented) == sorted(publishing.__all__)


def test_the_generated_pages_are_current_and_need_no_sphinx_to_be_read():
    found = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert found is not None
    assert found.loader is not None
    generate = importlib.util.module_from_spec(found)
    found.loader.exec_module(generate)
    for path, page_text in generate.generated().items():
        assert path.read_text(encoding="utf-8") == page_text, "run `make reference`"
    for page in PAGES:
        assert "{eval-rst}" not in page.read_text(encoding="utf-8"), page


def test_the_errors_in_the_configuration_reference_are_the_real_ones(tmp_path):
    good = blocks(ROOT / "README.md", "toml")[0]
    bad = good.replace("exclusive = false", 'exclusive = "no"').replace(
        'queue = "sample"', 'queue = "sampel"'
    )
    (tmp_path / "sample.toml").write_text(f"{bad}[qos]\nprefetch_coun = 1\n")
    program = str(Path(sys.executable).with_name("fm-consumer"))
    (tmp_path / "sample.py").write_text(blocks(ROOT / "README.md", "python")[0])
    result = subprocess.run(
        [program, "run", "--conf", "sample.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == ExitCode.CONFIGURATION
    [shown] = [
        text
        for text in blocks(DOCS / "reference/configuration.md", "text")
        if "prefetch_coun" in text
    ]
    assert result.stderr == shown


def test_the_smallest_consumer_of_the_readme_handles_a_message(capsys):
    namespace: dict[str, Any] = {}
    exec(blocks(ROOT / "README.md", "python")[0], namespace)  # noqa: S102 -- our own text
    namespace["Sample"]({}).handle(Message(topic="org.example.hello"))
    assert capsys.readouterr().out.startswith("org.example.hello")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_and_toml_on_a_page_have_no_syntax_errors(page):
    for source in blocks(page, "python"):
        compile(source, str(page), "exec")
    for document in blocks(page, "toml"):
        tomllib.loads(document)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_whole_configuration_on_a_page_is_valid(page):
    documents = [tomllib.loads(text) for text in blocks(page, "toml")]
    for document in documents:
        if "amqp_url" in document:
            defaults = {**upstream.DEFAULTS, "log_config": None, "monitoring": None}
            settings.parse({**defaults, **document})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_exists(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_and_the_index_lead_to_every_page():
    readme, index = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/index.md"))
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.glob("*/*.md")}
    assert {page for page in pages if f"\n{page}\n" not in index} == set()
    howtos = {page for page in pages if page.startswith(("howto/", "tutorial/"))}
    assert {page for page in howtos if f"](docs/{page}.md)" not in readme} == set()


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ["sphinx", "furo", "myst_parser"])),
    reason="the extra `docs` is not installed",
)
def test_the_documentation_builds_without_a_warning(tmp_path):
    options = ["-W", "--keep-going", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # A directive that the wrong parser reads becomes text, without a warning.
    for page in tmp_path.glob("*/*.html"):
        assert not re.search(r"\.\. [a-z]+::", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_has_a_text_that_a_forge_shows(page):
    assert re.findall(r"\[\]\([^)]*\)", page.read_text(encoding="utf-8")) == []


def test_each_test_that_the_page_on_publishing_names_exists():
    text = (DOCS / "explanation" / "publishing.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    files = (ROOT / "tests").glob("*/test_*.py")
    known = {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text())}
    assert len(named) > 20
    assert named <= known
