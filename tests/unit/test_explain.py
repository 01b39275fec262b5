# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer explain`` shows the end of a failing message, and the settings that decide it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner

from consumer_framework.cli import main
from consumer_framework.core.delivery import Failed
from consumer_framework.core.disposition import Defer, Hold
from consumer_framework.core.recovery import Policy, Situation, decide
from consumer_framework.operate.explain import Context, explain, find_exception
from consumer_framework.settings import Recovery
from consumer_framework.testing import make_delivery

CLASS = """
import consumer_framework
class NeedsArguments(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)
class Temporary(OSError):
    pass
class handler(consumer_framework.Consumer):
    recovery = consumer_framework.Recovery(
        delays=["2s"],
        on_exhausted="drop",
        rules=[{"exceptions": [KeyError], "then": "halt"},
               {"exceptions": [ZeroDivisionError], "then": "defer"}],
    )
    def handle(self, message):
        pass
"""

FILE = """
callback = "MODULE:handler"
[consumer_config.framework.recovery]
immediate = 2
breaker = { consecutive = 3, probe = ["7s"] }
[[consumer_config.framework.recovery.rules]]
exceptions = ["MODULE.Temporary", "TimeoutError"]
then = "dependency"
"""


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A consumer with settings of its own, and a file that overrides some."""
    module = f"explained_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(CLASS)
    file = tmp_path / "sample.toml"
    file.write_text(FILE.replace("MODULE", module))
    monkeypatch.syspath_prepend(tmp_path)

    return Configured(str(file), module)


@dataclass
class Configured:
    """Explains exceptions with a file, and with the class that it names."""

    file: str
    module: str

    def __call__(self, exception: str) -> Any:
        return explained(exception.replace("MODULE", self.module), "--conf", self.file)


def explained(*words: str) -> Any:
    result = CliRunner().invoke(main, ["explain", *words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def told(*words: str) -> str:
    result = CliRunner().invoke(main, ["explain", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_without_a_configuration_the_defaults_answer():
    shown = explained("ValueError")
    assert shown["answer"] == "retry"
    assert shown["decided_by"] == {"kind": "default", "where": "the default", "exception": None}
    assert [(step["attempt"], step["after"]) for step in shown["schedule"]] == [
        (2, 0.0),
        (3, 10.0),
        (4, 60.0),
        (5, 300.0),
    ]
    assert shown["end"]["disposition"] == "quarantine"
    assert shown["breaker"]["counts"] is False


def test_the_text_shows_the_time_of_each_attempt_and_the_end():
    text = told("ValueError")
    assert text.startswith("ValueError: is tried again decided by the default")
    assert "attempt 2 after 0 s: at once" in text
    assert "attempt 3 after about 10s, held unacknowledged meanwhile" in text
    assert "attempt 5 after about 5m" in text
    assert "in the end quarantined (on_exhausted: the default)" in text
    assert "name an INSTANCE to see its rules" in text


def test_a_rule_of_the_file_is_named_with_its_path_and_the_class_that_matched(configured):
    shown = configured("MODULE.Temporary")
    assert shown["decided_by"] == {
        "kind": "rule",
        "where": f"{configured.file}: consumer_config.framework.recovery.rules[0]",
        "exception": f"{configured.module}.Temporary",
    }
    assert shown["answer"] == "dependency"
    assert (shown["forever"], shown["end"]) == (True, None)
    assert shown["breaker"] == {
        "counts": True,
        "consecutive": 3,
        "probe": [7.0],
        "where": f"{configured.file}: consumer_config.framework.recovery.breaker",
    }
    assert [step["after"] for step in shown["schedule"]] == [7.0]


def test_a_rule_of_the_class_is_named_with_the_class(configured):
    shown = configured("KeyError")
    assert shown["decided_by"]["where"] == f"{configured.module}:handler: recovery.rules[0]"
    assert shown["end"]["disposition"] == "halt"
    assert shown["end"]["exit_code"] == 13
    assert configured("ZeroDivisionError")["decided_by"]["where"].endswith("recovery.rules[1]")


def test_each_setting_is_shown_with_its_origin(configured):
    shown = configured("ValueError")
    path = f"{configured.file}: consumer_config.framework.recovery"
    assert shown["schedule_from"] == {
        "immediate": f"{path}.immediate",
        "delays": f"{configured.module}:handler: recovery.delays",
    }
    assert [step["after"] for step in shown["schedule"]] == [0.0, 0.0, 2.0]
    assert shown["end"]["disposition"] == "reject"
    assert shown["end"]["where"] == f"{configured.module}:handler: recovery.on_exhausted"


def test_a_subclass_is_shown_with_the_class_that_the_rule_names(configured):
    text = told("MODULE.Temporary".replace("MODULE", configured.module), "--conf", configured.file)
    assert 'then = "dependency"' in text
    assert "counts it: 3 in a row pause the instance; probes after 7s" in text
    shown = configured("asyncio.TimeoutError")
    assert shown["decided_by"]["exception"] == "TimeoutError"


def test_an_exception_that_needs_arguments_is_explained_too(configured):
    assert configured("MODULE.NeedsArguments")["answer"] == "retry"


def test_a_callback_can_be_named_without_a_file(configured):
    shown = explained("KeyError", "--callback", f"{configured.module}:handler")
    assert shown["answer"] == "halt"


def test_a_file_without_a_callback_is_explained_by_its_own_rules(tmp_path):
    file = tmp_path / "sample.toml"
    file.write_text('[consumer_config.framework.recovery]\non_exhausted = "requeue"\n')
    shown = explained("ValueError", "--conf", str(file))
    assert shown["end"]["disposition"] == "requeue"


@pytest.mark.parametrize(
    ("exception", "answer", "end"),
    [
        ("Skip", "succeed", "ack"),
        ("Retry", "retry", "quarantine"),
        ("fedora_messaging.exceptions.Nack", "retry", "quarantine"),
        ("Nack", "retry", "quarantine"),
        ("Defer", "defer", None),
        ("Drop", "drop", "reject"),
        ("fedora_messaging.exceptions.Drop", "drop", "reject"),
        ("consumer_framework.Quarantine", "quarantine", "quarantine"),
        ("DependencyFault", "dependency", None),
        ("Halt", "halt", "halt"),
        ("HaltConsumer", "halt", "halt"),
    ],
)
def test_a_signal_of_the_author_decides_itself(exception, answer, end):
    shown = explained(exception)
    assert shown["decided_by"]["kind"] == "signal"
    assert shown["answer"] == answer
    assert (shown["end"] and shown["end"]["disposition"]) == end
    assert shown["forever"] is (end is None)
    assert shown["breaker"]["counts"] is (answer == "dependency")
    assert "no rule can change that" in told(exception)


@pytest.mark.parametrize("then", ["retry", "defer", "drop", "quarantine", "dependency", "halt"])
@pytest.mark.parametrize("on_exhausted", ["quarantine", "drop", "requeue", "halt"])
def test_every_answer_has_a_text(tmp_path, then, on_exhausted):
    file = tmp_path / "sample.toml"
    table = "consumer_config.framework.recovery"
    file.write_text(
        f'[{table}]\non_exhausted = "{on_exhausted}"\nimmediate = 0\ndelays = []\n'
        f'[[{table}.rules]]\nexceptions = ["OSError"]\nthen = "{then}"\n'
    )
    text = told("ConnectionResetError", "--conf", str(file))
    assert f'then = "{then}" in {file}: {table}.rules[0], for it is a kind of OSError' in text
    exhausted = f"(on_exhausted: {file}: {table}.on_exhausted)"
    assert (exhausted in text) is (then == "retry")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Valuerror", "did you mean ValueError?"),
        ("no.such.Error", "cannot be imported (ModuleNotFoundError: No module named 'no')"),
        ("json.NoSuchError", "cannot be imported (AttributeError"),
        ("json.dumps", "json.dumps is no exception"),
        ("int", "int is no exception"),
        ("", "there is no built-in exception"),
        (".x", "cannot be imported"),
    ],
)
def test_a_name_that_is_no_exception_is_one_line_and_exit_code_2(name, line):
    result = CliRunner().invoke(main, ["explain", name], catch_exceptions=False)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_invalid_configuration_is_reported_as_by_run(tmp_path):
    file = tmp_path / "sample.toml"
    result = CliRunner().invoke(main, ["explain", "ValueError", "--conf", str(file)])
    assert result.exit_code == 78
    assert (
        result.stderr
        == f"fm-consumer: {file}: there is no such file; create it, or name another one\n"
    )
    result = CliRunner().invoke(main, ["explain", "ValueError", "a", "--conf", str(file)])
    assert result.exit_code == 2


def test_help_has_examples():
    text = CliRunner().invoke(main, ["explain", "--help"]).stdout
    assert "  fm-consumer explain ValueError sample" in text


# Without a store.


@pytest.fixture
def in_memory(tmp_path):
    """Explains an exception with recovery settings, and store = "memory"."""
    file = tmp_path / "sample.toml"
    table = "consumer_config.framework"

    def explain(exception, recovery="", extra=""):
        file.write_text(f'[{table}]\nstore = "memory"\n[{table}.recovery]\n{recovery}\n{extra}')
        words = (exception, "--conf", str(file))
        return explained(*words), told(*words)

    return explain


def test_without_a_store_a_message_is_held_and_then_goes_back_to_its_queue(in_memory):
    recovery = 'immediate = 1\ndelays = ["20m", "1m"]\nack_timeout = "30m"'
    shown, text = in_memory("ValueError", recovery)
    assert shown["store"] is False
    # For as long as the broker leaves it with the instance, and then for a second in its queue.
    assert [(s["disposition"], s["after"]) for s in shown["schedule"]] == [
        ("hold", 0.0),
        ("hold", 900.0),
        ("requeue", 1.0),
    ]
    assert shown["end"]["disposition"] == "requeue"
    assert "attempt 4 after about 1s, back in its queue meanwhile" in text
    assert "in the end back to its queue, again and again: without a store there is no" in text
    assert "kept in the store" not in text


def test_without_a_store_and_without_hold_slots_a_message_goes_back_to_its_queue(in_memory):
    shown, _ = in_memory("ValueError", 'immediate = 1\ndelays = ["10s"]\nhold_slots = 0')
    assert [s["disposition"] for s in shown["schedule"]] == ["hold", "requeue"]
    assert [s["held"] for s in shown["schedule"]] == [True, False]


def test_without_a_store_nothing_is_quarantined(in_memory):
    shown, text = in_memory("consumer_framework.Quarantine")
    assert shown["end"]["disposition"] == "requeue"
    assert "asks for quarantine, which takes a store" in text
    assert "puts the message into quarantine" not in text


@pytest.mark.parametrize(
    ("on_exhausted", "end"),
    [("quarantine", "requeue"), ("requeue", "requeue"), ("reject", "reject"), ("halt", "halt")],
)
def test_without_a_store_the_end_is_that_of_the_settings_where_it_can_be(
    in_memory, on_exhausted, end
):
    shown, text = in_memory("ValueError", f'on_exhausted = "{on_exhausted}"')
    assert shown["end"]["disposition"] == end
    assert ("without a store" in text) is (on_exhausted == "quarantine")


@pytest.mark.parametrize("exception", ["Defer", "DependencyFault"])
def test_without_a_store_signals_that_use_no_attempts_repeat_for_ever(in_memory, exception):
    shown, _ = in_memory(f"consumer_framework.{exception}")
    assert (shown["forever"], shown["end"]) == (True, None)


def test_the_time_that_a_message_was_held_before_counts():
    recovery = Recovery(immediate=0, delays=(600.0, 600.0), ack_timeout=1800.0)
    policy = Policy(schedule=(600.0, 600.0), hold_ceiling=900.0)
    steps = explain(find_exception("KeyError"), Context(policy, recovery, recovery)).steps
    assert [step.held for step in steps] == [True, False]


@pytest.mark.parametrize("hold_slots", [0, 4])
@pytest.mark.parametrize("immediate", [0, 3])
def test_the_schedule_agrees_with_decide(hold_slots, immediate):
    settings = Recovery(hold_slots=hold_slots, immediate=immediate, delays=(1200.0, 3600.0))
    policy = Policy(schedule=(*([0.0] * immediate), 1200.0, 3600.0))
    steps = explain(find_exception("KeyError"), Context(policy, settings, settings)).steps
    delivery, now = make_delivery(), 0.0
    for step in steps:
        situation = Situation(now, 0.5, bool(hold_slots))
        decision = decide(delivery, Failed(KeyError()), policy, situation)
        went = decision.disposition
        assert isinstance(went, Hold if step.held else Defer)
        assert went.until == now + step.after
        now = went.until
        row = 0 if step.held else 1
        delivery = delivery._replace(history=decision.history, row=row)
    assert len(steps) == immediate + 2
