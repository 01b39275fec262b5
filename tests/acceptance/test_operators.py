# SPDX-License-Identifier: GPL-2.0-or-later
"""The rights of root, of operators and of others on the control socket, and the trace of orders."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .service import HEADERS, Service, publish

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).parents[2] / "units"

# Calls the control socket without our client: SOCKET METHOD TARGET BODY.
CALL = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.settimeout(20)
connection.sock.connect(sys.argv[1])
connection.request(sys.argv[2], sys.argv[3], sys.argv[4] or None)
response = connection.getresponse()
print(response.status, response.read().decode())
"""


class Watched:
    """An instance, and users who call it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.host = service.container
        self.runtime = f"/run/fedora-messaging/{service.name}"

    def as_user(self, user: str, *command: str) -> Any:
        # As a login does it: with the groups of the user.
        return self.host.run("runuser", "-u", user, "--", *command, check=False)

    def call(self, user: str, method: str, target: str, body: str = "") -> tuple[int, str]:
        socket = f"{self.runtime}/operators/control"
        done = self.as_user(user, "python3", "-c", CALL, socket, method, target, body)
        assert done.returncode == 0, done.stderr
        status, _, text = done.stdout.partition(" ")
        return int(status), text

    def orders(self) -> list[dict[str, Any]]:
        self.host.run("journalctl", "--sync")
        command = ("journalctl", "-u", self.service.unit, "-o", "json", "-q", "FM_OPERATOR_UID=0")
        zero = self.host.run(*command).stdout
        others = self.host.run(*command[:-1], "FM_OPERATOR_UID=65534").stdout
        return [json.loads(line) for line in (zero + others).splitlines()]


@pytest.fixture(scope="module")
def users(host) -> None:
    host.run("groupadd", "--system", "fm-operators")
    host.run("useradd", "--create-home", "--groups", "fm-operators", "hazel")
    host.run("useradd", "--create-home", "stranger")


@pytest.fixture
def watched(users, host, broker, queue) -> Iterator[Watched]:
    service = Service(host, f"watched-{uuid.uuid4().hex[:8]}")
    service.configure(broker.url, queue)
    service.systemctl("start")
    yield Watched(service)
    service.systemctl("stop")


def test_root_operators_and_strangers_have_the_rights_that_are_theirs(watched, broker, queue):
    (message_id,) = publish(broker, queue, [("t", b'{"poison": true}', HEADERS)])
    watched.service.until(
        lambda: "1 quarantined" in watched.service.show("StatusText"), "it is quarantined"
    )
    listing = watched.host.run("ls", "-ld", f"{watched.runtime}/operators").stdout
    assert listing.startswith("drwx--s---")
    assert " fm-operators " in listing
    # An operator looks, pauses, resumes, reloads and replays.
    status, page = watched.call("hazel", "GET", "/v1/quarantine")
    assert status == 200
    (row,) = json.loads(page)["rows"]
    assert row["message_id"] == message_id
    number = json.dumps({"rows": [row["id"]]})
    assert watched.call("hazel", "POST", "/v1/pause", '{"reason": "a move"}')[0] == 200
    assert watched.call("hazel", "POST", "/v1/resume")[0] == 200
    assert '"result": "unchanged"' in watched.call("hazel", "POST", "/v1/reload")[1]
    assert '"result": "failed"' in watched.call("hazel", "POST", "/v1/quarantine/replay", number)[1]
    # Neither loses messages nor changes them, nor the code that runs.
    for target, body in [
        ("/v1/quarantine/drop", number),
        ("/v1/quarantine/edit", json.dumps({"row": row["id"], "body": {}})),
        ("/v1/log-level", '{"level": "DEBUG"}'),
        ("/v1/reload", json.dumps({"file": {"path": "/etc/x.toml", "text": ""}})),
    ]:
        status, problem = watched.call("hazel", "POST", target, body)
        assert (status, json.loads(problem)["title"]) == (403, "Forbidden")
        assert "use sudo" in json.loads(problem)["detail"]
    # Root does, on either socket.
    assert watched.call("root", "POST", "/v1/quarantine/edit", json.dumps(
        {"row": row["id"], "body": {"poison": True}})
    )[0] == 200  # fmt: skip
    # A stranger reaches neither.
    for socket in ("control", "operators/control"):
        path = f"{watched.runtime}/{socket}"
        done = watched.as_user("stranger", "python3", "-c", CALL, path, "GET", "/v1", "")
        assert "PermissionError" in done.stderr


def test_the_command_works_for_an_operator_and_the_journal_names_them(watched):
    name = watched.service.name
    looked = watched.as_user("hazel", "fm-consumer", "status", name)
    assert looked.returncode == 0, looked.stderr
    assert "consuming 1 queue" in looked.stdout
    paused = watched.as_user("hazel", "fm-consumer", "pause", name, "--reason", "a move")
    assert paused.returncode == 0, paused.stderr
    assert "paused: ordered by hazel (a move)" in paused.stdout
    assert "a move" in watched.service.show("StatusText")
    assert watched.host.run("fm-consumer", "resume", name).returncode == 0
    refused = watched.as_user("hazel", "fm-consumer", "log-level", name, "DEBUG")
    assert refused.returncode == 1
    assert "use sudo, or ask an administrator" in refused.stderr
    stranger = watched.as_user("stranger", "fm-consumer", "pause", name)
    assert (stranger.returncode, stranger.stdout) == (1, "")
    assert "cannot be asked: permission denied; use sudo" in stranger.stderr
    told = {entry["MESSAGE"]: entry for entry in watched.orders()}
    (pause,) = [entry for text, entry in told.items() if text.endswith("orders POST /v1/pause")]
    # The sandbox shows only root and its own user by their numbers.
    assert (pause["FM_OPERATOR_LOGIN"], pause["FM_OPERATOR_UID"]) == ("hazel", "65534")
    assert int(pause["FM_OPERATOR_PID"]) > 1
    (resume,) = [entry for text, entry in told.items() if text.endswith("orders POST /v1/resume")]
    assert (resume["FM_OPERATOR_LOGIN"], resume["FM_OPERATOR_UID"]) == ("root", "0")
    (refusal,) = [entry for text, entry in told.items() if "is refused" in text]
    assert refusal["PRIORITY"] == "4"


def test_an_instance_runs_on_a_host_without_the_group(users, host, broker, queue):
    host.run("groupmod", "--new-name", "others", "fm-operators")
    try:
        service = Service(host, "ungrouped")
        service.configure(broker.url, queue)
        service.systemctl("start")
        assert service.show("ActiveState") == "active"
        assert host.run("ls", "/run/fedora-messaging/ungrouped").stdout == "control\n"
        assert "install" not in service.journal()
        assert host.run("fm-consumer", "status", "ungrouped").returncode == 0
        service.systemctl("stop")
    finally:
        host.run("groupmod", "--new-name", "fm-operators", "others")


def test_the_relay_of_an_outbox_has_the_same_rights(users, host):
    unit = "fm-outbox@.service"
    host.write(f"/etc/systemd/system/{unit}", (UNITS / unit).read_text())
    host.write(
        "/etc/fedora-messaging/relayed.toml",
        'amqp_url = "amqp://127.0.0.1:1"\n[consumer_config.framework.outbox]\n'
        'database = "sqlite:////var/lib/relayed/outbox.sqlite3"\n',
    )
    host.run("mkdir", "-p", "-m", "1777", "/var/lib/relayed")
    host.write(
        "/etc/systemd/system/fm-outbox@relayed.service.d/place.conf",
        "[Service]\nReadWritePaths=/var/lib/relayed\nProtectSystem=full\n",
    )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "--no-block", "fm-outbox@relayed")
    relay = Watched(Service(host, "relayed"))
    relay.service.unit = "fm-outbox@relayed"
    relay.runtime = "/run/fm-outbox/relayed"
    relay.service.until(
        lambda: (
            host.run("test", "-S", f"{relay.runtime}/operators/control", check=False).returncode
            == 0
        ),
        "the relay listens",
    )
    assert relay.call("hazel", "GET", "/v1/outbox")[0] == 200
    assert relay.call("hazel", "POST", "/v1/log-level", '{"level": "DEBUG"}')[0] == 403
    host.run("systemctl", "stop", "fm-outbox@relayed")
