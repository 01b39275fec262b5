# SPDX-License-Identifier: GPL-2.0-or-later
"""A type checker accepts documented consumers, and knows the type of a message."""

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"

TYPED = """
from fedora_messaging.message import Message

from consumer_framework import BatchConsumer, Batch, Consumer, Recovery
from consumer_framework.testing import Ack, Disposition, Harness, Hold


class Typed(Consumer):
    recovery = Recovery(
        immediate=0,
        delays=("5s", 60, 1.5),
        ack_timeout="1h",
        on_exhausted="halt",
        breaker={"consecutive": 2, "probe": ["5s"]},
        rules=[{"exceptions": [ConnectionError], "then": "dependency"}],
    )

    def handle(self, message: Message) -> None:
        (self.state_dir / "last").write_text(message.topic)


class Many(BatchConsumer):
    async def handle_batch(self, messages: Batch) -> None:
        for message in messages:
            messages.fail(message, ValueError(message.topic))


def test_it() -> None:
    with Harness(Typed) as harness:
        message = Message(topic="a.topic")
        disposition: Disposition | None = harness.deliver(message)
        assert isinstance(disposition, Ack | Hold)
        assert harness.published == [message]


class Wrong(Consumer):
    recovery = Recovery(delay=3)

    def handle(self, message: str) -> None:
        print(message.topic)
"""


# mypy and pyright agree on every line of this file: those with "error" at their end are wrong.
BOTH = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, assert_type

from fedora_messaging.message import Message
from pydantic import BaseModel

from consumer_framework import Batch, BatchConsumer, Consumer, heartbeat, on, on_message, on_topic
from consumer_framework import AsyncStep, Step, publishing, translate
from consumer_framework.publishing import Outgoing
from consumer_framework.testing import Ack, CapturedMessages, ConsumerFactory, Disposition, Harness
from consumer_framework.testing import message_of


class Model(BaseModel):
    packages: list[str] = []


@dataclass
class Data:
    url: str = ""


class Table(TypedDict):
    url: str


class OfModel(Consumer[Model]):
    def handle(self, message: Message) -> None:
        assert_type(self.config, Model)
        assert_type(self.config.packages, list[str])
        print(self.config.package)  # error


class OfData(Consumer[Data]):
    async def handle(self, message: Message) -> None:
        assert_type(self.config, Data)
        print(self.config.url + 1)  # error


class OfTable(BatchConsumer[Table]):
    def handle_batch(self, messages: Batch) -> None:
        assert_type(self.config["url"], str)
        for message in messages:
            assert_type(message, Message)
            messages.fail(message, "reason")  # error


class Nested(Consumer):
    class Config(BaseModel):
        retries: int = 3

    config: Config

    def handle(self, message: Message) -> None:
        assert_type(self.config.retries, int)


class Untyped(Consumer):
    def handle(self, message: Message) -> None:
        assert_type(self.config, Any)


class OfDict(Consumer[dict[str, Any]]):
    def handle(self, message: Message) -> None:
        assert_type(self.config, dict[str, Any])


ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Shared(Consumer[ConfigT]):
    def shown(self) -> str:
        return self.config.model_dump_json()


class OfShared(Shared[Model]):
    def __init__(self, config: Model) -> None:
        super().__init__(config)

    @on(ConnectionError, then="dependency")
    def handle(self, message: Message) -> None:
        assert_type(self.config, Model)
        assert_type(self.shown(), str)


def number_of(bug: str, *, again: bool = False) -> int:
    return len(bug)


async def text_of(bug: int) -> str:
    return str(bug)


class InSteps(Consumer[Model]):
    def handle(self, message: Message) -> None:
        with self.once("file-bug") as step:
            assert_type(step, Step)
            assert_type(step.run(number_of, "kernel", again=True), int)
            step.run(number_of, 17)  # error
            assert_type(step.done, bool)


class InAsyncSteps(BatchConsumer[Model]):
    async def handle_batch(self, messages: Batch) -> None:
        async with self.once("file-bug", messages[0]) as step:
            assert_type(step, AsyncStep)
            assert_type(await step.run(text_of, 17), str)
            assert_type(await step.run(number_of, "kernel"), int)
            await step.run(text_of, "kernel")  # error


