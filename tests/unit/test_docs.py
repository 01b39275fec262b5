# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation says what the code does, and builds."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fedora_messaging import config as upstream
from fedora_messaging import exceptions
from fedora_messaging.message import Message

import consumer_framework
from consumer_framework.adapters.executor import signal_of
from consumer_framework.core import settings
from consumer_framework.core.delivery import Failed, Succeeded
from consumer_framework.core.disposition import Ack, Halt, Reject, Requeue
from consumer_framework.core.errors import ExitCode
from consumer_framework.core.recovery import UPSTREAM, decide

if TYPE_CHECKING:
    from pydantic import BaseModel

    from consumer_framework.core.delivery import Outcome
    from consumer_framework.core.disposition import Disposition

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"), *DOCS.glob("*/*.md")]
)

TABLES: dict[str, type[BaseModel]] = {
    "Top level": settings.Settings,
    "`[queues.NAME]`": settings.Queue,
    "`[[bindings]]`": settings.Binding,
    "`[qos]`": settings.Qos,
    "`[tls]`": settings.Tls,
    "`[monitoring]`": settings.Monitoring,
}
TOML_TYPES = {"object": "table", "number": "float"}

RAISED: dict[str, BaseException | None] = {
    "nothing: the handler returns": None,
    "`consumer_framework.Retry(reason)`": consumer_framework.Retry("reason"),
    "`fedora_messaging.exceptions.Nack`": exceptions.Nack(),
    "`consumer_framework.Drop(reason)`": consumer_framework.Drop("reason"),
    "`fedora_messaging.exceptions.Drop`": exceptions.Drop(),
    "`consumer_framework.Halt(exit_code, reason)`": consumer_framework.Halt(3, "reason"),
    "`consumer_framework.Halt(exit_code, reason, requeue=True)`": consumer_framework.Halt(
        3, "reason", requeue=True
    ),
    "`fedora_messaging.exceptions.HaltConsumer`": exceptions.HaltConsumer(3, requeue=True),
    "any other exception, `SystemExit` included": SystemExit(0),
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of *page*."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table under *heading*, without its head."""
    text = page.read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def toml_type(schema: dict[str, Any]) -> str:
    """The TOML type that a JSON schema describes; null only says that a key may be missing."""
    if "anyOf" in schema:
        [schema] = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
    name: str = schema.get("type", "object")
    return TOML_TYPES.get(name, name)


def shown_default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict | list) and value:
        return "see below"
    return f"`{json.dumps(value)}`"


def expected_rows(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    properties = model.model_json_schema()["properties"]
    rows = {}
    for name, field in model.model_fields.items():
        if model is settings.Settings:
            default = shown_default(upstream.DEFAULTS[name])  # type: ignore[literal-required]
        else:
            default = "required" if field.is_required() else shown_default(field.default)
        rows[name] = (toml_type(properties[name]), default)
    return rows


@pytest.mark.parametrize("heading", TABLES)
def test_the_configuration_reference_lists_the_keys_their_types_and_defaults(heading):
    cells = table(DOCS / "reference/configuration.md", heading)
    documented = {key.strip("`"): (kind, default) for key, kind, default, _ in cells}
    assert documented == expected_rows(TABLES[heading])


def test_the_exit_code_reference_lists_the_codes_and_their_names():
    cells = table(DOCS / "reference/exit-codes.md", "Exit codes")
    documented = {name.strip("`"): int(code) for code, name, _, _ in cells}
    assert documented == {code.name: code.value for code in ExitCode}


def fate(disposition: Disposition) -> str:
    match disposition:
        case Ack() | Halt(requeue=False):
            return "acknowledged"
        case Requeue():
            return "requeued at once"
        case Reject():
            return "rejected"
        case Halt():
            return "requeued"


@pytest.mark.parametrize("raised", RAISED)
def test_the_handler_reference_says_what_becomes_of_a_message(raised):
    cells = table(DOCS / "reference/handlers.md", "What a handler may raise")
    assert [row[0] for row in cells] == list(RAISED)
    [(_, message, instance)] = [row for row in cells if row[0] == raised]
    error = RAISED[raised]
    outcome: Outcome = Failed(signal_of(error)) if error else Succeeded()
    disposition = decide(outcome, UPSTREAM)
    assert message in {fate(disposition), "as its `requeue` says"}
    assert (instance == "goes on") is not isinstance(disposition, Halt)
    if isinstance(disposition, Halt) and "`exit_code`" not in instance:
        assert instance.endswith(str(int(disposition.exit_code)))


def test_the_python_reference_has_every_public_name():
    text = (DOCS / "reference/python-api.md").read_text(encoding="utf-8")
    documented = re.findall(
        r"^\.\. auto(?:class|exception):: consumer_framework\.(\w+)$", text, re.MULTILINE
    )
    assert sorted(documented) == sorted(consumer_framework.__all__)


def test_the_errors_in_the_configuration_reference_are_what_the_command_prints(tmp_path):
    good = blocks(ROOT / "README.md", "toml")[0]
    bad = good.replace("exclusive = false", 'exclusive = "no"').replace(
        'queue = "sample"', 'queue = "sampel"'
    )
    (tmp_path / "sample.toml").write_text(f"{bad}[qos]\nprefetch_coun = 1\n")
    program = str(Path(sys.executable).with_name("fm-consumer"))
    command = [program, "run", "--conf", "sample.toml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == ExitCode.CONFIGURATION
    [shown] = [
        text
        for text in blocks(DOCS / "reference/configuration.md", "text")
        if "prefetch_coun" in text
    ]
    assert result.stderr == shown


def test_the_smallest_consumer_of_the_readme_handles_a_message(capsys):
    namespace: dict[str, Any] = {}
    exec(blocks(ROOT / "README.md", "python")[0], namespace)  # noqa: S102 -- our own text
    namespace["Sample"]({}).handle(Message(topic="org.example.hello"))
    assert capsys.readouterr().out.startswith("org.example.hello")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_and_toml_on_a_page_have_no_syntax_errors(page):
    for source in blocks(page, "python"):
        compile(source, str(page), "exec")
    for document in blocks(page, "toml"):
        tomllib.loads(document)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_whole_configuration_on_a_page_is_valid(page):
    documents = [tomllib.loads(text) for text in blocks(page, "toml")]
    for document in documents:
        if "amqp_url" in document:
            defaults = {**upstream.DEFAULTS, "log_config": None, "monitoring": None}
            settings.parse({**defaults, **document})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_exists(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ["sphinx", "furo", "myst_parser", "sphinx_click"])),
    reason="the extra `docs` is not installed",
)
def test_the_documentation_builds_without_a_warning(tmp_path):
    options = ["-W", "--keep-going", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # A directive that the wrong parser reads comes out as text, without a warning.
    for page in tmp_path.glob("*/*.html"):
        assert not re.search(r"\.\. [a-z]+::", page.read_text(encoding="utf-8")), page
