# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer web`` serves the page, lets one browser in, and ends by itself."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pytest

from .instance import FM_CONSUMER, until

if TYPE_CHECKING:
    from pathlib import Path

# Seconds that a step may take.
PATIENCE = 60
RUN = "/fm-consumers/run"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class Server:
    """A running ``fm-consumer web``, and a browser that may have its cookie."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(FM_CONSUMER), "web", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout
        printed = json.loads(self._process.stdout.readline() or "null")
        assert printed, self._process.communicate(timeout=PATIENCE)[1]
        self.socket = printed["socket"]
        self.address = urlsplit(printed["address"])
        self.host = self.address.netloc
        self.cookie = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        self._process.communicate(timeout=PATIENCE)
        return self._process.returncode

    def ended(self) -> int:
        self._process.communicate(timeout=PATIENCE)
        return self._process.returncode

    def connection(self) -> http.client.HTTPConnection:
        if self.socket:
            return UnixConnection(self.socket)
        return http.client.HTTPConnection(self.host, timeout=PATIENCE)

    def ask(
        self, method: str, path: str, body: str | bytes | None = None, **headers: str | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        sent = {"Host": self.host, "Cookie": self.cookie}
        if method == "POST":
            sent |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(self.connection()) as connection:
            given = {name: value for name, value in sent.items() if value is not None}
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer, answer.read()

    def enter(self) -> Self:
        answer, _ = self.ask("GET", f"{self.address.path}?{self.address.query}")
        assert answer.status == 303
        assert answer.getheader("Location") == "/fm-consumers/"
        self.cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        return self

    def run(self, call: str, **values: Any) -> list[dict[str, Any]]:
        more = {"input": values.pop("input")} if "input" in values else {}
        asked = json.dumps({"call": call, "values": values, **more})
        answer, body = self.ask("POST", RUN, asked)
        assert answer.status == 200, body
        assert answer.getheader("Content-Type") == "application/x-ndjson"
        return [json.loads(line) for line in body.splitlines()]


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running.enter()


def problem(body: bytes) -> tuple[int, str]:
    told = json.loads(body)
    return told["status"], told["detail"]


def test_the_page_and_all_its_parts_are_served(server):
    answer, body = server.ask("GET", "/fm-consumers/")
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    parts = [part.split('"')[0] for part in body.decode().split('="')[1:]]
    files = [part for part in parts if part.endswith((".js", ".css"))]
    assert {"main.js", "page.css", "../base1/cockpit.js"} <= set(files)
    for file in files:
        answer, _ = server.ask("GET", f"/fm-consumers/{file}".replace("/fm-consumers/..", ""))
        assert answer.status == 200, file
    assert server.ask("GET", "/")[0].getheader("Location") == "/fm-consumers/"


def test_nothing_inline_and_no_other_host_is_allowed_to_the_page(server):
    answer, body = server.ask("GET", "/fm-consumers/")
    policy = answer.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy
    assert b"<style" not in body
    assert answer.getheader("Referrer-Policy") == "no-referrer"
    assert answer.getheader("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/fm-consumers/README.md",
        "/fm-consumers/vendor.py",
        "/fm-consumers/../../pyproject.toml",
        "/fm-consumers/%2e%2e/rpm/rpmlint.toml",
        "/etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_other_file_is_served(server, path):
    answer, body = server.ask("GET", path)
    assert answer.status == 404
    assert problem(body)[0] == 404


def test_a_call_runs_its_command_and_passes_the_output_and_exit_code_on(server):
    lines = server.run("status")
    assert "groups" in json.loads("".join(line.get("out", "") for line in lines))
    assert lines[-1]["exit"] in {0, 3}


def test_an_error_of_the_command_reaches_the_page(server):
    *said, last = server.run("causes", instance="nobody")
    assert last == {"exit": 78}
    assert "nobody.toml" in "".join(line["err"] for line in said)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "'call' and 'values'"),
        ('{"call": 1, "values": {}}', "'call' and 'values'"),
        ('{"call": "reboot", "values": {}}', "no call 'reboot'"),
        ('{"call": "causes", "values": {"instance": "--help"}}', "no such value"),
        ('{"call": "replay-edited", "values": {"instance": "a", "row": "1"}}', "needs an input"),
    ],
)
def test_a_request_that_is_no_call_is_refused(server, body, wrong):
    answer, told = server.ask("POST", RUN, body)
    assert answer.status == 400
    assert wrong in problem(told)[1]


def test_a_form_of_another_site_cannot_run_a_call(server):
    body = '{"call": "status", "values": {}}'
    assert server.ask("POST", RUN, body, Origin="http://evil.example")[0].status == 403
    assert server.ask("POST", RUN, body, Origin=None)[0].status == 403
    assert server.ask("POST", RUN, body, Host="evil.example")[0].status == 403
    assert server.ask("POST", RUN, body, Content_Type="text/plain")[0].status == 400


def test_the_address_works_once(server):
    again = f"{server.address.path}?{server.address.query}"
    answer, body = server.ask("GET", again, Cookie=None)
    assert answer.status == 401
    assert "works once" in problem(body)[1]
    assert server.ask("GET", again)[0].status == 303, "the browser that is in may open it again"


def test_a_browser_without_the_cookie_gets_nothing(server):
    for path in ("/", "/fm-consumers/", "/base1/cockpit.js"):
        assert server.ask("GET", path, Cookie=None)[0].status == 401
    answer, body = server.ask("GET", "/", Cookie=None, Accept="text/html,*/*")
    assert answer.getheader("Content-Type") == "text/plain; charset=utf-8"
    assert b"Open the address" in body
    assert server.ask("POST", RUN, '{"call": "status", "values": {}}', Cookie=None)[0].status == 401


def test_a_cookie_of_another_server_may_have_any_bytes(server):
    cookie = f"name=\xff; {server.cookie}"
    assert server.ask("GET", "/fm-consumers/", Cookie=cookie)[0].status == 200


def test_other_methods_are_refused(server):
    assert server.ask("PUT", "/", Origin=f"http://{server.host}")[0].status == 405
    assert server.ask("POST", "/", "{}")[0].status == 405


def test_a_body_that_is_too_long_is_refused(server):
    answer, body = server.ask("POST", RUN, b"x" * ((16 << 20) + 1))
    assert answer.status == 413
    assert "16 MiB" in problem(body)[1]


# A program in the place of systemctl, which the page runs by its name.
PROGRAM = """#!/bin/sh
trap 'echo "interrupted" >>"$NOTES"; exit 130' INT
echo "begun $*" >>"$NOTES"
[ "$2" = fm-consumer@short.service ] && { echo 'ein süßes' >&2; exit 5; }
echo long
while :; do sleep 0.1; done
"""


@pytest.fixture
def program(tmp_path) -> dict[str, str]:
    """Return the environment with a systemctl of our own."""
    file = tmp_path / "systemctl"
    file.write_text(PROGRAM)
    file.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes")}


def notes(program: dict[str, str]) -> list[str]:
    with open(program["NOTES"]) as file:  # noqa: PTH123 -- the name is a string
        return file.read().splitlines()


def begin(server: Server, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Begin a command that does not end by itself, and wait for its first output."""
    headers = {"Cookie": server.cookie, "Origin": f"http://{server.host}"}
    headers |= {"Content-Type": "application/json", "Host": server.host}
    body = json.dumps({"call": "restart", "values": {"instance": "long"}})
    connection.request("POST", RUN, body, headers)
    answer = connection.getresponse()
    assert json.loads(answer.readline()) == {"out": "long\n"}
    return answer


