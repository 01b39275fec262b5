# SPDX-License-Identifier: GPL-2.0-or-later
"""The line of each key of a TOML file is found, in every form that TOML allows."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.settings import TomlLines, toml_path

TEXT = '''\
# a comment with [brackets] = "and more"
AMQP_URL = "amqp://localhost" # another = one
text = """
one = 1
[two]
""""
raw = \'\'\'
three = 3
\'\'\'
a.b = 1

[queues."with.dot"]  # of the file
durable = true
arguments = { x-max-length = 5, "x-other" = [1, { deep = 1.5 }] }

[[bindings]]
queue = "a\\"b # no comment"
routing_keys = [
  "one",  # [
  'two',

  "three",
]
[bindings.arguments]
key = 1979-05-27 07:32:00
[[bindings]]
queue = 'c'
routing_keys = ["#"]
[consumer_config.framework.recovery]
hold_slots = 4
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("amqp_url", 2),
        ("text", 3),
        ("one", 0),
        ("raw", 7),
        ("three", 0),
        ("a", 10),
        ("a.b", 10),
        ("queues", 12),
        ('queues."with.dot"', 12),
        ('queues."with.dot".durable', 13),
        ('queues."with.dot".exclusive', 12),
        ('queues."with.dot".arguments.x-max-length', 14),
        ('queues."with.dot".arguments.x-other[1].deep', 14),
        ("bindings", 16),
        ("bindings[0]", 16),
        ("bindings[0].queue", 17),
        ("bindings[0].routing_keys", 18),
        ("bindings[0].routing_keys[0]", 19),
        ("bindings[0].routing_keys[1]", 20),
        ("bindings[0].routing_keys[2]", 22),
        ("bindings[0].arguments", 24),
        ("bindings[0].arguments.key", 25),
        ("bindings[1]", 26),
        ("bindings[1].routing_keys[0]", 28),
        ("consumer_config", 29),
        ("consumer_config.framework", 29),
        ("consumer_config.framework.recovery.hold_slots", 30),
        ("consumer_config.framework.slots", 29),
        ("tls.ca_cert", 0),
        ("", 0),
    ],
)
def test_a_key_has_its_line_and_a_missing_key_that_of_its_table(path, line):
    assert TomlLines(TEXT).line_of(path) == line


@pytest.mark.parametrize("text", ["", "a = ", "[a", "a = " + "[" * 5000 + "]" * 5000, "\x00"])
def test_a_text_that_is_no_toml_has_no_lines(text):
    assert TomlLines(text).line_of("a") == 0


def paths_of(value: Any, prefix: str = "") -> list[str]:
    """Return the TOML path of everything in a document."""
    parts: Any = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    found: list[str] = []
    for part, inner in parts:
        path = toml_path(prefix, (part,))
        found += [path, *paths_of(inner, path)]
    return found


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", [*(ROOT / "examples").rglob("*.toml"), ROOT / "pyproject.toml"])
def test_every_key_of_a_real_file_is_found_on_a_line_that_has_it(file):
    text = file.read_text()
    lines = TomlLines(text)
    for path in paths_of(tomllib.loads(text)):
        shown = text.splitlines()[lines.line_of(path) - 1]
        assert lines.line_of(path), path
        if not path.endswith("]"):
            assert path.split(".")[-1].strip('"') in shown


keys = st.text("abc", min_size=1, max_size=2).map(lambda text: f"key-{text}")
scalars = st.one_of(
    st.integers(-5, 5).map(str),
    st.sampled_from(["1.5", "true", "2026-01-01 10:00:00", "'a # ]'", '"b \\" , }"', '""']),
    st.sampled_from(['"""\nx = 1\n[y]\n"""', "'''\n]\n'''"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[ " + ",\n ".join(items) + "\n]"),
    max_leaves=6,
)
pairs = st.dictionaries(keys, values, max_size=4)


@given(st.dictionaries(keys, pairs, min_size=1, max_size=4))
def test_any_valid_file_has_a_line_for_each_key(tables):
    text, wanted = "", {}
    for name, table in tables.items():
        wanted[name] = text.count("\n") + 1
        text += f"[{name}]\n"
        for key, value in table.items():
            wanted[f"{name}.{key}"] = text.count("\n") + 1
            text += f"{key} = {value}  # = [\n"
    lines = TomlLines(text)
    assert {path: lines.line_of(path) for path in wanted} == wanted
