# SPDX-License-Identifier: GPL-2.0-or-later
"""A user who may not read the store of an instance operates it over the operators' socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from .instance import FM_CONSUMER, Instance, publish, queue_table, until
from .private_root import PATIENCE, PrivateRoot, missing, skip_unless_in_ci

if TYPE_CHECKING:
    from collections.abc import Iterator

# nobody, who is in no group of this machine.
NOBODY = 65534
STATE = "/var/lib/fedora-messaging/watched"
RUNTIME = "/run/fedora-messaging/watched"

# Fails until the file is there.
HANDLER = """
import pathlib
here = pathlib.Path(__file__).parent
def handler(message):
    if not (here / "mended").exists():
        raise KeyError(f"number {message.body['n']}")
    note("done", message)
"""
RECOVERY = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"


class Watched:
    """A running instance, and a user who may connect to the operators' socket only."""

    def __init__(self, root: PrivateRoot, instance: Instance) -> None:
        self._root = root
        self.instance = instance

    def does(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as that user, by the name of the instance alone."""
        return self.runs("quarantine", verb, "watched", *words)

    def runs(self, *words: str) -> subprocess.CompletedProcess[str]:
        # Nobody may not write where the coverage of the tests is measured, and would say so.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
        user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        return subprocess.run(
            [*self._root.prefix, *user, str(FM_CONSUMER), *words],
            env={**environment, "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
        )

    def shows(self, verb: str, *words: str) -> Any:
        done = self.does(verb, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def watched(broker, queue_name, tmp_path) -> Iterator[Watched]:
    skip_unless_in_ci(missing())
    if not shutil.which("setpriv"):
        skip_unless_in_ci("setpriv is not installed: apt-get install util-linux")
    place, directory = tmp_path / "root", tmp_path / "instance_0"
    for made in (place, directory):
        made.mkdir()
    replaced = ("/var/lib/fedora-messaging", "/run/fedora-messaging")
    root = PrivateRoot(place, "/etc", "/var/lib", "/run", replaced=replaced)
    with root:
        # As the unit makes them: the state for the instance alone, a socket for its operators.
        for path, mode in ((STATE, 0o700), (RUNTIME, 0o711), (f"{RUNTIME}/operators", 0o2750)):
            root.path(path).mkdir(mode=mode)
            root.path(path).chmod(mode)
        os.chown(root.path(f"{RUNTIME}/operators"), 0, NOBODY)
        instance = Instance(
            directory,
            broker.url,
            queue_table(queue_name),
            HANDLER,
            extra=RECOVERY,
            environment={"STATE_DIRECTORY": STATE, "RUNTIME_DIRECTORY": RUNTIME},
            prefix=(*root.prefix, str(FM_CONSUMER)),
        )
        try:
            instance.state = root.path(STATE)
            found = Watched(root, instance)
            if found.runs("--version").returncode:
                pytest.skip("nobody may not run the command from where it is installed")
            instance.start().ready()
            yield found
        finally:
            instance.end()


def test_an_operator_lists_shows_and_replays_and_may_not_drop(watched, broker, queue_name):
    publish(broker.url, queue_name, [1, 2, 3])
    until(lambda: len(watched.instance.store()) == 3, lambda: watched.instance.log)
    [row] = watched.shows("list", "--where", "body.n=2")
    assert row["message_id"] == "2"
    shown = watched.does("show", str(row["id"]))
    assert "KeyError: 'number 2'" in shown.stdout
    assert '"n": 2' in shown.stdout
    # It may lose no message, and is told so before it is asked.
    refused = watched.does("drop", str(row["id"]))
    assert (refused.returncode, refused.stdout) == (78, "")
    assert f"{STATE}/store.sqlite3: may not be read by this user; use sudo" in refused.stderr
    # A replay in stages stops at the first failure, and goes on once the handler is mended.
    stopped = watched.does("replay", "--all", "--ramp", "30,100")
    assert stopped.returncode == 1, stopped.stderr
    assert "1 of 1 in stage 1 of 2 failed" in stopped.stdout
    (watched.instance.configuration.parent / "mended").touch()
    resumed = watched.does("replay", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "2 of 2 succeeded" in resumed.stdout
    assert watched.does("replay", "--first", "1").returncode == 0
    assert watched.instance.store() == []
    assert sorted(note["body"]["n"] for note in watched.instance.notes("done")) == [1, 2, 3]