def test_a_command_gets_its_own_exit_code_and_standard_error(program):
    with Server(environment=program) as server:
        lines = server.enter().run("restart", instance="short")
    assert lines == [{"err": "ein süßes\n"}, {"exit": 5}]
    assert notes(program) == ["begun restart fm-consumer@short.service"]


def test_a_browser_that_goes_away_interrupts_its_command(program):
    with Server(environment=program) as server:
        with closing(server.enter().connection()) as connection:
            begin(server, connection).close()
        until(lambda: "interrupted" in notes(program), "the command is interrupted")


def test_the_end_of_the_server_interrupts_the_commands_and_waits_for_them(program):
    with (
        Server(environment=program) as server,
        closing(server.enter().connection()) as connection,
    ):
        begin(server, connection)
        assert server.end(signal.SIGINT) == 0
    assert notes(program)[-1] == "interrupted"


def test_a_program_that_is_missing_is_told_to_the_page(tmp_path):
    with Server(environment={"PATH": str(tmp_path)}) as server:
        *said, last = server.enter().run("restart", instance="builds")
    assert last == {"exit": 127}
    assert said == [{"err": "systemctl: No such file or directory"}]


def test_it_ends_when_nobody_uses_the_page():
    with Server("--idle", "1s") as server:
        assert server.ended() == 0


def test_it_does_not_end_while_a_command_runs(program):
    with Server("--idle", "1s", environment=program) as server:
        with closing(server.enter().connection()) as connection:
            begin(server, connection)
            # Longer than --idle: two looks at the clock.
            with pytest.raises(subprocess.TimeoutExpired):
                server._process.wait(3)
        assert server.ended() == 0


def test_it_listens_on_a_socket_that_only_its_user_may_open(short_tmp_path: Path):
    path = short_tmp_path / "page.socket"
    with Server("--socket", str(path)) as server:
        assert server.address.netloc == "localhost:PORT"
        server.host = "localhost:8080"
        assert path.stat().st_mode & 0o777 == 0o600
        assert server.enter().run("status")[-1]["exit"] in {0, 3}
        second = refused("--socket", str(path))
        assert "another server listens there" in second
    # A killed server leaves its socket behind.
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        path.unlink(missing_ok=True)
        dead.bind(str(path))
    with Server("--socket", str(path)) as server:
        assert server.socket == str(path)


def refused(*options: str) -> str:
    done = subprocess.run(
        [str(FM_CONSUMER), "web", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_place_where_it_cannot_listen_is_named_with_a_cure(tmp_path, short_tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --port" in refused("--port", str(taken.getsockname()[1]))
    file = short_tmp_path / "file"
    file.write_text("precious")
    assert "this is no socket" in refused("--socket", str(file))
    assert file.read_text() == "precious"
    assert "choose another --socket" in refused("--socket", str(short_tmp_path / "no" / "x"))
    assert "unix(7)" in refused("--socket", str(tmp_path / ("x" * 120)))
    assert "either --port or --socket" in refused("--socket", str(file), "--port", "8080")
    assert "idle" in refused("--idle", "soon")
    assert "--idle must be longer than 0s" in refused("--idle", "0s")
