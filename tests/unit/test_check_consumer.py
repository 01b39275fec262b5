# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer check`` asks the class of a consumer about its configuration."""

from __future__ import annotations

import pytest
from fedora_messaging import config as upstream

from consumer_framework import Consumer, Problem
from consumer_framework.core.errors import ExitCode, TemporaryProblem
from consumer_framework.kit.command import CommandConfig, RunCommand
from consumer_framework.kit.insert_row import InsertRow, InsertRowConfig
from consumer_framework.kit.json_lines import AppendJsonLines, JsonLinesConfig
from consumer_framework.operate.check.consumer import consumer_findings
from consumer_framework.operate.check.findings import Level
from consumer_framework.operate.check.start import Start
from consumer_framework.runtime.assembly.loader import Target
from consumer_framework.settings import Framework, Settings
from consumer_framework.testing.broker import HOST, reserve_port


class Asked(Consumer):
    @classmethod
    def check_config(cls, config, *, connect):
        if config.get("path") == "/no":
            yield Problem("path", "is not there", "create it")
        if connect:
            yield TemporaryProblem("server", "is away")
        if config.get("depth"):
            yield Problem("", "is too deep")

    def handle(self, message): ...


class Raises(Consumer):
    @classmethod
    def check_config(cls, config, *, connect):
        raise LookupError("no table")

    def handle(self, message): ...


class WrongForm(Consumer):
    def check_config(self):  # type: ignore[override]
        return ()

    def handle(self, message): ...


def findings(value, *, absent=(), connect=False, **config):
    settings = Settings.model_validate(
        {**upstream.DEFAULTS, "monitoring": None, "consumer_config": config}
    )
    start = Start(settings, Framework(), (), Target("m:v", "sample.toml", value))
    return list(consumer_findings(start, absent, connect=connect))


def test_a_problem_of_the_class_is_an_error_with_its_key():
    [found] = findings(Asked, path="/no")
    assert (found.level, found.exit_code) == (Level.ERROR, ExitCode.CONFIGURATION)
    assert str(found.problem) == "consumer_config.path: is not there; create it"


def test_a_problem_that_passes_has_the_exit_code_of_an_instance_that_waits():
    [found] = findings(Asked, connect=True)
    assert (found.level, found.exit_code) == (Level.ERROR, ExitCode.TEMPORARY)
    assert str(found.problem) == "consumer_config.server: is away"


def test_a_problem_of_the_whole_table_has_its_path():
    [found] = findings(Asked, depth=1)
    assert found.problem.path == "consumer_config"


def test_a_class_and_a_function_without_problems_have_no_finding():
    assert findings(Asked) == []
    assert findings(lambda message: None) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [(Raises, "raised LookupError: no table"), (WrongForm, "raised TypeError: ")],
)
def test_a_method_that_raises_is_a_warning_and_no_traceback(value, reason):
    [found] = findings(value)
    assert found.level is Level.WARNING
    assert reason in found.problem.message


def test_without_a_credential_of_its_own_the_class_is_not_asked():
    [found] = findings(Raises, absent=["consumer_config.token"])
    assert found.level is Level.INFO
    [found] = findings(Raises, absent=["consumer_config.framework.outbox.database", "amqp_url"])
    assert found.level is Level.WARNING


def test_a_database_server_is_asked_only_if_the_operator_allows_connections():
    with reserve_port() as port:
        database = f"postgresql://{HOST}:{port.getsockname()[1]}/none"
        config = InsertRowConfig.model_validate(
            {"database": database, "table": "messages", "columns": {"id": "id"}}
        )
        assert list(InsertRow.check_config(config, connect=False)) == []
        [problem] = InsertRow.check_config(config, connect=True)
    assert isinstance(problem, TemporaryProblem)
    assert problem.path == "database"


def test_a_place_that_cannot_be_looked_at_is_no_problem(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    config = JsonLinesConfig.model_validate({"path": str(tmp_path / "loop" / "lines.json")})
    assert list(AppendJsonLines.check_config(config, connect=False)) == []


def test_a_program_is_looked_for_in_the_path_of_the_configuration(tmp_path):
    (tmp_path / "build").touch()

    def problems(**config):
        parsed = CommandConfig.model_validate({"command": ["build"], **config})
        return [problem.path for problem in RunCommand.check_config(parsed, connect=False)]

    assert problems() == ["command"]
    assert problems(environment={"PATH": str(tmp_path)}) == []
    assert problems(pass_environment=["PATH"]) == [], "the PATH of the service is not known"
    assert problems(command=[str(tmp_path / "build")], directory=str(tmp_path)) == []
