# SPDX-License-Identifier: GPL-2.0-or-later
"""Problems of the callback and the rules are reported for a file that is itself wrong."""

import pytest
from fedora_messaging import config as upstream

from consumer_framework.core.errors import ConfigurationError, Problem, ProblemCollector
from consumer_framework.runtime.assembly.configuration import (
    RunOptions,
    callback_and_rule_problems,
)

RULES = "consumer_config.framework.recovery.rules"


@pytest.fixture(autouse=True)
def _upstreams_configuration_is_put_back():
    conf, loaded = dict(upstream.conf.items()), upstream.conf.loaded
    yield
    upstream.conf.clear()
    dict.update(upstream.conf, conf)
    upstream.conf.loaded = loaded


@pytest.fixture
def found(tmp_path):
    def problems_of(text, callback=""):
        file = tmp_path / "sample.toml"
        file.write_text(text)
        problems = callback_and_rule_problems(RunOptions(file, callback))
        assert {p.source for p in problems} <= {str(file), "--callback"}
        return [str(problem) for problem in problems]

    return problems_of


def test_callback_and_rules_are_looked_at_although_the_file_is_wrong(found):
    (callback, rule) = found(
        f'ammqp = 1\ncallback = "no_such:x"\n[[{RULES}]]\nexceptions = ["int", 5]\nthen = "x"\n'
    )
    assert callback.startswith("callback: 'no_such:x' cannot be imported")
    assert rule.startswith(f'{RULES}[0].exceptions: "int" is no exception')


def test_the_command_line_goes_before_the_file(found):
    assert found('callback = "no_such:x"', callback="json:dumps") == []


@pytest.mark.parametrize(
    "text",
    [
        'callback = 5\n[consumer_config]\nframework = "x"',
        'callback = "json:dumps"\nconsumer_config = 3',
        f'callback = "json:dumps"\n[{RULES}]\nexceptions = ["int"]',
        f'callback = "json:dumps"\n{RULES} = ["x", {{exceptions = "int"}}]',
        "not TOML",
    ],
)
def test_a_wrong_type_is_reported_once(found, text):
    assert found(text) == []


def test_without_a_file_there_may_still_be_a_callback():
    assert callback_and_rule_problems(RunOptions(None, "json:dumps")) == ()
    (problem,) = callback_and_rule_problems(RunOptions(None))
    assert problem.message == "there is no callback"


def test_a_module_that_reads_the_configuration_is_imported_with_the_one_that_is_wrong(
    found, tmp_path, monkeypatch
):
    module = f"reading_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(
        "from fedora_messaging import config\n"
        'name = config.conf["consumer_config"]["name"]\n'
        "def handler(message): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert found(f'ammqp = 1\ncallback = "{module}:handler"\n[consumer_config]\nname = "n"') == []


# The collector.


def test_a_collector_keeps_the_problems_and_goes_on():
    def fail(message, source=""):
        raise ConfigurationError(Problem("a.b", message), source=source)

    collector = ProblemCollector("file")
    assert collector.call(fail, "one") is None
    assert collector.call(int, "3") == 3
    assert collector.call(fail, "two", source="other") is None
    assert collector.call(fail, "one") is None
    assert str(collector.error()) == "file: a.b: one\nother: a.b: two"
    with pytest.raises(ZeroDivisionError):
        collector.call(lambda: 1 / 0)
