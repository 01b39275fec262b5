# SPDX-License-Identifier: GPL-2.0-or-later
"""The bindings that routes need: ``fm-consumer bindings`` prints them, and ``check`` compares."""

import json
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import anitya_schema
import pytest
from click.testing import CliRunner
from fedora_messaging import message as upstream
from fedora_messaging.message import Message
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework import Consumer, on_message, on_topic
from consumer_framework.adapters import config
from consumer_framework.author.consumer import table_of
from consumer_framework.cli.main import main
from consumer_framework.core.topics import covers, matches
from consumer_framework.operate.bindings import ConsumerNeeds, RouteNeeds, route_needs
from consumer_framework.operate.check.routes import route_findings
from consumer_framework.runtime.assembly.loader import Target, find_in_file
from consumer_framework.settings import Binding, Settings

PREFIX = "org.fedoraproject.prod"
VERSION = "org.release-monitoring.prod.anitya.project.version.update.v2"


class Unregistered(Message):
    """A class that no package registers."""


class Builds(Consumer):
    @on_topic("org.fedoraproject.*.buildsys.#")
    def all(self, message): ...

    @on_topic("org.fedoraproject.prod.buildsys.tag", "git.receive")
    def tagged(self, message): ...

    @on_message(anitya_schema.ProjectVersionUpdatedV2)
    def updated(self, message): ...


def needs(kind, prefix=""):
    table = table_of(kind, prefix)
    assert table is not None
    return ConsumerNeeds("m:C", tuple(route_needs(route, table) for route in table.routes))


def one(*decorators, prefix=""):
    def taken(self, message): ...

    for decorator in decorators:
        taken = decorator(taken)
    [route] = needs(type("One", (Consumer,), {"taken": taken}), prefix).routes
    return route


# The keys.


def test_the_keys_are_those_of_the_patterns_without_the_ones_that_another_covers():
    assert needs(Builds).keys == {
        "org.fedoraproject.*.buildsys.#": ("all", "tagged"),
        "git.receive": ("tagged",),
        VERSION: ("updated",),
    }


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("git.receive", f"{PREFIX}.git.receive"),
        ("org.fedoraproject.*.git.receive", "org.fedoraproject.*.git.receive"),
        ("org.centos.stg.git.receive", "org.centos.stg.git.receive"),
        ("#", "#"),
        ("*.update.#", f"{PREFIX}.*.update.#"),
        ("#.update", "#.update"),
    ],
)
def test_a_pattern_without_the_prefix_of_the_configuration_gets_it(pattern, key):
    assert one(on_topic(pattern), prefix=PREFIX).keys == (key,)
    assert one(on_topic(pattern)).keys == (pattern,)


def test_a_message_class_needs_the_topics_that_its_package_declares(monkeypatch):
    assert one(on_message(anitya_schema.ProjectVersionUpdatedV2)).keys == (VERSION,)
    monkeypatch.setattr(anitya_schema.ProjectVersionUpdatedV2, "topic", "anitya.update")
    route = one(on_message(anitya_schema.ProjectVersionUpdatedV2))
    assert route.keys == ("#.anitya.update",)
    route = one(on_message(anitya_schema.ProjectVersionUpdatedV2), prefix=PREFIX)
    assert route.keys == (f"{PREFIX}.anitya.update",)


def test_the_class_of_all_messages_needs_all_topics():
    assert one(on_message(Message)).keys == ("#",)


def test_a_class_without_a_topic_and_one_that_nobody_registers_are_named(monkeypatch):
    monkeypatch.setattr(anitya_schema.ProjectVersionUpdatedV2, "topic", "")
    name = "anitya_schema.project_messages.ProjectVersionUpdatedV2"
    assert one(on_message(anitya_schema.ProjectVersionUpdatedV2)).undeclared == (name,)
    route = one(on_message(Unregistered))
    assert (route.keys, route.absent) == ((), (f"{__name__}.Unregistered",))


def test_a_route_by_topic_and_class_needs_its_topics():
    route = one(on_topic("a.#"), on_message(anitya_schema.ProjectVersionUpdatedV2))
    assert route.keys == ("a.#",)


words = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join)
plain = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)


