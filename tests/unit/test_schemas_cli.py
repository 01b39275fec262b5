# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer schemas``: the installed schemas, those of a topic, two versions."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from consumer_framework.cli import main
from consumer_framework.kit.schema_packages import PACKAGES, need_of
from consumer_framework.kit.schema_packages import Schema as Installed

ROOT = Path(__file__).resolve().parents[2]
OLD: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.fixture
def run():
    def invoke(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["schemas", *map(str, words)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Install a package with a good class, a deprecated one, and a broken one."""
    (tmp_path / "mine.py").write_text(
        "from fedora_messaging.message import Message\n"
        "class Done(Message):\n"
        "    topic = 'mine.done'\n    severity = 30\n"
        f"    body_schema = {OLD!r}\n"
        "class Early(Message):\n"
        "    deprecated = True\n    severity = 'odd'\n    topic = None\n"
    )
    info = tmp_path / "mine_messages-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-messages\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[fedora.messages]\nmine.done.v1 = mine:Done\nmine.early.v1 = mine:Early\n"
        "mine.none.v1 = mine:Missing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    yield tmp_path
    sys.modules.pop("mine", None)


def test_the_installed_schemas_are_listed_with_their_package(run, packages):
    shown = run()
    assert shown == run("list")
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert lines["NAME"] == ["SEVERITY", "TOPIC", "PACKAGE", "VERSION"]
    assert lines["mine.done.v1"] == ["warning", "mine.done", "mine-messages", "1.5"]
    assert lines["mine.early.v1"] == ["(deprecated)", "info", "-", "mine-messages", "1.5"]
    assert lines["mine.none.v1"][0] == "broken"
    assert "the class of mine.none.v1 cannot be loaded: AttributeError" in shown
    assert "repair or remove the package mine-messages" in shown


def test_json_lists_the_same(run, packages):
    found = {entry["name"]: entry for entry in json.loads(run("list", "--json"))}
    mine = found["mine.done.v1"]
    assert (mine["place"], mine["topic"], mine["severity"]) == ("mine:Done", "mine.done", 30)
    assert found["mine.early.v1"]["is_deprecated"]
    assert "AttributeError" in found["mine.none.v1"]["fault"]


def test_a_schema_is_shown_as_json(run, packages):
    assert json.loads(run("show", "mine.done.v1")) == OLD
    whole = json.loads(run("show", "mine.done.v1", "--json"))
    assert (whole["body"], whole["package"], whole["version"]) == (OLD, "mine-messages", "1.5")


def test_an_unknown_name_is_refused_with_those_that_are_near(run, packages):
    assert "there are mine.done.v1" in run("show", "mine.don.v1", code=2)
    assert "no message schema zzz\\x1b here" in run("show", "zzz\x1b", code=2)


def test_a_broken_class_is_told_with_its_package(run, packages):
    assert "mine:Missing: cannot be loaded" in run("show", "mine.none.v1", code=78)


# The schema of a topic


@pytest.mark.parametrize("prefix", ["", "org.example.", "org.fedoraproject.stg."])
def test_an_installed_schema_is_found_by_the_topic_of_its_class(run, packages, prefix):
    shown = run("for", f"{prefix}mine.done")
    assert shown == "mine.done.v1, of the package mine-messages 1.5\n"


def test_a_name_stands_for_a_topic_where_the_class_has_none_and_the_newest_is_first(run):
    shown = run("for", "org.fedoraproject.prod.bodhi.update.edit").splitlines()
    assert [line.split(",")[0] for line in shown] == [
        "bodhi.update.edit.v2",
        "bodhi.update.edit.v1",
    ]


def test_a_prefix_that_the_class_has_itself_does_not_matter(run):
    assert "anitya.distro.add," in run("for", "org.release-monitoring.stg.anitya.distro.add")


def test_a_pattern_finds_all_schemas_below_it(run):
    shown = run("for", "org.fedoraproject.*.buildsys.repo.#").splitlines()
    assert [line.split(",")[0] for line in shown] == [
        "koji_fedoramessaging.repo.DoneV1",
        "koji_fedoramessaging.repo.InitV1",
    ]


def test_a_missing_package_is_named_with_the_commands_that_install_it(run):
    shown = run("for", "org.fedoraproject.prod.copr.build.end", code=1)
    assert "no installed schema is known for the topic" in shown
    assert "  pip install copr-messaging\n" in shown
    assert "dnf install 'python3dist(copr-messaging)'" in shown
    found = json.loads(run("for", "copr.build.end", "--json", code=1))
    assert (found["schemas"], found["missing"]) == ([], ["copr-messaging"])


def test_several_packages_of_an_application_are_all_named(run):
    shown = run("for", "org.fedoraproject.prod.git.receive", code=1)
    assert "these packages have schemas of such topics:" in shown
    assert shown.count("pip install") == 2


def test_a_topic_that_an_installed_package_does_not_have_names_its_others(run):
    shown = run("for", "org.fedoraproject.prod.bodhi.update.unknown", code=1)
    assert "the same application has" in shown
    assert "such as bodhi.update." in shown
    assert "install" not in shown.replace("no installed", "")


def test_a_topic_of_nobody_known_is_told(run):
    assert "ask those who publish it" in run("for", "com.example.x\x1b", code=1)


def test_the_known_packages_are_those_of_the_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {re.split(r"[<>=]", entry)[0] for entry in (*extras["demo"], *extras["schemas"])}
    assert {package for several in PACKAGES.values() for package in several} == {
        name for name in named if "[" not in name
    }


def test_the_base_class_is_no_schema_of_any_topic():
    base = Installed("base.message", "fedora_messaging", "3", "m:M", topic="x.y")
    assert need_of("x.y", [base]).exact == ()


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("org.fedoraproject.*.app.*.done", True),
        ("#.app.build.done", True),
        ("app.*", True),
        ("app.#", True),
        ("app.*.failed", False),
        ("other.#", False),
    ],
)
def test_a_pattern_needs_the_schemas_of_the_topics_that_match_it(pattern, fits):
    schema = Installed("app.build.done.v1", "app", "3", "m:M", topic="app.build.done")
    assert need_of(pattern, [schema]).exact == ((schema,) if fits else ())


# Two versions


@pytest.fixture
def write(tmp_path):
    def made(name: str, value: Any) -> Path:
        path: Path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return made


def test_consumers_survive_a_new_property(run, write):
    new = {**OLD, "properties": {**OLD["properties"], "m": {}}}
    shown = run("diff", write("old.json", OLD), write("new.json", new))
    assert "Breaks nobody:\n  body.m was added\n" in shown
    assert "Consumers of the old version survive.\n" in shown
    assert "Publishers of the old version survive.\n" in shown


def test_consumers_do_not_survive_a_property_that_is_gone(run, write):
    files = write("old.json", OLD), write("new.json", {"type": "object"})
    shown = run("diff", *files, code=1)
    assert "Breaks consumers:\n  body.n was removed" in shown
    assert "Consumers of the old version do not survive.\n" in shown
    found = json.loads(run("diff", *files, "--json", code=1))
    assert (found["consumers_survive"], found["publishers_survive"]) == (False, True)
    assert found["changes"][0]["breaks"] == "consumers"


def test_a_file_is_the_old_version_of_an_installed_class_in_either_order(run, write, packages):
    file = write("old.json", {"type": "object"})
    for words in ((file, "mine.done.v1"), ("mine.done.v1", file)):
        shown = run("diff", *words)
        assert f"old: {file}, new: mine.done.v1" in shown
        assert "body.n was added" in shown


def test_two_installed_schemas_are_compared_in_their_order(run):
    shown = run("diff", "bodhi.update.edit.v1", "bodhi.update.edit.v2")
    assert "body.new_builds is required now" in shown


def test_the_same_schema_twice_accepts_the_same(run, packages):
    assert "they accept the same messages" in run("diff", "mine.done.v1", "mine.done.v1")


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ("[]", "is no JSON schema")],
)
def test_a_file_that_is_no_schema_is_refused_with_a_cure(run, write, text, told):
    file = write("bad.json", text)
    shown = run("diff", file, write("old.json", OLD), code=78)
    assert f"{file}: {told}" in shown
    assert "; " in shown


def test_a_file_that_is_not_there_is_told(run, tmp_path):
    assert "cannot be read: No such file" in run("diff", tmp_path / "x.json", "a.json", code=78)


def test_the_names_of_schemas_are_completed():
    complete = ShellComplete(main, {}, "fm-consumer", "_FM_CONSUMER_COMPLETE")
    found = complete.get_completions(["schemas", "show"], "bodhi.update.edit")
    assert [item.value for item in found] == ["bodhi.update.edit.v1", "bodhi.update.edit.v2"]
