# SPDX-License-Identifier: GPL-2.0-or-later
"""The exit codes of every command, as one table.

The commands print theirs in ``--help``, and ``docs/reference/exit-codes.md`` is generated from it.
The numbers of ``run`` are :class:`.ExitCode`.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from consumer_framework.core.errors import ExitCode

_USAGE = "the command was used wrongly"
_DEFECT = "a defect of fm-consumer"
_REPORT = "Report it with the log."
_TOLD = "told to stop (SIGTERM, Ctrl-C)"
_LOG = "The last lines of the log give the reason. systemd tries again."
_NO_BROKER = "the broker cannot be reached, or refuses the connection"
_NO_CONFIGURATION = "the configuration cannot be used"
_NO_INSTANCE = "there is no such instance"
_NOT_ASKED = "the instance does not run, does not answer, or refuses the order"
_NO_STATE = f"{_NO_INSTANCE}, or its configuration or state directory cannot be used"
_IMPORT_FAILED = "the consumer's module raised an exception while it was imported"

# The words of a short meaning that the reference shows as code.
_LITERAL = re.compile(r"--[a-z-]+|\b(?:SIGTERM|__init__|fm-consumer|NAME)\b")


class Meaning(NamedTuple):
    """The meaning of one exit code of a command.

    Attributes:
        codes: The number; several with the same meaning are separated by commas.
        short: The meaning, as ``--help`` prints it.
        more: Sentences that the reference adds.
        remedy: The remedy, in the reference.
    """

    codes: str
    short: str
    more: str = ""
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """The whole meaning, as sentences in Markdown."""
        first = _LITERAL.sub(r"`\g<0>`", f"{self.short[0].upper()}{self.short[1:]}.")
        return f"{first} {self.more}".strip()


def _of_run(code: ExitCode, short: str, more: str = "", remedy: str = "") -> Meaning:
    return Meaning(str(code.value), short, more, remedy)


# The commands below `fm-consumer`; the name of a group is for all of its commands without a row.
EXIT_CODES: dict[str, tuple[Meaning, ...]] = {
    "run": (
        _of_run(ExitCode.OK, f"{_TOLD}, or halted by the handler with code 0", "", "Nothing."),
        _of_run(
            ExitCode.INIT_FAILED,
            "the __init__ of a plain class raised an exception",
            remedy="Read the traceback in the log.",
        ),
        _of_run(
            ExitCode.USAGE,
            _USAGE,
            "Or the `__init__` of a plain class raised a `ValueError`.",
            "Read the message, or `fm-consumer run --help`.",
        ),
        _of_run(
            ExitCode.BAD_DECLARATION,
            "the broker refused a queue or a binding",
            remedy="The message names the queue and the broker's reason. Make the file match the "
            "broker, or set `passive_declares = true`.",
        ),
        _of_run(ExitCode.UNEXPECTED, _DEFECT, remedy=_REPORT),
        _of_run(
            ExitCode.CANCELED,
            "the queue was deleted while the instance consumed from it",
            remedy="Find out who deleted it. Create it again.",
        ),
        _of_run(
            ExitCode.HANDLER_FAILED,
            "the handler failed",
            "The `__init__`, `setup` or `teardown` of a `Consumer` raised an exception, or its "
            '`handle` raised one that a rule answers with `"halt"`. Or the instance had to stop, '
            "and `handle` or `teardown` did not end within `handler_timeout`.",
            "Read the log. It has the traceback, or the message that was left. The message of a "
            "handler that failed went back to its queue.",
        ),
        _of_run(
            ExitCode.CONNECTION,
            "the broker refused the connection",
            "It gave a reason, or closed the connection for a reason that will not change.",
            "Check user, password, vhost and `[tls]`; then `[qos]`.",
        ),
        _of_run(
            ExitCode.PERMISSION,
            "the account may not read the queue",
            remedy="Ask the broker's administrators for the right to read it.",
        ),
        _of_run(
            ExitCode.TEMPORARY,
            "the instance cannot work now, and may later; systemd starts it again",
            "The callback raised an exception while it was imported. Or the instance did not "
            "consume within `start_timeout`: the broker cannot be reached, a dependency of the "
            "handler's `setup` is broken, or the state directory is in use, or its disk is full, "
            "read-only or failing.",
            "The last lines of the log give the reason.",
        ),
        _of_run(
            ExitCode.CONFIGURATION,
            "the configuration can never work; systemd does not start the instance again",
            "Or this user may not use the state directory.",
            "Each log line names a file, a key or directory, and a remedy.",
        ),
        Meaning(
            "130, 143",
            "a second Ctrl-C or SIGTERM cut the drain short",
            remedy="Nothing: the broker delivers the messages of the running handlers again.",
        ),
    ),
    "bindings": (
        Meaning("0", "the bindings are printed"),
        Meaning("2", f"{_USAGE}, or names a consumer without routes"),
        Meaning("75", _IMPORT_FAILED),
        Meaning("78", "the configuration or the consumer cannot be used"),
    ),
    "check": (
        Meaning("0", "there is no error; there may be warnings"),
        Meaning("1", "there are warnings, and --strict was given"),
        Meaning("2", _USAGE),
        Meaning("10", "the broker refuses a queue or a binding (--broker)"),
        Meaning("14", f"{_NO_BROKER} (--broker); or a certificate has ended"),
        Meaning("75", "the outbox cannot be used now; the instance would wait for it"),
        Meaning("78", "the instance cannot start"),
    ),
    "dev": (
        Meaning("0", "ended (q, Ctrl-C, SIGTERM); with --once: all messages were acknowledged"),
        Meaning("1", "with --once: a message was not acknowledged, or the consumer ended"),
        Meaning("2", _USAGE),
        Meaning(
            "78",
            "the configuration cannot be used, or a program or package is missing",
            "The message gives the command that installs it.",
        ),
    ),
    "explain": (
        Meaning("0", "the fate of the message is shown"),
        Meaning("2", _USAGE),
        Meaning("78", f"{_NO_INSTANCE}, or its configuration cannot be used"),
    ),
    "logs": (
        Meaning("0", "the lines are shown", "The codes 0 and 1 are those of journalctl(1)."),
        Meaning("1", "no line matches --grep or a pattern"),
        Meaning("2", _USAGE),
        Meaning(
            "78",
            f"{_NO_INSTANCE}, or the journal cannot be read",
            "The message names the cure.",
        ),
        Meaning("130", "Ctrl-C ended the command"),
    ),
    "metrics": (
        Meaning("0", "the metrics are printed, or in the file"),
        Meaning(
            "1",
            "an instance that runs did not answer, or the file cannot be written",
            "The metrics of the others are there.",
            "The message names the cure.",
        ),
        Meaning("2", _USAGE),
        Meaning("4", _NO_INSTANCE),
        Meaning("78", "the directory of configuration files cannot be read"),
    ),
    "new": (
        Meaning("0", "the project is made, or up to date"),
        Meaning("1", "an update left conflicts, or a file could not be written"),
        Meaning("2", f"{_USAGE}, or the directory has files already"),
        Meaning("78", "a package is missing, or the project's records cannot be read"),
    ),
    "outbox": (
        Meaning("0", "the command succeeded"),
        Meaning("2", f"{_USAGE}, or names a row that does not exist"),
        Meaning("75", "the database does not answer"),
        Meaning("78", "there is no such outbox, or its configuration cannot be used"),
    ),
    "outbox relay": (
        Meaning("0", _TOLD, remedy="Nothing."),
        Meaning("11", _DEFECT, remedy=_REPORT),
        Meaning(
            "75",
            "the relay cannot work now, and may later",
            "It could not send within `start_timeout`: the broker or the database cannot be "
            "reached, or the outbox has no tables. Or its batch did not end for a reload.",
            _LOG,
        ),
        Meaning(
            "78",
            "the configuration can never work",
            remedy="Each log line names a file, a key, and a remedy.",
        ),
        Meaning(
            "130, 143",
            "a second Ctrl-C or SIGTERM: the batch was not waited for",
            remedy="Nothing: the next relay sends it again.",
        ),
    ),
    "outbox reload": (
        Meaning("0", "the file is in force"),
        Meaning("1", "the relay refused the file and keeps its old settings, or does not run"),
        Meaning("2", _USAGE),
    ),
    "outbox status": (
        Meaning("0", "a relay sends, or holds the lease"),
        Meaning("1", "no relay sends, or it cannot send"),
        Meaning("2", _USAGE),
        Meaning("75", "the database does not answer"),
        Meaning("78", "there is no such outbox"),
    ),
    "publish": (
        Meaning("0", "every message is stored in the outbox, or sent"),
        Meaning("1", "lines were left out (--keep-going)"),
        Meaning("2", f"{_USAGE}, or names a file or class that does not exist"),
        Meaning("14", "the broker cannot be reached; nothing was sent"),
        Meaning(
            "65",
            "a message is invalid, or can never be sent",
            "Of a file with an invalid line, nothing was published; otherwise the messages before "
            "it were. 65 is `EX_DATAERR` of sysexits(3).",
        ),
        Meaning(
            "75",
            "the outbox or the broker did not take every message; the text tells how to go on",
            "It names the `--skip` to give.",
        ),
        Meaning("78", _NO_CONFIGURATION),
        Meaning(
            "130, 143",
            "Ctrl-C or SIGTERM ended the command; the text tells how to go on",
            "It names the `--skip` to give.",
        ),
    ),
    "quarantine": (
        Meaning("0", "the command succeeded"),
        Meaning("1", "a message could not be looked at, or the running instance could not do it"),
        Meaning("2", f"{_USAGE}, or names a row that does not exist"),
        Meaning("78", _NO_STATE),
    ),
    "quarantine expire": (
        Meaning("0", "the command succeeded"),
        Meaning("1", "an instance's messages could not be looked at, or not exported"),
        Meaning("2", _USAGE),
    ),
    "quarantine replay": (
        Meaning("0", "every message succeeded, or was dropped by its handler"),
        Meaning(
            "1",
            "a message did not succeed, --stop-at ended it, or the instance could not do it",
            "The running instance stops or pauses, or the replay in stages was interrupted.",
        ),
        Meaning("2", f"{_USAGE}, or names a message that does not exist"),
        Meaning("13", "the handler could not be set up, or torn down"),
        Meaning("78", _NO_STATE),
        Meaning(
            "130",
            "Ctrl-C ended the replay; the other messages are still quarantined",
            "A running instance finishes the message that it has begun. If the command runs the "
            "handler itself, it waits 10 seconds for it.",
        ),
    ),
    "in-flight": (
        Meaning("0", "the messages are listed"),
        Meaning("1", _NOT_ASKED),
        Meaning("2", _USAGE),
    ),
    "stacks": (
        Meaning("0", "the stacks are printed"),
        Meaning("1", _NOT_ASKED),
        Meaning("2", _USAGE),
    ),
    "events": (
        Meaning("0", "Ctrl-C ended it"),
        Meaning("1", f"{_NOT_ASKED}, or stopped meanwhile"),
        Meaning("2", _USAGE),
    ),
    "pause": (
        Meaning("0", "the instances take no more messages"),
        Meaning("1", f"{_NOT_ASKED}, or is starting or stopping"),
        Meaning("2", _USAGE),
    ),
    "resume": (
        Meaning("0", "the pause is over"),
        Meaning("1", f"{_NOT_ASKED}, or is starting or stopping"),
        Meaning("2", _USAGE),
    ),
    "log-level": (
        Meaning("0", "the level is changed"),
        Meaning("1", _NOT_ASKED),
        Meaning("2", _USAGE),
    ),
    "settings": (
        Meaning("0", "the settings are printed"),
        Meaning("1", "the instance may not be asked by this user, or does not answer"),
        Meaning("2", _USAGE),
        Meaning("78", "there is no such instance, or its configuration cannot be used"),
    ),
    "reload": (
        Meaning("0", "the file is in force, but for changes that take a restart"),
        Meaning("1", "an instance refused the file and keeps its old settings, or does not run"),
        Meaning("2", _USAGE),
    ),
    "record": (
        Meaning(
            "0",
            "--limit, --for, Ctrl-C or SIGTERM ended it, or the messages of --queue are recorded",
        ),
        Meaning("2", f"{_USAGE}, or the file cannot be opened"),
        Meaning(
            "10",
            "the broker refuses the queue or a binding, or the exchange is missing",
            "Or `--queue` is, or may be, a quorum queue or a stream.",
        ),
        Meaning("14", _NO_BROKER, "With `--queue`: or the connection ended."),
        Meaning("15", "the user may not consume"),
        Meaning("75", "the queue of --queue has consumers, or the disk did not take every message"),
        Meaning("78", "the configuration cannot be used, or certificates are missing"),
    ),
    "replay": (
        Meaning("0", "every message succeeded, was skipped, or was dropped on purpose"),
        Meaning(
            "1",
            "a message ended otherwise, or lines were left out (--keep-going)",
            "Otherwise: exhausted, invalid, quarantined, requeued, halted or unfinished.",
        ),
        Meaning("2", f"{_USAGE}, or a file cannot be read"),
        Meaning("13", "the consumer cannot be set up, or torn down"),
        Meaning(
            "65",
            "a line is no message",
            "Of files, nothing was run; of a pipe, the messages before it were.",
        ),
        Meaning("74", "the file of --profile-to cannot be written; the messages were run"),
        Meaning("75", _IMPORT_FAILED),
        Meaning("78", _NO_CONFIGURATION),
        Meaning(
            "130, 143",
            "Ctrl-C or SIGTERM ended the command; the summary is of the messages so far",
        ),
    ),
    "scale": (
        Meaning("0", "there are N workers now"),
        Meaning(
            "1",
            "a step failed, or an obstacle stopped the command",
            "The message gives a remedy.",
        ),
        Meaning("2", _USAGE),
        Meaning(
            "78", "there is no such instance, or workers cannot share the settings of its file"
        ),
        Meaning("130", "Ctrl-C ended the command; run it again to continue"),
    ),
    "schemas": (
        Meaning("0", "the command succeeded"),
        Meaning("2", f"{_USAGE}, or names a schema that is not installed"),
    ),
    "schemas diff": (
        Meaning("0", "consumers of the old version survive"),
        Meaning("1", "consumers of the old version do not survive"),
        Meaning("2", f"{_USAGE}, or names a schema that is not installed"),
        Meaning("78", "a schema cannot be read"),
    ),
    "schemas for": (
        Meaning("0", "a schema of the topic is installed"),
        Meaning("1", "no schema of the topic is installed"),
        Meaning("2", _USAGE),
    ),
    "status": (
        Meaning("0", "all instances are active", "The codes are those of `systemctl status`."),
        Meaning("2", _USAGE),
        Meaning(
            "3",
            "an instance is not active",
            "Without NAME, a stopped and disabled instance does not count.",
        ),
        Meaning("4", "there is no such instance, or a host of --host does not answer"),
        Meaning(
            "0-3",
            "with --nagios: OK, warning, critical, unknown",
            "An instance that does not exist, and wrong options, are unknown.",
            "[Watch instances](../howto/watch-instances.md) explains them.",
        ),
    ),
    "tail": (
        Meaning("0", "told to stop (Ctrl-C, SIGTERM), or --count messages were shown"),
        Meaning("2", _USAGE),
        Meaning("10", "the broker refuses the queue or a binding, or the exchange is missing"),
        Meaning("14", _NO_BROKER),
        Meaning("15", "the user may not consume"),
        Meaning("78", "the configuration cannot be used, or certificates are missing"),
    ),
    "top": (
        Meaning("0", "told to stop (q, Ctrl-C), or --once has printed"),
        Meaning(
            "2",
            "the command line is wrong, standard output is no terminal, textual is not installed, "
            "or ssh cannot be run",
        ),
        Meaning("4", "there is no such instance"),
    ),
    "trigger": (
        Meaning("0", "told to stop (Ctrl-C, SIGTERM), or --count messages are done"),
        Meaning("2", _USAGE),
        Meaning("10", "the broker refuses the queue or a binding, or the exchange is missing"),
        Meaning("14", "the broker refused the connection"),
        Meaning("15", "the user may not consume"),
        Meaning("75", "it cannot work now, and may later"),
        Meaning("78", "it can never work as it is configured"),
    ),
    "units": (
        Meaning("0", "the command succeeded"),
        Meaning(
            "1",
            "a file is in the way, or could not be written or removed",
            "Or the unit could not run this `fm-consumer` in its directory. The message gives a "
            "remedy.",
        ),
        Meaning("2", _USAGE),
    ),
    "web": (
        Meaning("0", "told to stop (Ctrl-C, SIGTERM), or nobody used the page for --idle"),
        Meaning("1", "it cannot listen on the port or the socket", "The message gives a remedy."),
        Meaning("2", _USAGE),
    ),
    "units diff": (
        Meaning("0", "install would change nothing"),
        Meaning("1", "install would change files"),
        Meaning("2", _USAGE),
    ),
}


def exit_codes_of(command: str) -> tuple[Meaning, ...]:
    """Return the exit codes of *command*, or those of its group: of ``"quarantine"``."""
    return EXIT_CODES.get(command) or EXIT_CODES[command.split(maxsplit=1)[0]]


def epilog(command: str, *more: str) -> str:
    """Return the exit codes of *command* as a paragraph of ``--help``, and the lines *more*."""
    lines = []
    meanings = exit_codes_of(command)
    width = max(4, *(len(one.codes) for one in meanings))
    for one in meanings:
        first, *rest = textwrap.wrap(one.short, 74 - width)
        lines += [f"{one.codes:>{width}}  {first}", *(f"{'':{width}}  {line}" for line in rest)]
    return "\n".join(("", "\b", "Exit codes:", *lines, *more, ""))
