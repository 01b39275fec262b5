# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer bindings``: prints the bindings that the routes of a consumer need."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import terminal
from .exit_codes import epilog
from .options import JSON, complete_instance, configuration_file
from .terminal import Command, Refusal

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.operate.bindings import ConsumerNeeds, RouteNeeds

_QUEUE = "NAME"


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer bindings sample
  fm-consumer bindings mypackage.consumer:Builds
  fm-consumer bindings mypackage.consumer:Builds --conf sample.toml --json
"""
    + epilog("bindings"),
)
@click.argument(
    "name", metavar="[NAME|MODULE:CLASS]", required=False, shell_complete=complete_instance
)
@click.option(
    "--conf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read this configuration: its callback, its topic_prefix, its queue and its exchange.",
)
@click.option(
    "--callback-file",
    default="",
    metavar="FILE.py:CLASS",
    help="Take the consumer of this Python file.",
)
@JSON
def bindings(name: str | None, conf: Path | None, callback_file: str, *, as_json: bool) -> None:
    """Print the [[bindings]] that the routes of a consumer need, for its configuration file.

    NAME is an instance; MODULE:CLASS is a consumer with or without a configuration. The keys come
    from the patterns of @on_topic. For @on_message they are the topics that the message classes
    declare; a comment names the classes that declare none. A key that another one covers is left
    out. 'fm-consumer check' compares the bindings of a file with the routes.
    """
    from consumer_framework.runtime import reactor  # noqa: PLC0415 -- authors' modules may need it

    spec = name if name is not None and ":" in name else ""
    instance = None if spec else name
    is_loose = bool((spec or callback_file) and conf is None and instance is None)
    file = None if is_loose else configuration_file(instance, conf)
    if file is None and not is_loose:
        raise click.UsageError("name an instance, a MODULE:CLASS, or a file with --conf")
    reactor.install()
    from consumer_framework.operate.bindings import needs_of  # noqa: PLC0415

    # Authors' modules may print; that is no part of the bindings.
    with redirect_stdout(sys.stderr):
        needs = needs_of(file, spec, callback_file)
    if not needs.routes:
        what = f"{needs.callback} has no routes, so nothing says which messages it needs"
        raise Refusal(f"{what}: decorate its methods with @on_topic or @on_message")
    if as_json:
        terminal.print_json(document(needs))
        return
    for line in _lines(needs):
        click.echo(terminal.safe(line))


def document(needs: ConsumerNeeds) -> dict[str, Any]:
    """Return the needs as JSON has them."""
    return {
        "callback": needs.callback,
        "queue": needs.queue or None,
        "exchange": needs.exchange,
        "routing_keys": list(needs.keys),
        "takes_rest": needs.takes_rest,
        "routes": [_route_document(route) for route in needs.routes],
    }


def _route_document(route: RouteNeeds) -> dict[str, Any]:
    found = asdict(route)
    del found["topics"]
    return found


def _lines(needs: ConsumerNeeds) -> Iterator[str]:
    keys = needs.keys
    if keys:
        yield "[[bindings]]"
        end = "" if needs.queue else "  # the name of its [queues.NAME]"
        yield f"queue = {json.dumps(needs.queue or _QUEUE)}{end}"
        yield f"exchange = {json.dumps(needs.exchange)}"
        yield "routing_keys = ["
        for key, routes in keys.items():
            yield f"    {json.dumps(key)},  # {', '.join(routes)}"
        yield "]"
    for route in needs.routes:
        yield from _remarks(route)
    if needs.takes_rest:
        yield "# handle() takes all other messages: add the topics that it is to have."


def _remarks(route: RouteNeeds) -> Iterator[str]:
    for name in route.undeclared:
        yield f"# {route.route}: {name} declares no topic; add the topics of its publisher."
    for name in route.absent:
        yield f"# {route.route}: no installed package registers {name}: no message has this class."
