# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the generated parts of the reference: API, commands, settings, exit codes, metrics.

``python docs/generate.py`` writes ``reference/python-api.md`` from the docstrings, the part of
``reference/cli.md`` between two markers from ``fm-consumer --help``, and the tables of settings
from their declarations in :mod:`consumer_framework.settings`, the exit codes from
:mod:`consumer_framework.cli.exit_codes`, and the metrics from
:mod:`consumer_framework.runtime.observe.exposition`. The pictures of the architecture are drawn by
``docs/diagrams.py``. All are plain Markdown, so that a forge shows them as they
are. A test fails where they are not current.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from fedora_messaging.config import DEFAULTS

import consumer_framework
from consumer_framework import publishing, settings
from consumer_framework.cli import main
from consumer_framework.cli.exit_codes import EXIT_CODES, Meaning
from consumer_framework.core.errors import ExitCode
from consumer_framework.kit.command import CommandConfig
from consumer_framework.kit.forward import ForwardConfig
from consumer_framework.kit.insert_row import InsertRowConfig
from consumer_framework.kit.json_lines import JsonLinesConfig
from consumer_framework.kit.webhook import WebhookConfig
from consumer_framework.publishing.direct import Sender
from consumer_framework.runtime.control import openapi
from consumer_framework.runtime.control.routes import ROUTES
from consumer_framework.runtime.control.schema import answers_of
from consumer_framework.runtime.observe import exposition
from consumer_framework.settings.changes import takes_of
from consumer_framework.settings.schema import rows
from consumer_framework.testing import (
    Harness,
    assert_idempotent,
    capture_outbox,
    message_of,
    messages,
    no_unmocked_publish,
)
from consumer_framework.testing.broker import Broker
from consumer_framework.testing.broker.exchange import (
    OwnExchange,
    RunningConsumer,
    Subscription,
)

# The modules beside this one; a test loads this file by its path.
sys.path.insert(0, str(Path(__file__).parent))
from diagrams import pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from consumer_framework.runtime.observe.exposition import Family

REFERENCE = Path(__file__).parent / "reference"
BEGIN = "<!-- generated: fm-consumer --help -->"
END = "<!-- end of the generated part -->"

_API_HEAD = """\
# Python API

These names of the package `consumer_framework` are public, and those of
[Publishing from web applications](publishing-integrations.md).
Everything else may change in any release.
"""

# Each public name once, under its heading; with the methods that are shown.
API: dict[str, dict[str, tuple[str, ...]]] = {
    "Consumers": {
        "Consumer": ("setup", "handle", "teardown", "health", "once", "state_dir", "check_config"),
        "BatchConsumer": ("handle_batch", "once"),
        "Batch": ("fail",),
        "Recovery": (),
    },
    "Routes": {
        "on_topic": (),
        "on_message": (),
    },
    "Steps": {
        "Step": ("run", "done", "result"),
        "AsyncStep": ("run",),
    },
    "Exceptions that a handler raises on purpose": dict.fromkeys(
        ("Skip", "Retry", "Defer", "Drop", "Quarantine", "DependencyFault", "Halt"), ()
    ),
    "Helpers": dict.fromkeys(("on", "translate", "heartbeat", "JournalHandler", "Problem"), ()),
    "Other exceptions": dict.fromkeys(
        ("StepResultError", "HandlerTimeoutError", "ConsumerFrameworkError"), ()
    ),
}
PUBLISHING: dict[str, tuple[str, ...]] = {
    "publish": (),
    "publish_async": (),
    "Outbox": ("publish", "publish_async", "transaction", "transaction_async", "close"),
    "Outgoing": ("size",),
    "default": (),
    "set_default": (),
    "sender": (),
    "PublishError": (),
    "OutboxError": (),
    "NotSentError": (),
    "SendError": (),
}
_SENDER = ("__call__", "many", "open", "close")
_HARNESS = (
    *(
        "deliver",
        "deliver_raw",
        "kill_next",
        "advance",
        "cut",
        "crash",
        "restart",
        "replay",
        "drop",
    ),
    *("now", "halted", "paused", "acked", "rejected", "held", "deferred", "quarantined", "queued"),
    *("unsettled", "requeued", "attempts", "runs"),
)
_ON_A_BROKER = {
    OwnExchange: ("url", "publish", "subscribe", "run"),
    Subscription: ("get", "empty"),
    RunningConsumer: (
        *("log", "pid", "status", "wait_until_consuming", "wait_settled", "wait_end", "kill"),
    ),
}
_BROKER = ("missing", "port", "url", "url_for", "start", "stop")
# The plugin of pytest.
_FIXTURES = """\
| fixture of pytest | value | lives as long as |
|---|---|---|
| `consumer` | a function that starts a consumer and returns its `Harness`; its type is \
`ConsumerFactory` | the test |
| `capture_outbox` | the `CapturedMessages` of `capture_outbox()` | the test |
| `rabbitmq` | an `OwnExchange` | the test |
| `rabbitmq_broker` | the `Broker` of `rabbitmq` | the session |

| setting of pytest | values |
|---|---|
| `consumer_framework_unmocked_publish` | `fail`: a message that a test publishes and nothing \
records fails the test. `allow`: it is published. Without a value: `fail` in a project that \
imports `consumer_framework` or takes one of its fixtures |

| marker of pytest | effect |
|---|---|
| `unmocked_publish` | `allow` for one test |
""".splitlines()
# An author writes more than the parsed defaults show.
_SIGNATURES = {
    "Outbox": 'Outbox(database, settings=None, *, exchange="amq.topic", topic_prefix="")',
    "Recovery": (
        'Recovery(*, immediate=1, delays=("10s", "1m", "5m"), hold_slots=4, ack_timeout="30m", '
        'on_exhausted="quarantine", on_invalid="quarantine", crash_attempts=2, '
        'breaker={"consecutive": 5, "probe": ["30s", "5m"]}, rules=())'
    ),
}
_SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns"} | {
    "Raises": "Raises",
    "Yields": "Yields",
}