@given(keys=st.lists(words, min_size=1, max_size=6), topic=plain)
def test_the_keys_that_are_left_bring_all_messages_that_all_keys_bring(keys, topic):
    routes = tuple(RouteNeeds(f"r{number}", (key,)) for number, key in enumerate(keys))
    left = ConsumerNeeds("m:C", routes).keys
    assert any(matches(key, topic) for key in left) == any(matches(key, topic) for key in keys)
    assert {name for names in left.values() for name in names} == {r.route for r in routes}
    assert not any(covers([a], b) for a in left for b in left if a != b)


# The command.


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "bound.py").write_text(
        "from consumer_framework import Consumer, on_message, on_topic\n"
        "from fedora_messaging import message\n"
        "print('imported')\n"
        "class Own(message.Message): ...\n"
        "class Other(message.Message):\n"
        "    topic = 'anitya.update'\n"
        "class Routed(Consumer):\n"
        "    @on_topic('git.receive', 'org.#')\n"
        "    def pushed(self, message): ...\n"
        "    @on_message(Own, Other)\n"
        "    def other(self, message): ...\n"
        "    def handle(self, message): ...\n"
        "class Plain(Consumer):\n"
        "    def handle(self, message): ...\n"
        "registered = message._schema_name_to_class\n"
        "registered |= {'own': Own, 'other': Other}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("consumer_framework.runtime.reactor.install", lambda: None)
    yield tmp_path
    sys.modules.pop("bound", None)
    for name in ("own", "other"):
        upstream._schema_name_to_class.pop(name, None)


CONFIGURATION = """
callback = "bound:Routed"
topic_prefix = "org.fedoraproject.prod"
[exchanges.own]
type = "topic"
durable = true
auto_delete = false
arguments = {}
[queues.mine]
durable = true
auto_delete = false
exclusive = false
arguments = {}
[[bindings]]
queue = "mine"
exchange = "own"
routing_keys = [
    "git.receive",
]
"""


def run(*arguments):
    return CliRunner().invoke(main, ["bindings", *arguments])


def test_without_a_consumer_the_command_says_what_to_name():
    result = run()
    assert result.exit_code == 2
    assert "name an instance, a MODULE:CLASS, or a file with --conf" in result.stderr


def test_a_module_that_fails_ends_with_the_code_that_the_help_lists(module, tmp_path):
    file = tmp_path / "raises.py"
    file.write_text("raise RuntimeError('no database')\n")
    result = run("--callback-file", f"{file}:Builds")
    assert result.exit_code == 75
    assert "raised RuntimeError while it was imported: no database" in result.stderr
    assert "75  the consumer's module raised an exception" in run("--help").stdout


def test_the_command_prints_a_table_for_the_configuration_file(module):
    result = run("bound:Routed")
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout) == {
        "bindings": [
            {
                "queue": "NAME",
                "exchange": "amq.topic",
                "routing_keys": ["git.receive", "org.#", "#.anitya.update"],
            }
        ]
    }
    lines = result.stdout.splitlines()
    assert '    "git.receive",  # pushed' in lines
    assert "# other: bound.Own declares no topic; add the topics of its publisher." in lines
    assert lines[-1].startswith("# handle() takes all other messages")


def test_the_command_takes_queue_exchange_and_prefix_of_a_configuration(module):
    (module / "mine.toml").write_text(CONFIGURATION)
    result = run("--conf", "mine.toml", "--json")
    found = json.loads(result.stdout)
    assert found["queue"] == "mine"
    assert found["exchange"] == "own"
    assert found["routing_keys"] == ["org.#"]
    assert found["routes"][1]["undeclared"] == ["bound.Own"]
    assert found["callback"] == "bound:Routed"
    assert found["takes_rest"] is True
    assert [route["route"] for route in found["routes"]] == ["pushed", "other"]
    assert found["routes"][0]["keys"] == ["org.fedoraproject.prod.git.receive", "org.#"]


def test_the_command_takes_a_python_file(module):
    result = run("--callback-file", "bound.py:Routed")
    assert result.exit_code == 0
    assert "git.receive" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bound:Plain"], 2, "has no routes"),
        (["bound:Nothing"], 78, "defines no 'Nothing'"),
        (["nosuch:Thing"], 78, "there is no module"),
        (["no such name"], 78, "no such name"),
        ([], 2, "name an instance"),
        (["sample", "--conf", "mine.toml"], 2, "either NAME or --conf"),
        (["--conf", "nosuch.toml"], 78, "nosuch.toml"),
    ],
)
def test_the_command_names_what_is_wrong(module, arguments, code, words):
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr + str(result.exception)


# The check.


