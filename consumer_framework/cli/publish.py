# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer publish``: publishes messages of a file, of a pipe or of the command line."""

from __future__ import annotations

import difflib
import json
import shlex
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.text import plural

from . import terminal
from .exit_codes import epilog
from .options import (
    CONFIGURATION_DIRECTORY,
    JSON,
    complete_instance,
    configuration_file,
    may_exist,
    no_such_instance,
)
from .publish_progress import Progress
from .terminal import Command, Refusal, note

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.shell_completion import CompletionItem
    from fedora_messaging.message import Message

    from consumer_framework.operate.publishing import (
        BadLineError,
        Nowhere,
        Publication,
        Source,
        ToBroker,
        ToOutbox,
    )
    from consumer_framework.publishing.message import Outgoing, PublishError
    from consumer_framework.settings import OutboxSettings

_LEFT_OUT, _UNREACHABLE, _BAD_DATA, _NOT_TAKEN = 1, 14, 65, 75
_SEVERITIES = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SIGINT = 2
# Bad lines that are shown, and messages that have no rate.
_SHOWN = 20
_OF_MESSAGE = ("topic", "body", "schema", "severity", "priority", "header")

_MORE = """
\b
Examples:
  fm-consumer publish --topic app.build.done --body '{"build": 17}'
  fm-consumer publish --schema bodhi.update.request.testing.v1 --body @update.json
  fm-consumer publish recorded.jsonl --dry-run
  fm-consumer publish recorded.jsonl --new-ids --conf staging.toml --direct
  zcat old.jsonl.gz | fm-consumer publish - --keep-going
""" + epilog("publish")