def python_api() -> str:
    """Return the page of the Python API."""
    lines = [_API_HEAD]
    for heading, names in API.items():
        lines += [f"## {heading}", ""]
        for name, methods in names.items():
            lines += _entry(getattr(consumer_framework, name), name, methods)
    lines += ["## Publishing", "", "[Publishing](publishing.md) explains these.", ""]
    for name, methods in PUBLISHING.items():
        value = getattr(publishing, name)
        lines += _entry(value, f"consumer_framework.publishing.{name}", methods)
        if name == "sender":
            lines += _entry(Sender, "consumer_framework.publishing.direct.Sender", _SENDER)
    lines += [
        "## Tests",
        "",
        "[Test a consumer](../howto/test-a-consumer.md) shows how to use these.",
        "",
        *_FIXTURES,
        "",
    ]
    lines += _entry(Harness, "consumer_framework.testing.Harness", _HARNESS)
    lines += _entry(Broker, "consumer_framework.testing.broker.Broker", _BROKER)
    for value, methods in _ON_A_BROKER.items():
        name = f"consumer_framework.testing.broker.exchange.{value.__name__}"
        lines += _entry(value, name, methods)
    functions = (assert_idempotent, message_of, messages, capture_outbox, no_unmocked_publish)
    for function in functions:
        lines += _entry(function, f"consumer_framework.testing.{function.__name__}", ())
    return _joined(lines) + "\n"


def _entry(value: Any, name: str, methods: tuple[str, ...]) -> Iterator[str]:
    yield from (f"### `{name}`", "", "```text", _wrapped(_signature(value, name)), "```", "")
    yield from markdown(inspect.getdoc(value) or "")
    for method in methods:
        member = inspect.getattr_static(value, method)
        function = getattr(value, method)
        shown = method if isinstance(member, property) else _signature(function, method)
        yield from (f"#### `{name.rpartition('.')[2]}.{method}`", "")
        if not isinstance(member, property):
            yield from ("```text", _wrapped(shown), "```", "")
        yield from markdown(inspect.getdoc(member) or inspect.getdoc(function) or "")


def _signature(value: Any, name: str) -> str:
    short = name.rpartition(".")[2]
    if short in _SIGNATURES:
        return _SIGNATURES[short]
    try:
        signature = inspect.signature(value)
    except ValueError:
        # An exception without an __init__ of its own.
        return short
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    empty = inspect.Signature.empty
    return f"{short}{signature.replace(parameters=bare, return_annotation=empty)}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 96, subsequent_indent="    ", break_on_hyphens=False)


def markdown(docstring: str) -> Iterator[str]:
    """Yield the lines of a docstring in Google's style as Markdown."""
    lines = docstring.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        if (title := line.removesuffix(":")) in _SECTIONS and line.endswith(":"):
            body, position = _block(lines, position + 1)
            yield from (f"{_SECTIONS[title]}:", "")
            yield from _items(body, named=title not in ("Returns", "Yields"))
        elif line.endswith("::"):
            body, position = _block(lines, position + 1)
            yield from (_inline(line[:-1]), "", "```python", *body, "```", "")
        elif line.startswith(">>> "):
            end = next((n for n in range(position, len(lines)) if not lines[n]), len(lines))
            yield from ("```pycon", *lines[position:end], "```", "")
            position = end + 1
        else:
            yield _inline(line)
            position += 1
    yield ""