def findings(kind, keys, exchange="amq.topic", exchanges=None):
    binding = Binding(exchange=exchange, routing_keys=keys, queue="q")
    settings = Settings.model_construct(
        bindings=(binding,), topic_prefix="", exchanges=exchanges or {}
    )
    target = Target("m:C", "the.toml", kind)
    return [(f.problem.path, f.problem.message) for f in route_findings(settings, target)]


class Two(Consumer):
    @on_topic("a.*")
    def one(self, message): ...

    @on_topic("b.#")
    def two(self, message): ...


def test_bindings_that_bring_exactly_what_the_routes_take_are_right():
    assert findings(Two, ["a.*", "b.#"]) == []
    assert findings(Two, ["a.x", "b.y.#", "*.z"])[1:] == []


def test_a_route_without_a_binding_is_named():
    [(path, message)] = findings(Two, ["b.#"])
    assert path == "bindings"
    assert message == 'no binding brings messages to the route one ("a.*")'


def test_a_binding_whose_messages_no_route_takes_is_named():
    found = findings(Two, ["a.*", "b.#", "c.#", "a.#"])
    assert found == [
        (
            "bindings[0].routing_keys[2]",
            '"c.#" brings messages that no route takes: all of them are dropped',
        ),
        (
            "bindings[0].routing_keys[3]",
            '"a.#" also brings messages that no route takes: they are dropped',
        ),
    ]


def test_a_handle_takes_everything_that_bindings_bring():
    class WithRest(Two):
        def handle(self, message): ...

    assert findings(WithRest, ["#"]) == []


def test_a_consumer_without_routes_has_no_findings():
    assert findings(print, ["#"]) == []


def test_exchanges_of_other_types_bring_what_their_type_says():
    assert findings(Two, ["a.x", "b.y"], "amq.direct") == []
    # Wildcards are no wildcards there: such a binding brings nothing.
    assert [path for path, _ in findings(Two, ["a.*"], "amq.direct")] == ["bindings"] * 2
    own = {"own": {"type": "fanout"}}
    assert [path for path, _ in findings(Two, [""], "own", exchanges=own)] == [
        "bindings[0].routing_keys[0]"
    ]


def test_the_topics_of_a_class_count_with_any_prefix_and_unknown_ones_mean_no_finding(monkeypatch):
    monkeypatch.setattr(anitya_schema.ProjectCreated, "topic", "")

    class ByClass(Consumer):
        @on_message(anitya_schema.ProjectVersionUpdatedV2)
        def updated(self, message): ...

    class Unknown(Consumer):
        @on_message(anitya_schema.ProjectCreated)
        def anything(self, message): ...

    class Absent(Consumer):
        @on_message(Unregistered)
        def never(self, message): ...

    assert findings(ByClass, [VERSION]) == []
    assert [path for path, _ in findings(ByClass, ["x"])] == [
        "bindings",
        "bindings[0].routing_keys[0]",
    ]
    assert findings(Unknown, ["x"]) == []
    assert "no installed package registers that class" in findings(Absent, ["x"])[0][1]


# The page about it.

PAGE = Path(__file__).resolve().parents[2] / "docs/howto/route-messages-by-topic.md"


def shown(language: str) -> list[str]:
    """Return the blocks of the steps of the page."""
    found = re.findall(
        rf"^ {{3}}```{language}\n(.*?)^ {{3}}```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return [textwrap.dedent(block) for block in found]


def test_the_page_shows_the_real_bindings_and_the_real_findings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("consumer_framework.runtime.reactor.install", lambda: None)
    (tmp_path / "builds.py").write_text(shown("python")[0])
    result = run("--callback-file", "builds.py:Builds")
    assert result.stdout == shown("toml")[0]
    configuration = tmp_path / "builds.toml"
    configuration.write_text(shown("toml")[1])
    target = find_in_file("builds.py:Builds", "builds.toml")
    settings = config.load(configuration)
    lines = [
        f"{f.level.value}: builds.toml:{f.problem.line}: {f.problem}"
        for f in (
            found.at("builds.toml", config.lines_of(configuration))
            for found in route_findings(settings, target)
        )
    ]
    assert lines == shown("text")[0].splitlines()[:2]
    kind = target.value
    test = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    names: dict[str, Any] = {"Builds": kind}
    exec(test, names)  # noqa: S102 -- of our own page
    names["test_only_the_route_that_fails_is_tried_again"]()