def _complete_schema(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from consumer_framework.publishing.lines import schemas  # noqa: PLC0415

    return [name for name in schemas() if name.startswith(incomplete)]


@click.command(cls=Command, epilog=_MORE)
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--topic", help="Publish one message with this topic.")
@click.option(
    "--body", metavar="JSON|@FILE", help="Its body: an object of JSON, or a file. Default: {}."
)
@click.option(
    "--schema",
    metavar="NAME",
    shell_complete=_complete_schema,
    help="Its message class, by the name of its entry point. Default: base.message.",
)
@click.option("--severity", type=click.Choice(list(_SEVERITIES)), help="Default: its class's.")
@click.option("--priority", type=click.IntRange(0, 255), help="For queues with priorities.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME=TEXT", help="May be given several times."
)
@click.option(
    "--ordering-key", metavar="KEY", help="Messages with the same key are sent in their order."
)
@click.option("--exchange", help="Publish to it. Default: 'publish_exchange' of the configuration.")
@click.option(
    "--prefix/--no-prefix",
    default=None,
    help="Put 'topic_prefix' of the configuration before each topic. Default: before --topic, "
    "not before the topics of a file, which are complete.",
)
@click.option(
    "--new-ids",
    is_flag=True,
    help="Give each message of a file a new id and the present time, so that every consumer takes "
    "it for a new message. Default: it keeps them.",
)
@click.option("--skip", type=click.IntRange(0), default=0, metavar="N", help="Skip N lines.")
@click.option(
    "--keep-going", is_flag=True, help="Leave out lines that are invalid, and publish the others."
)
@click.option(
    "--conf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read this configuration. Default: $FEDORA_MESSAGING_CONF, or "
    "/etc/fedora-messaging/config.toml, or the broker of this machine.",
)
@click.option(
    "--instance",
    metavar="NAME",
    shell_complete=complete_instance,
    help="Read /etc/fedora-messaging/NAME.toml.",
)
@click.option(
    "--direct/--outbox",
    "is_direct",
    default=None,
    help="Send to the broker and wait for it, or store in the outbox. Default: store if the "
    "configuration names an outbox's database, otherwise send.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600),
    default=30.0,
    metavar="SECONDS",
    show_default=True,
    help="With --direct: try a message again for so long.",
)
@click.option("--dry-run", is_flag=True, help="Validate everything, and publish nothing.")
@JSON
def publish(**given: Any) -> None:
    """Publish the messages of FILE, or one message of --topic and --body.

    FILE has a JSON object on each line, as `fedora-messaging record`, datagrepper and the exports
    of fm-consumer write them; "-" is standard input. Every line is validated before the first one
    is published; of a pipe, each before it is published itself.

    A message is stored in the outbox of the configuration, from which a relay sends it. Without an
    outbox it is sent to the broker, and the command waits until the broker has it.
    """
    options = _Options(**given)
    options.check()
    setup = _Setup.of(options)
    run = _Run(options, setup)
    raise click.exceptions.Exit(run.file() if options.file else run.message())


@dataclass(frozen=True, slots=True)
class _Options:
    """The command line."""

    file: Path | None
    topic: str | None
    body: str | None
    schema: str | None
    severity: str | None
    priority: int | None
    headers: tuple[str, ...]
    ordering_key: str | None
    exchange: str | None
    prefix: bool | None
    new_ids: bool
    skip: int
    keep_going: bool
    conf: Path | None
    instance: str | None
    is_direct: bool | None
    timeout: float
    dry_run: bool
    as_json: bool

    @property
    def name(self) -> str:
        """The name of the source, for people."""
        return "standard input" if str(self.file) == "-" else str(self.file)

    def check(self) -> None:
        """Refuse options that do not go together."""
        of_message = [name for name in _OF_MESSAGE if self._value(name) not in (None, ())]
        of_file = [name for name in ("new_ids", "skip", "keep_going") if self._value(name)]
        if self.file is None and not of_message:
            raise click.UsageError("name a FILE, or - for standard input, or give --topic")
        if self.file is not None and of_message:
            raise click.UsageError(f"--{of_message[0]} is for one message, without a FILE")
        if self.file is None and of_file:
            option = of_file[0].replace("_", "-")
            raise click.UsageError(f"--{option} is for the messages of a FILE")

    def _value(self, name: str) -> Any:
        return self.headers if name == "header" else getattr(self, name)


# The message of the command line


def _message_of(options: _Options) -> Message:
    from consumer_framework.publishing.lines import BASE, class_of  # noqa: PLC0415

    name = options.schema or BASE
    kind = class_of(name)
    if kind is None:
        raise Refusal(_unknown(name))
    topic = options.topic or kind.topic
    if not topic:
        raise click.UsageError(f"--topic is missing: the class {name} has no topic of its own")
    severity = None if options.severity is None else _SEVERITIES[options.severity]
    made = kind(_body(options.body), topic=topic, severity=severity, headers=_headers(options))
    if options.priority is not None:
        made.priority = options.priority
    return made


def _unknown(name: str) -> str:
    from consumer_framework.publishing.lines import schemas  # noqa: PLC0415

    known = schemas()
    near = difflib.get_close_matches(name, known, 3, 0.5) or known[:5]
    cure = "install the package that has it, or use one of those that are here"
    return f"there is no message class {terminal.safe(name)}; {cure}, such as {', '.join(near)}"


def _body(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    text = given
    if given.startswith("@"):
        try:
            with click.open_file(given[1:], "rb") as file:
                text = file.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            what = getattr(error, "strerror", None) or "is no UTF-8"
            raise click.BadParameter(f"{given[1:]}: {what}", param_hint="--body") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"""is no JSON: {error}; write it as '{{"key": "value"}}'"""
        raise click.BadParameter(what, param_hint="--body") from None
    if not isinstance(found, dict):
        raise click.BadParameter("is no object of JSON: write {...}", param_hint="--body")
    return found


def _headers(options: _Options) -> dict[str, Any]:
    found = {}
    for given in options.headers:
        name, equals, text = given.partition("=")
        if not (name and equals):
            raise click.BadParameter("write it as NAME=TEXT", param_hint="--header")
        if name.startswith("fedora_messaging_") or name in {"sent-at", "priority"}:
            what = f"{name} is a header of fedora-messaging; use --schema, --severity, --priority"
            raise click.BadParameter(what, param_hint="--header")
        found[name] = text
    return found


# The destination


@dataclass(frozen=True, slots=True)
class _Setup:
    """The configuration, as far as it matters here.

    Attributes:
        path: Its file; None for the defaults.
        document: The values of fedora-messaging.
        settings: The outbox.
        is_direct: True to send at once.
        prepare: Validates and serialises a message.
    """

    path: Path | None
    document: Mapping[str, Any]
    settings: OutboxSettings
    is_direct: bool
    prepare: Callable[[Message], Outgoing]

    @classmethod
    def of(cls, options: _Options) -> _Setup:
        """Read the configuration."""
        from fedora_messaging import config as upstream_config  # noqa: PLC0415

        path = configuration_file(options.instance, options.conf)
        if options.instance and path is not None and not may_exist(path):
            raise no_such_instance(options.instance, path)
        settings, is_direct = _settings(options, path)
        document = upstream_config.conf
        prepare = _preparation(options, document, settings)
        return cls(path, document, settings, is_direct, prepare)

    def connect(self, options: _Options) -> ToOutbox | ToBroker | Nowhere:
        """Return the destination, connected."""
        from consumer_framework.core.errors import ConfigurationError  # noqa: PLC0415
        from consumer_framework.operate.publishing import Nowhere  # noqa: PLC0415

        if options.dry_run:
            return Nowhere()
        try:
            if self.is_direct:
                return _to_broker(options, self.document, self.settings)
            return _to_outbox(self.settings)
        except ConfigurationError as error:
            raise ConfigurationError(*error.located, source=str(self.path or "")) from None


def _settings(options: _Options, path: Path | None) -> tuple[OutboxSettings, bool]:
    """Read the configuration; return the outbox's part, and true to send at once."""
    import logging  # noqa: PLC0415

    from consumer_framework.adapters import config, log  # noqa: PLC0415
    from consumer_framework.adapters.systemd.notify import is_journal  # noqa: PLC0415
    from consumer_framework.runtime.assembly.access import from_outside  # noqa: PLC0415

    log.set_up(None, is_journal, level=logging.ERROR)
    instance = path.stem if path else ""
    settings = config.load(path, access=from_outside(path, instance)).framework.outbox
    is_direct = settings.database is None if options.is_direct is None else options.is_direct
    if is_direct and not options.dry_run:
        # It connects, and so needs the password even if only the service can read it.
        config.load(path, access=from_outside(path, instance, lenient=False))
    return settings, is_direct


def _preparation(
    options: _Options, document: Mapping[str, Any], settings: OutboxSettings
) -> Callable[[Message], Outgoing]:
    from consumer_framework.publishing.message import outgoing  # noqa: PLC0415

    has_prefix = options.file is None if options.prefix is None else options.prefix
    values: dict[str, Any] = {
        "exchange": options.exchange or document["publish_exchange"],
        "topic_prefix": document["topic_prefix"] if has_prefix else "",
        "ordering_key": options.ordering_key,
        "max_body": settings.max_body,
    }
    return lambda message: outgoing(message, now=time.time(), **values)


def _to_broker(
    options: _Options, document: Mapping[str, Any], settings: OutboxSettings
) -> ToBroker:
    from consumer_framework.operate.publishing import ToBroker  # noqa: PLC0415
    from consumer_framework.publishing.direct import sender_of  # noqa: PLC0415
    from consumer_framework.publishing.messengers import endpoints_of  # noqa: PLC0415
    from consumer_framework.publishing.messengers.failover import host_of  # noqa: PLC0415

    sender = sender_of(document, settings, options.timeout)
    try:
        sender.open()
    except ConnectionError as error:
        key = "outbox.endpoints" if settings.endpoints else "amqp_url"
        cure = f"start it, or name another with {key} in the file of --conf"
        terminal.complain(ConnectionError(f"the broker cannot be reached: {error}; {cure}"))
        raise click.exceptions.Exit(_UNREACHABLE) from None
    exchange = options.exchange or document["publish_exchange"]
    endpoint = sender.endpoint or host_of(endpoints_of(document, settings).urls[0])
    places = {
        "dummy": "to nobody: the messenger is dummy",
        "fedmsg": f"to the subscribers of {endpoint}",
    }
    return ToBroker(sender, places.get(settings.messenger, f"to exchange {exchange} at {endpoint}"))


def _to_outbox(settings: OutboxSettings) -> ToOutbox:
    from consumer_framework.operate.publishing import ToOutbox  # noqa: PLC0415
    from consumer_framework.publishing.outbox import Outbox, database_of  # noqa: PLC0415

    return ToOutbox(Outbox(database_of(settings), settings))


# The publication


def _code_of(error: PublishError | OSError) -> int:
    return _BAD_DATA if getattr(error, "is_final", False) else _NOT_TAKEN


@dataclass
class _Run:
    """One run of the command."""

    options: _Options
    setup: _Setup
    began: float = field(default_factory=time.monotonic)
    bad: list[BadLineError] = field(default_factory=list)
    bad_count: int = 0
    destination: ToOutbox | ToBroker | Nowhere = field(init=False)

    def message(self) -> int:
        """Publish the message of the command line; return the exit code."""
        from fedora_messaging.exceptions import ValidationError  # noqa: PLC0415

        from consumer_framework.operate.publishing import Publication  # noqa: PLC0415
        from consumer_framework.publishing.message import PublishError, schema_fault  # noqa: PLC0415

        try:
            prepared = self.setup.prepare(_message_of(self.options))
        except ValidationError as error:
            terminal.complain(ValueError(f"the message {schema_fault(error)}"))
            return _BAD_DATA
        except PublishError as error:
            terminal.complain(error)
            return _BAD_DATA
        self.destination = self.setup.connect(self.options)
        with closing(self.destination):
            publication = Publication(self.setup.prepare, self.destination)
            try:
                publication.one(prepared)
            except PublishError as error:
                terminal.complain(error)
                return _code_of(error)
            self._sum_up(publication, prepared)
        return 0

    def file(self) -> int:
        """Publish the messages of the file; return the exit code."""
        from consumer_framework.operate.publishing import Source  # noqa: PLC0415

        given = self.options.file
        try:
            source = Source(None if str(given) == "-" else given, self.options.skip)
        except OSError as error:
            raise Refusal(f"{self.options.name}: {error.strerror}") from None
        with closing(source):
            self.destination = self.setup.connect(self.options)
            with closing(self.destination):
                return self._published(source)

    def _published(self, source: Source) -> int:
        from consumer_framework.operate.publishing import BadLineError, Publication  # noqa: PLC0415
        from consumer_framework.publishing.lines import LineReader  # noqa: PLC0415
        from consumer_framework.publishing.message import PublishError  # noqa: PLC0415

        reader = LineReader(self.options.new_ids)
        publication = Publication(self.setup.prepare, self.destination, reader)
        progress = Progress(publication.position, source, is_on=not self.options.as_json)
        publication.tell = progress.show
        try:
            if self._is_refused(source, publication, progress):
                return _BAD_DATA
            if self.options.keep_going:
                publication.leave_out = lambda error: self._tell_bad(error, progress)
            publication.run(source)
        except BadLineError as error:
            self._tell_bad(error, progress)
            return self._stop(publication, "", _BAD_DATA)
        except (PublishError, OSError) as error:
            progress.clear()
            return self._stop(publication, str(error), _code_of(error))
        except KeyboardInterrupt:
            progress.clear()
            number = publication.interrupted_by or _SIGINT
            return self._stop(publication, "interrupted", 128 + number)
        progress.clear()
        self._sum_up(publication)
        return _LEFT_OUT if publication.position.left_out else 0

    def _is_refused(self, source: Source, publication: Publication, progress: Progress) -> bool:
        """Validate the lines of a file; if some are invalid, say so."""
        if source.size is None or self.options.keep_going:
            return False
        progress.verb = "validated"
        for error in publication.check(source):
            self._tell_bad(error, progress)
        progress.verb = ""
        if self.bad_count:
            lines = plural(self.bad_count, "line")
            cure = "mend them, or leave them out with --keep-going"
            note(f"nothing was published: {lines} of {self.options.name} cannot be; {cure}")
            self._print_json(publication)
        return bool(self.bad_count)

    def _tell_bad(self, error: BadLineError, progress: Progress) -> None:
        self.bad_count += 1
        if self.bad_count <= _SHOWN:
            self.bad.append(error)
            progress.clear()
            terminal.complain(ValueError(f"{self.options.name}:{error.number}: {error.reason}"))
        elif self.bad_count == _SHOWN + 1:
            note("more lines are invalid, and not shown")

    def _stop(self, publication: Publication, reason: str, code: int) -> int:
        """Say how far the publication came, and how to go on."""
        position = publication.position
        if reason:
            terminal.complain(RuntimeError(reason))
        line = max(position.line, self.options.skip)
        where = f"up to line {line:,} of {self.options.name}"
        behind = "; some behind it perhaps too" if position.may_repeat else ""
        done = f"{plural(position.messages, 'message')} {self._done}, {where}{behind}"
        note(f"{done}; go on with --skip {line}")
        self._print_json(publication)
        return code

    # The summary

    @property
    def _done(self) -> str:
        from consumer_framework.operate import publishing as host  # noqa: PLC0415

        words = {host.ToOutbox: "stored", host.ToBroker: "sent", host.Nowhere: "valid"}
        return words[type(self.destination)]

    def _sum_up(self, publication: Publication, sent: Outgoing | None = None) -> None:
        if self.options.as_json:
            self._print_json(publication, sent)
            return
        for line in self._summary(publication, sent):
            click.echo(terminal.safe(line))
        self._notes(publication)

    def _summary(self, publication: Publication, sent: Outgoing | None) -> list[str]:
        count, seconds = publication.position.messages, time.monotonic() - self.began
        what = plural(count, "message")
        if sent is not None:
            what = f"message {sent.id} ({sent.topic})"
        if not self.destination.place:
            return [f"{what} {'is' if count == 1 else 'are'} valid; nothing was published"]
        rate = f" ({count / max(seconds, 0.001):,.0f}/s)" if count > _SHOWN else ""
        return [f"{what} {self._done} {self.destination.place}{rate}", *self._then(sent)]

    def _then(self, sent: Outgoing | None) -> list[str]:
        """Return the lines about the fate of the messages."""
        from consumer_framework.operate.publishing import ToBroker, ToOutbox  # noqa: PLC0415

        match self.destination:
            case ToOutbox() as outbox if outbox.has_relay():
                return ["a relay sends from there"]
            case ToOutbox():
                cure = f"start one with '{self._relay}', or send at once with --direct"
                return [f"no relay sends from there at present: {cure}"]
            case ToBroker(unroutable=unroutable) if unroutable and sent:
                return ["no queue is bound for its topic: nobody gets it"]
            case ToBroker(unroutable=unroutable) if unroutable:
                which = plural(unroutable, "message")
                return [f"no queue is bound for the topics of {which}: nobody gets these"]
        return []

    @property
    def _relay(self) -> str:
        """The command that starts a relay for this configuration."""
        path = self.setup.path
        if path is not None and path.absolute().parent == CONFIGURATION_DIRECTORY:
            return f"systemctl start fm-outbox@{path.stem}"
        return shlex.join(["fm-consumer", "outbox", "relay", "--conf", str(path)])

    def _notes(self, publication: Publication) -> None:
        reader, position = publication.reader, publication.position
        for schema, count in reader.unknown_schemas.items():
            what = f"the class {schema} of {plural(count, 'message')} is not installed here"
            note(f"{what}: only the form of their bodies was checked")
        if reader.kept_ids and not self.options.dry_run:
            what = f"{plural(reader.kept_ids, 'message')} kept the id and the time of the file"
            note(f"{what}; consumers that had them may ignore them: see --new-ids")
        if position.left_out:
            note(f"{plural(position.left_out, 'line')} left out")

    def _print_json(self, publication: Publication, sent: Outgoing | None = None) -> None:
        from consumer_framework.operate.publishing import ToBroker, ToOutbox  # noqa: PLC0415

        if not self.options.as_json:
            return
        position, to = publication.position, self.destination
        terminal.print_json(
            {
                "done": self._done,
                "place": to.place,
                "messages": position.messages,
                "line": position.line,
                "may_repeat": position.may_repeat,
                "left_out": position.left_out,
                "bad_lines": [{"line": bad.number, "reason": bad.reason} for bad in self.bad],
                "unroutable": to.unroutable if isinstance(to, ToBroker) else None,
                "has_relay": to.has_relay() if isinstance(to, ToOutbox) else None,
                "unknown_schemas": publication.reader.unknown_schemas,
                "id": sent.id if sent else None,
                "topic": sent.topic if sent else None,
                "seconds": round(time.monotonic() - self.began, 3),
            }
        )