def _block(lines: list[str], start: int) -> tuple[list[str], int]:
    """Return the indented block from *start*, and where it ends."""
    end = start
    while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
        end += 1
    return textwrap.dedent("\n".join(lines[start:end])).strip("\n").splitlines(), end


def _items(body: list[str], *, named: bool) -> Iterator[str]:
    items: list[str] = []
    for line in body:
        if line.startswith(" ") or not named or not line:
            items[-1:] = [f"{items[-1]} {line.strip()}"] if items else [line]
        else:
            items.append(line)
    for item in items:
        name, _, text = item.partition(": ")
        yield f"- `{name}`: {_inline(text)}" if named else f"- {_inline(item)}"
    yield ""


def _inline(text: str) -> str:
    """Return reStructuredText of one line as Markdown."""
    text = re.sub(r":\w+:`[~.]*(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def commands() -> str:
    """Return the commands, as their ``--help`` describes them."""
    lines = [BEGIN, ""]
    for name, command in _below(main, "fm-consumer"):
        context = click.Context(command, info_name=name, **main.context_settings)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## `{name}`", "", "```text", f"{name} {usage}", "```", ""]
        lines += _help(command.help or "")
        lines += [
            f"- `{term}`: {' '.join(text.split())}" for term, text in _terms(command, context)
        ]
        lines.append("")
        if command.epilog:
            lines += _help(command.epilog)
    return _joined([*lines, END])


def _joined(lines: list[str]) -> str:
    """Return *lines* as text, without two empty lines in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _below(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None and not below.hidden:
                yield from _below(below, f"{name} {word}")


def _terms(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    # Without --help: which names it has depends on the context in which it was first asked for.
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and record[1]:
            yield record


def _help(text: str) -> Iterator[str]:
    r"""Yield the paragraphs of help text; ``\b`` says that one is not to be filled."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from ("```text", paragraph.removeprefix("\b\n").rstrip(), "```", "")
        else:
            yield from (paragraph.strip(), "")


def with_commands(page: str) -> str:
    """Return *page* with its generated part anew."""
    before, _, rest = page.partition(BEGIN)
    return before + commands() + rest.partition(END)[2]


# The pages with tables of settings.
SETTINGS = (
    *("configuration.md", "framework.md", "publishing.md", "ready-made.md", "recovery.md"),
    "reload.md",
)
# The keys of ready-made consumers.
_OF_KIT = {
    one.__name__: one
    for one in (CommandConfig, WebhookConfig, JsonLinesConfig, ForwardConfig, InsertRowConfig)
}


def with_settings(page: str) -> str:
    """Return *page* with its tables of settings anew."""
    for marker, table in (("keys of", _keys), ("what a change takes in", _takes)):
        parts = re.compile(rf"(<!-- generated: {marker} (\w+) -->\n).*?({END}\n)", re.DOTALL)
        page = parts.sub(lambda found, table=table: found[1] + table(found[2]) + found[3], page)
    return page


def _keys(name: str) -> str:
    declared = _OF_KIT.get(name) or getattr(settings, name)
    table = rows(declared, DEFAULTS if name == "Settings" else None)
    return _table("| key | type | default | meaning |\n|---|---|---|---|", map(str, table))


def _takes(name: str) -> str:
    efforts = takes_of(getattr(settings, name)).items()
    return _table(
        "| key | takes |\n|---|---|", (f"| `{k}` | {effort.value} |" for k, effort in efforts)
    )


def with_exit_codes(page: str) -> str:
    """Return *page* with its tables of exit codes anew."""
    parts = re.compile(rf"(<!-- generated: exit codes of ([\w ]+) -->\n).*?({END}\n)", re.DOTALL)
    return parts.sub(lambda found: found[1] + _exit_codes(found[2]) + found[3], page)


# The commands whose tables stand alone; the others follow each other.
_SERVICES = ("run", "outbox relay")


def _exit_codes(commands: str) -> str:
    if commands in _SERVICES:
        return _codes_of(commands)
    others = [name for name in EXIT_CODES if name not in _SERVICES]
    return "".join(
        f"\n## `fm-consumer {name}`\n{_shared(name)}{_codes_of(name)}" for name in sorted(others)
    )


def _shared(name: str) -> str:
    own = [f"`{other}`" for other in EXIT_CODES if other.startswith(f"{name} ")]
    return f"\nFor all of its commands but {', '.join(sorted(own))}:\n" if own else ""


def _codes_of(command: str) -> str:
    names = {str(code.value): f"`{code.name}`" for code in ExitCode} if command == "run" else {}
    columns: dict[str, Callable[[Meaning], str]] = {"code": lambda one: one.codes}
    if names:
        columns["name"] = lambda one: names.get(one.codes, "")
    columns["meaning"] = lambda one: one.sentence
    if any(one.remedy for one in EXIT_CODES[command]):
        columns["remedy"] = lambda one: one.remedy
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    lines = [
        f"| {' | '.join(cell(one) for cell in columns.values())} |" for one in EXIT_CODES[command]
    ]
    return _table(head, lines)


def with_metrics(page: str) -> str:
    """Return *page* with its tables of metrics anew."""
    parts = re.compile(rf"(<!-- generated: metrics of (\w+) -->\n).*?({END}\n)", re.DOTALL)
    return parts.sub(lambda found: found[1] + _metrics(found[2]) + found[3], page)


def _metrics(name: str) -> str:
    families: tuple[Family, ...] = getattr(exposition, name)
    return _table(
        "| metric | type | labels | meaning |\n|---|---|---|---|",
        (
            f"| `{each.name}{'_total' * (each.kind == 'counter')}` | {each.kind} "
            f"| {', '.join(f'`{label}`' for label in each.labels)} | {each.text} |"
            for each in families
        ),
    )


def _table(head: str, lines: Iterable[str]) -> str:
    return "\n".join(("", head, *lines, "", ""))


_API_BEGIN = "<!-- generated: the control API -->"
_API_END = "<!-- end of the control API -->"
# SQLite's numbers end there, which no reader meets.
_NO_LIMIT = 2**63 - 1


def with_control_api(page: str) -> str:
    """Return *page* with the requests of the control API between the markers."""
    head, _, rest = page.partition(_API_BEGIN)
    tail = rest.partition(_API_END)[2]
    return f"{head}{_API_BEGIN}\n\n{_joined([*control_api()])}\n\n{_API_END}{tail}"


def control_api() -> Iterator[str]:
    """Yield the requests of the control API, and the fields of their answers."""
    schemas = openapi.document()["components"]["schemas"]
    yield from ("## All requests", "")
    for route in ROUTES:
        schema = schemas[route.request.__name__]
        yield from (f"### `{route.method} {route.path}`", "", schema["description"], "")
        yield from (openapi.RIGHTS[route.right], "", *_fields_of(schema))
        answers = ", ".join(_link(kind.__name__) for kind in answers_of(route.request))
        yield from (f"{'A stream' if route.is_stream else 'Answer'}: {answers}.", "")
    for path, text in openapi.PAGES.items():
        yield from (f"### `GET {path}`", "", f"{text} It is no JSON.", "")
    yield from ("## All objects", "")
    requests = {route.request.__name__ for route in ROUTES}
    for name in sorted(schemas.keys() - requests):
        schema = schemas[name]
        yield from (f"### {name}", "", schema["description"], "", *_fields_of(schema))


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _fields_of(schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties", {})
    if not properties:
        return
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for name, field in properties.items():
        default = "required" if name in schema.get("required", []) else _default_of(field)
        meaning = field.get("description", "").replace("|", r"\|")
        yield f"| `{name}` | {_type_of(field)} | {default} | {meaning} |"
    yield ""


def _default_of(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else "its own defaults"


def _type_of(field: dict[str, Any]) -> str:
    """Return a JSON schema of one field in words."""
    if "$ref" in field:
        return _link(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " or ".join(map(_type_of, field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type_of(field['items'])}"
    limits = {"maximum": "at most", "exclusiveMinimum": "more than", "maxLength": "length at most"}
    named = [
        f"{word} {field[key]:g}"
        for key, word in limits.items()
        if key in field and field[key] < _NO_LIMIT
    ]
    return ", ".join([field.get("type", "any JSON"), *named])


def generated() -> dict[Path, str]:
    """Return the text of each page that has a generated part."""
    api = REFERENCE / "control-api.md"
    cli, exits = REFERENCE / "cli.md", REFERENCE / "exit-codes.md"
    metrics = REFERENCE / "metrics.md"
    return {
        REFERENCE / "python-api.md": python_api(),
        cli: with_commands(cli.read_text(encoding="utf-8")),
        exits: with_exit_codes(exits.read_text(encoding="utf-8")),
        metrics: with_metrics(metrics.read_text(encoding="utf-8")),
        **{
            REFERENCE / name: with_settings((REFERENCE / name).read_text(encoding="utf-8"))
            for name in SETTINGS
        },
        api: with_control_api(api.read_text(encoding="utf-8")),
        REFERENCE / "openapi.json": json.dumps(openapi.document(), indent=2) + "\n",
        **pictures(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
