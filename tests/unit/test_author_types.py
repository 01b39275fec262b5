# SPDX-License-Identifier: GPL-2.0-or-later
"""A type checker accepts documented consumers, and knows the type of a message."""

import re
import subprocess
import sys
from pathlib import Path

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


def mypy(directory: Path, *files: Path) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(directory / "cache")]
    found = subprocess.run(
        [*command, *files], check=False, cwd=directory, capture_output=True, text=True
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    return [line for line in found.stdout.splitlines() if "error:" in line]


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


def test_mypy_strict_accepts_documented_consumers_and_finds_mistakes(tmp_path):
    pytest.importorskip("mypy", reason="the extra `lint` is not installed")
    files = [tmp_path / "typed.py"]
    files[0].write_text(TYPED)
    documented = shown()
    assert len(documented) == 2
    for number, source in enumerate(documented):
        files.append(tmp_path / f"shown_{number}.py")
        files[-1].write_text(source)
    errors = mypy(tmp_path, *files)
    assert len(errors) == 3, errors
    assert all("typed.py" in line for line in errors)
    assert 'Unexpected keyword argument "delay"' in errors[0]
    assert "incompatible with supertype" in errors[1]
    assert '"str" has no attribute "topic"' in errors[2]
