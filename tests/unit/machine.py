# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine for commands that look at services: files, state, and a program for systemctl."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.cli import main
from consumer_framework.cli import options as cli_options
from consumer_framework.runtime import state_files
from consumer_framework.runtime.control import client, schema
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.threaded import ControlThread
from consumer_framework.testing import make_delivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import pytest
    from click.testing import Result

    from consumer_framework.runtime.control.routes import Pages

TOML = """
amqp_url = "amqp://localhost"
callback = "sample:Sample"
[queues.sample]
durable = true
auto_delete = false
exclusive = false
arguments = {}
[[bindings]]
queue = "sample"
exchange = "amq.topic"
routing_keys = ["#"]
"""

# Knows units as long as it is told of them, and does nothing else.
SYSTEMCTL = f"""#!{sys.executable} -IS
import fnmatch, json, os, pathlib, sys
here = pathlib.Path(__file__).parent
units = json.loads((here / "units.json").read_text())
options = [word for word in sys.argv[1:] if word.startswith("-")]
verb, *names = [word for word in sys.argv[1:] if not word.startswith("-")] + [""]
names = names[:-1] or names
if (here / "broken").exists():
    sys.exit((here / "broken").read_text())
if verb == "show":
    found = [n for n in names if "*" not in n]
    found += [u for u in units for n in names if "*" in n and fnmatch.fnmatch(u, n)]
    for name in found:
        unit = {{"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead",
                "UnitFileState": "disabled", "Id": name, **units.get(name, {{}})}}
        print("\\n".join(f"{{key}}={{value}}" for key, value in unit.items()), end="\\n\\n")
else:
    changes = {{"enable": ("UnitFileState", "enabled"), "disable": ("UnitFileState", "disabled"),
               "start": ("ActiveState", "active"), "stop": ("ActiveState", "inactive")}}
    if verb in changes:
        key, value = changes[verb]
        units.setdefault(names[-1], {{}})[key] = value
    (here / "units.json").write_text(json.dumps(units))
    with open(here / "calls", "a") as calls:
        calls.write(f"{{verb}} {{names[-1]}}\\n")
"""


@dataclass
class Host:
    """A machine: configuration files, state, units."""

    directory: Path

    @property
    def etc(self) -> Path:
        return self.directory / "etc"

    def does(self, *words: str) -> Result:
        return CliRunner().invoke(main, words, catch_exceptions=False)

    def shows(self, *words: str) -> Any:
        return json.loads(self.does("status", "--json", *words).stdout)

    def configures(self, name: str = "sample", text: str = TOML) -> Path:
        file = self.etc / f"{name}.toml"
        file.write_text(text)
        return file

    def links(self) -> list[str]:
        return sorted(path.stem for path in self.etc.iterdir() if path.is_symlink())

    def has_unit(self, instance: str, active: str = "active", **more: str) -> None:
        file = self.directory / "bin/units.json"
        units = json.loads(file.read_text())
        units[unit_name(instance)] = {
            "ActiveState": active,
            "SubState": "running" if active == "active" else active,
            "UnitFileState": "enabled",
            **more,
        }
        file.write_text(json.dumps(units))

    def calls(self) -> list[str]:
        file = self.directory / "bin/calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removesuffix(".service") for line in lines]

    def keeps(self, instance: str, *, deferred: int = 0, quarantined: int = 0) -> None:
        state = self.directory / "lib" / instance
        state.mkdir(parents=True, exist_ok=True)
        with closing(Store.open(state, limits=Limits())) as store:

            async def write() -> None:
                for number in range(deferred + quarantined):
                    delivery = make_delivery(queue="sample", body=b'{"n": %d}' % number)
                    if number < deferred:
                        await store.defer(delivery, time.time() + 3600)
                    else:
                        await store.quarantine(delivery, "poison")

            asyncio.run(write())

    @contextmanager
    def runs(self, instance: str, place: str = "lib", **more: Any) -> Iterator[None]:
        """Let something answer on the control socket of an instance.

        The argument *reload* answers orders to reload, and *answers* other types of request;
        *pages* are the pages of the process.
        """
        reload, pages = more.pop("reload", None), more.pop("pages", {})
        answers = more.pop("answers", {})
        counts = schema.Counts(**{"acked": 7, "running": 1, **more.pop("counts", {})})
        status = "consuming 1 queue, 0/s, 7 handled, up 9 s"
        report = schema.StatusReport(
            **{"pid": 42, "status": status, "held": 2, **more, "counts": counts}
        )
        state = self.directory / place / instance
        state.mkdir(parents=True, exist_ok=True)
        store = Store.open(state, limits=Limits())
        responder = Responder(store, None, report=lambda: report)  # type: ignore[arg-type]
        by_type = {**responder.by_type, **answers}
        if reload is not None:
            by_type[schema.Reload] = _reloading(reload)
        try:
            with _serving(state / "control", by_type, pages):
                yield
        finally:
            store.close()


def _reloading(reload: Any) -> Any:
    """Let *reload* have JSON objects for requests and answers."""

    async def answer(request: schema.Reload) -> AsyncIterator[object]:
        async for said in reload(schema.document_of(request)):
            yield schema.checked(schema.answers_of(schema.Reload), said, "")

    return answer


@contextmanager
def _serving(path: Path, by_type: dict[Any, Any], pages: Pages) -> Iterator[None]:
    """Answer on *path* with coroutines, which run on a loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def answering(respond: Any) -> Any:
        def answers(request: Any) -> Iterator[object]:
            generator = respond(request)

            async def following() -> object:
                return await anext(generator)

            while True:
                try:
                    yield asyncio.run_coroutine_threadsafe(following(), loop).result(10)
                except StopAsyncIteration:
                    return

        return answers

    answers = {kind: answering(respond) for kind, respond in by_type.items()}
    control = ControlThread(path, answers, pages)
    try:
        yield
    finally:
        control.close()
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Let commands see this machine, and not the real one, until the end of the test."""
    for name in ("etc", "lib", "bin", "h/fedora-messaging"):
        (tmp_path / name).mkdir(parents=True)
    program = tmp_path / "bin/systemctl"
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    (tmp_path / "bin/units.json").write_text("{}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(cli_options, "CONFIGURATION_DIRECTORY", tmp_path / "etc")
    monkeypatch.setattr(state_files, "SYSTEM_STATE", tmp_path / "lib")
    monkeypatch.setattr(client, "SYSTEM_STATE", tmp_path / "lib")
    monkeypatch.setattr(client, "SYSTEM_RUNTIME", tmp_path / "run")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "h"))
    return Host(tmp_path)
