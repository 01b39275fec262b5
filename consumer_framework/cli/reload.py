# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer reload``: a running instance reads its configuration again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from . import terminal
from .options import CONF, JSON, STATE_DIR, no_such_instance, where, words
from .terminal import Command, safe

# `run` needs what these import: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from .options import Where

_REFUSED = 1
# Bytes; no configuration has as many, and a request has its limit.
_LONGEST_FILE = 128 << 10


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer reload sample
  fm-consumer reload builds builds_2          # each of them by itself
  fm-consumer reload sample --json | jq .instances[0].problems
  fm-consumer reload --conf ./test.toml       # as given to 'fm-consumer run'
\b
Exit code: 0 if the file is in force, but for what is said to take a restart; 1 if an instance
refused it and goes on with its old settings, or does not run; 2 if the command made no sense.
""",
)
@words("INSTANCE...")
@CONF
@STATE_DIR
@JSON
def reload(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Let running instances read their configuration again.

    The file is checked whole before anything changes. One that is wrong is refused, and the
    instance goes on as before. No message is lost or handled twice. What changes only with a
    restart is named, and stays as it is. Python modules are not imported again: new code takes a
    restart, too. As root, the command hands over a file that only root may read.
    """
    if conf and words:
        raise click.UsageError("give either INSTANCE or --conf, not both")
    if state_dir and len(words) > 1:
        raise click.UsageError("--state-dir needs one INSTANCE")
    # Refuses what no instance can be called, before any of them is told.
    instances = [where([word], None, state_dir) for word in words]
    answers = [_reload(at, as_json=as_json) for at in instances or [where([], conf, state_dir)]]
    if as_json:
        terminal.print_json({"instances": answers})
    if any(answer["result"] in {"refused", "not running"} for answer in answers):
        raise click.exceptions.Exit(_REFUSED)


def _reload(at: Where, *, as_json: bool) -> dict[str, Any]:
    answer = _ask(at, as_json=as_json)
    if not as_json:
        _show(at, answer)
    return {"instance": at.instance, **answer}


def _ask(at: Where, *, as_json: bool) -> dict[str, Any]:
    from consumer_framework.runtime.control import client  # noqa: PLC0415

    with client.connected(at.directory, at.instance) as running:
        if running is None:
            return {"result": "not running", "changes": [], "problems": [], "notes": []}
        running.wait_long()
        request = {"do": "reload", **_file_of(at)}
        for answer in running.ask(request, "it reads the file when it is started again"):
            if "result" in answer:
                return answer
            if not as_json:
                click.echo(f"{at.instance}: {safe(answer['step'])}", err=True)
    raise client.ControlError("the instance did not say what came of it; see its log (journalctl)")


def _file_of(at: Where) -> dict[str, Any]:
    """What root alone may read goes with the order: the instance runs as another user."""
    if os.geteuid() != 0:
        return {}
    try:
        data = at.file.read_bytes()
    except OSError:
        # The instance says what is wrong with it.
        return {}
    if len(data) > _LONGEST_FILE:
        return {}
    text = data.decode(errors="surrogateescape")
    return {"file": {"path": str(at.file.absolute()), "text": text}}


def _show(at: Where, answer: dict[str, Any]) -> None:
    match answer["result"]:
        case "not running":
            _show_absence(at)
        case "refused":
            _complain(f"{at.instance} goes on with its old settings:")
            for problem in answer["problems"]:
                _complain(f"  {_text(problem)}")
        case _:
            _show_changes(at, answer)


def _show_absence(at: Where) -> None:
    if at.file.exists():
        _complain(f"{at.instance} does not run; it reads {at.file} when it is started")
    else:
        terminal.complain(no_such_instance(at.instance, at.file))


def _show_changes(at: Where, answer: dict[str, Any]) -> None:
    for note in answer["notes"]:
        _complain(f"{at.instance}: {note}")
    if not answer["changes"]:
        click.echo(f"{at.instance}: nothing has changed")
        return
    waiting = [change for change in answer["changes"] if change["takes"] == "restart"]
    for change in answer["changes"]:
        if change not in waiting:
            click.echo(f"{at.instance}: {safe(_line(change))}")
    for change in waiting:
        what = safe(f"{_line(change)}: takes a restart")
        click.echo(f"{at.instance}: {terminal.doubtful(what)}")
    click.echo(f"{at.instance}: {terminal.good('reloaded')}")


def _line(change: dict[str, Any]) -> str:
    return f"{change['path']}: {change['text']}"


def _text(problem: dict[str, Any]) -> str:
    parts = (problem["source"], problem["path"], problem["message"])
    cure = f"; {problem['cure']}" if problem["cure"] else ""
    return ": ".join(filter(None, parts)) + cure


def _complain(text: str) -> None:
    click.echo(f"fm-consumer: {safe(text)}", err=True)