class Routed(Consumer[Model]):
    @on_topic("a.#")
    @on(KeyError, then="drop")
    def built(self, message: Message) -> int:
        return len(self.config.packages)

    @on_message(Message)
    async def other(self, message: Message) -> None: ...

    @on_message(Model)  # error
    def wrong(self, message: Message) -> None: ...


@on(ValueError, then="retry")
def decorated(message: Message, extra: int = 3) -> str:
    with translate({KeyError: "drop"}):
        heartbeat()
    return "done"


@on(ValueError, then="retyr")  # error
def misspelt(message: Message) -> None: ...


assert_type(decorated(Message(), extra=3), str)
decorated("text")  # error
assert_type(OfModel(Model()).config, Model)
assert_type(Routed(Model()).built(Message()), int)
OfShared(Data())  # error


class Built(Message):
    topic = "org.example.built"


def test_it(consumer: ConsumerFactory, capture_outbox: CapturedMessages) -> None:
    assert_type(message_of(Built, name="kernel"), Built)
    harness = consumer(OfModel, config={"packages": []})
    assert_type(harness, Harness)
    assert_type(harness.deliver(Built()), Disposition | None)
    assert isinstance(harness.deliver(Built()), Ack)
    assert_type(harness.published[0], Message)
    assert_type(capture_outbox[0], Message)
    assert_type(publishing.publish(Built(), "key"), Outgoing)
    publishing.publsih(Built())  # error
"""


def mypy(directory: Path, *files: Path) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(directory / "cache")]
    found = subprocess.run(
        [*command, *files], check=False, cwd=directory, capture_output=True, text=True
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    return [line for line in found.stdout.splitlines() if "error:" in line]


def pyright(directory: Path, file: Path) -> list[dict[str, Any]]:
    """Return the errors that pyright finds in *file*, in its strict mode."""
    (directory / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    found = subprocess.run(
        [*command, file.name], check=False, cwd=directory, capture_output=True, text=True
    )
    errors: list[dict[str, Any]] = json.loads(found.stdout)["generalDiagnostics"]
    return errors


def shown() -> list[str]:
    """The consumers with settings of their own in the documentation, with the types of mypy."""
    pages = [DOCS / "howto/tune-recovery.md", DOCS / "reference/handlers.md"]
    sources = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        if "Recovery(" in block
    ]
    typed = "def handle(self, message: Message) -> None:"
    head = "from fedora_messaging.message import Message\n"
    return [head + s.replace("def handle(self, message):", typed) for s in sources]


@pytest.fixture(scope="module")
def mypy_errors(tmp_path_factory):
    """The errors of mypy in all files: one run takes half a minute."""
    pytest.importorskip("mypy", reason="the extra `lint` is not installed")
    directory = tmp_path_factory.mktemp("mypy")
    documented = {f"shown_{number}.py": source for number, source in enumerate(shown())}
    sources = {"typed.py": TYPED, "both.py": BOTH, **documented}
    for name, source in sources.items():
        (directory / name).write_text(source)
    return mypy(directory, *(directory / name for name in sources))


def test_mypy_strict_accepts_documented_consumers_and_finds_mistakes(mypy_errors):
    assert len(shown()) == 2
    errors = [line for line in mypy_errors if not line.startswith("both.py")]
    assert len(errors) == 3, errors
    assert all("typed.py" in line for line in errors)
    assert 'Unexpected keyword argument "delay"' in errors[0]
    assert "incompatible with supertype" in errors[1]
    assert '"str" has no attribute "topic"' in errors[2]


def wrong_lines(source: str) -> list[int]:
    return [n for n, line in enumerate(source.splitlines(), 1) if line.endswith("# error")]


def test_mypy_knows_the_type_of_a_configuration_and_finds_mistakes(mypy_errors):
    errors = [line for line in mypy_errors if line.startswith("both.py")]
    assert [int(line.split(":")[1]) for line in errors] == wrong_lines(BOTH), errors


def test_pyright_knows_the_type_of_a_configuration_and_finds_mistakes(tmp_path):
    pytest.importorskip("basedpyright", reason="the extra `lint` is not installed")
    file = tmp_path / "both.py"
    file.write_text(BOTH)
    errors = pyright(tmp_path, file)
    # It reports one mistake by several of its rules.
    lines = sorted({error["range"]["start"]["line"] + 1 for error in errors})
    assert lines == wrong_lines(BOTH), errors


def test_the_package_says_that_it_is_typed():
    assert (resources.files("consumer_framework") / "py.typed").is_file()
