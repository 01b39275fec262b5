# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer web``: the page for the browser, where Cockpit is not installed."""

from __future__ import annotations

from pathlib import Path

import click

from consumer_framework.core.text import duration_text

from . import terminal
from .exit_codes import epilog
from .options import JSON, duration
from .terminal import Command, note


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  sudo fm-consumer web                      # open the printed address in a browser
  sudo fm-consumer web --port 8080          # from elsewhere: ssh -L 8080:127.0.0.1:8080 HOST
  fm-consumer web --socket ~/page.socket    # ssh -L 8080:/home/hazel/page.socket HOST
  fm-consumer web --idle 1h --json | jq -r .address
"""
    + epilog("web"),
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="Listen on this port of 127.0.0.1. Default: a free one.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path, resolve_path=True),
    metavar="FILE",
    help="Listen on a unix socket, which only this user may open; not on a port.",
)
@click.option(
    "--idle",
    default="15m",
    show_default=True,
    metavar="TIME",
    callback=duration,
    help="End when no browser has used the page for so long.",
)
@JSON
def web(port: int | None, socket: Path | None, idle: float, *, as_json: bool) -> None:
    """Serve a page that shows the instances of this host, until Ctrl-C.

    The page is the same as in Cockpit. It has the rights of this user in fm-consumer and
    systemctl, so use sudo, or be a member of fm-operators. The server listens on this machine
    only. The printed address works once, for one browser.
    """
    if port is not None and socket is not None:
        raise click.UsageError("give either --port or --socket, not both")
    if not idle:
        raise click.UsageError("--idle must be longer than 0s")
    # Late: the reactor must be installed before anything imports it, and --help must be quick.
    from consumer_framework.runtime import reactor  # noqa: PLC0415

    reactor.install()
    from consumer_framework.operate.page.server import serve  # noqa: PLC0415

    def announce(address: str) -> None:
        if as_json:
            terminal.print_json({"address": address, "socket": socket and str(socket)}, indent=None)
            return
        if socket is not None:
            click.echo(f"On your own machine, run: ssh -L PORT:{socket} HOST")
        click.echo("Open this address in a browser of your machine; it works once:")
        click.echo(f"  {address}")
        note(f"Ctrl-C ends it; it ends by itself after {duration_text(idle)} without use")

    serve(socket or port or 0, idle, announce)
