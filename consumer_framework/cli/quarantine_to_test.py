# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine to-test``: writes a failing test of a quarantined message."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumer_framework.core.text import plural

from .exit_codes import epilog
from .options import CONF, STATE_DIR, may_exist, no_such_instance, where, words
from .selection import WHERE, choose_one, open_store
from .terminal import Command, Refusal, bad, faint, good, note, safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.core.conditions import Condition
    from consumer_framework.kit.failing_test import FailedMessage

    from .options import Where

_MORE = """
\b
Examples:
  fm-consumer quarantine to-test sample 41 --output tests/test_row_41.py
  pytest tests/test_row_41.py                     # fails as the message did
  fm-consumer quarantine to-test sample 41 --keep agent --keep headers
\b
Replaced, the same value always by the same one:
  secrets    values of keys like password, token, api_key; tokens and keys by their form
  e-mail     values of keys like email, and every address
  persons    values of keys like user, agent, author, fullname
  addresses  values of keys like ip, and every IPv4 and IPv6 address
Look at the result before you publish it: no rule finds everything.
""" + epilog("quarantine to-test")


@click.command("to-test", cls=Command, epilog=_MORE)
@words("INSTANCE [ROW]")
@CONF
@STATE_DIR
@WHERE
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this new file. Default: standard output.",
)
@click.option(
    "--keep",
    "kept",
    multiple=True,
    metavar="KEY",
    help="Do not replace the values of this key. May be given several times.",
)
@click.option(
    "--diff/--no-diff",
    "shows_diff",
    default=True,
    help="Show what was replaced, on standard error.  [default: diff]",
)
@click.option("--callback", default="", metavar="MODULE:OBJECT", help="As for 'run'.")
@click.option("--callback-file", default="", metavar="FILE.py:OBJECT", help="As for 'run'.")
def to_test(  # noqa: PLR0913, PLR0917 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    conditions: tuple[Condition, ...],
    target: Path | None,
    kept: tuple[str, ...],
    callback: str,
    callback_file: str,
    *,
    shows_diff: bool,
) -> None:
    """Write a test for pytest that fails as the message in ROW did, and passes once that is mended.

    The test has the message, its failed attempts as a comment, and the [consumer_config] of the
    instance. Secrets and personal details have other values. Nothing changes in quarantine.
    """
    from consumer_framework.kit.anonymous import Anonymizer  # noqa: PLC0415
    from consumer_framework.kit.failing_test import differences, source_of_test  # noqa: PLC0415

    at = where(words, conf, state_dir)
    message = _message(at, conditions, callback_file or callback)
    names = Anonymizer(kept)
    text = source_of_test(message, names)
    if target is None:
        click.echo(text, nl=False)
    else:
        from .quarantine import write_new  # noqa: PLC0415 -- it imports this module

        write_new(target, [text])
    if shows_diff:
        for line in differences(message, names):
            colour = {"-": bad, "+": good}.get(line[:1], faint)
            click.echo(colour(safe(line)), err=True)
    note(f"{plural(len(names.replaced), 'value')} replaced: look at the test before you publish it")
    if target is not None:
        note(f"it fails until the consumer is mended: pytest {shlex.quote(str(target))}")


def _message(at: Where, conditions: Sequence[Condition], callback: str) -> FailedMessage:
    """Return the message that the command line names, with its consumer.

    Raises:
        Refusal: There is none, or it never failed, or nothing names the consumer.
        ConfigurationError: The configuration cannot be read.
    """
    from consumer_framework.adapters import config  # noqa: PLC0415
    from consumer_framework.kit.failing_test import FailedMessage  # noqa: PLC0415
    from consumer_framework.runtime.assembly.access import from_outside  # noqa: PLC0415

    with closing(open_store(at)) as store:
        row = choose_one(store, at, conditions)
        delivery = store.delivery(row.id)
    if delivery is None:
        raise Refusal(f"row {row.id} is gone now")
    if not may_exist(at.file):
        raise no_such_instance(at.instance, at.file)
    document = config.read(at.file, from_outside(at.file, at.instance))
    callback = callback or str(document.get("callback") or "")
    if not callback:
        raise Refusal(f"{at.file} names no callback; name the consumer with --callback")
    table = document.get("consumer_config")
    own = table if isinstance(table, dict) else {}
    message = FailedMessage(at.instance, row.id, row.reason, delivery, callback, own)
    if not message.has_failed:
        behind = f": it waits behind row {row.behind}" if row.behind else ""
        raise Refusal(f"row {row.id} has no failed attempt{behind}; name a row that failed")
    return message
