# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of a handler inside the unit's sandbox, and the effect of the example drop-ins.

The handler runs Python code from the message, and prints its variable ``answer``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from consumer_framework.testing.broker.tls import TlsBroker

from .container import Container
from .service import HEADERS, bodies, install_module, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .service import Service

DROP_INS = Path(__file__).parents[2] / "units/examples/fm-consumer@NAME.service.d"

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108

REFERENCE = Path(__file__).parents[2] / "docs/reference/units.md"

# Without these options IPAddressDeny= silently has no effect in a container.
BPF = (
    "--capability=CAP_BPF,CAP_NET_ADMIN,CAP_SYS_RESOURCE,CAP_PERFMON",
    "--system-call-filter=bpf",
)

PROBE = """
import json
from consumer_framework import Consumer

class Probe(Consumer):
    def handle(self, message):
        scope = {}
        try:
            exec(message.body["code"], scope)
        except Exception as error:
            scope["answer"] = f"{type(error).__name__}: {error}"
        print(f"said {json.dumps(scope['answer'])}", flush=True)
"""

# Every writable directory, and every writable regular file outside of these directories and of the
# process's own entries in /proc.
WALK = """
import os, stat
answer = []
def made(directory):
    name = f"{directory}/fm-probe"
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(name)
    except OSError:
        return False
    return True
def opened(name):
    try:
        if not stat.S_ISREG(os.lstat(name).st_mode):
            return False
        os.close(os.open(name, os.O_WRONLY | os.O_NOFOLLOW))
    except OSError:
        return False
    return True
for top, directories, files in os.walk("/"):
    if top == "/proc":
        directories[:] = [d for d in directories if not d.isdigit()]
    if made(top):
        answer.append(top)
        directories.clear()
    else:
        answer += [name for file in files if opened(name := f"{top}/{file}")]
"""


@pytest.fixture(scope="module")
def container(acceptance_root: Path, acceptance_venv: Path) -> Iterator[Container]:
    with Container(acceptance_root, read_only=[acceptance_venv], nspawn_options=BPF) as booted:
        booted.link_product(acceptance_venv)
        yield booted


@pytest.fixture(scope="module")
def host(host: Container) -> Container:
    install_module(host, "probe", PROBE)
    return host


class Probed:
    """An instance that runs the code of its messages."""

    def __init__(self, service: Service, tell: Callable[[str], Any]) -> None:
        self.service = service
        self._tell = tell

    def __call__(self, code: str) -> Any:
        before = len(self.service.noted("said"))
        self._tell(code)
        self.service.until(lambda: len(self.service.noted("said")) > before, "it answers", 60)
        return json.loads(self.service.noted("said")[-1])

    def attempt(self, expression: str) -> Any:
        return self(f"import os, pathlib, socket\nanswer = {expression}")


@pytest.fixture
def probe(make, broker, queue) -> Callable[..., Probed]:
    def start(name: str, own_queue: str = "") -> Probed:
        source = own_queue or queue
        service = make(name, callback="probe_consumer:Probe", queue=source)
        service.systemctl("start")

        def tell(code: str) -> None:
            publish(broker, source, [("t", json.dumps({"code": code}).encode(), HEADERS)])

        return Probed(service, tell)

    return start


@pytest.fixture
def drop_in(host) -> Iterator[Callable[..., None]]:
    """Return a function that gives an instance a drop-in of the examples before its start."""
    directories = []

    def install(instance: str, name: str, old: str = "", new: str = "") -> None:
        text = (DROP_INS / name).read_text()
        assert old in text
        directories.append(f"/etc/systemd/system/fm-consumer@{instance}.service.d")
        host.write(f"{directories[-1]}/{name}", text.replace(old, new) if old else text)
        host.run("systemctl", "daemon-reload")

    yield install
    host.run("rm", "-rf", *directories)
    host.run("systemctl", "daemon-reload")


def exposure(host: Container, unit: str) -> float:
    scored = host.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
    [overall] = [line for line in scored.splitlines() if "Overall exposure" in line]
    return float(overall.split(":")[1].split()[0])


def test_a_consumer_that_works_is_exposed_no_more_than_promised(probe, host):
    working = probe("exposed")
    assert working("answer = 6 * 7") == 42
    assert exposure(host, working.service.unit) <= 1.1


@pytest.fixture(scope="module")
def tls_broker(broker, tmp_path_factory) -> Iterator[TlsBroker]:
    """Start a node that demands client certificates; the fixture `broker` checks the programs."""
    with TlsBroker(tmp_path_factory.mktemp("tls")) as running:
        yield running


TLS = """
[tls]
ca_cert = "credential:ca"
certfile = "credential:cert"
keyfile = "credential:key"
"""


def test_the_sandbox_lets_tls_work(make, host, tls_broker, queue):
    pair = tls_broker.add_certificate_user("consumer.example.org")
    files = {"ca": tls_broker.authority.certificate, "cert": pair.certificate, "key": pair.key}
    loaded = [f"LoadCredential={name}:/etc/tls/{name}.pem\n" for name in files]
    host.write(
        "/etc/systemd/system/fm-consumer@encrypted.service.d/tls.conf",
        "".join(["[Service]\n", *loaded]),
    )
    for name, file in files.items():
        host.write(f"/etc/tls/{name}.pem", file.read_text(), mode=0o600)
    host.run("systemctl", "daemon-reload")
    service = make("encrypted")
    service.configure(tls_broker.tls_url, queue, extra=TLS)
    service.systemctl("start")
    ids = publish(tls_broker, queue, bodies(3))
    service.until(lambda: service.noted("handled") == ids, "it handles")
    connections = tls_broker.ctl("list_connections", "user", "ssl").splitlines()
    assert "consumer.example.org\ttrue" in connections
    assert exposure(host, service.unit) <= 1.1


def test_a_handler_can_write_to_its_own_directories_and_nowhere_else(probe):
    writable = set(probe("walker")(WALK))
    own = {"/var/lib/private/fedora-messaging/walker", "/run/fedora-messaging/walker"}
    assert own <= writable
    # systemd names the threshold of memory pressure this way (systemd.resource-control(5)).
    pressure = {name for name in writable if name.endswith("@walker.service/memory.pressure")}
    # These are private too: empty at the start, and deleted at the end.
    assert writable - own - pressure <= {*TEMPORARY, "/dev/mqueue"}


def test_temporary_files_of_a_handler_are_neither_seen_nor_kept(probe, host):
    instance = probe("litter")
    for place in TEMPORARY:
        assert instance.attempt(f"pathlib.Path('{place}/litter').write_text('x')") == 1
    assert host.run("find", *TEMPORARY, "-maxdepth", "1", "-name", "litter").stdout == ""
    instance.service.systemctl("restart")
    left = f"[place for place in {TEMPORARY} if os.path.exists(place + '/litter')]"
    assert instance.attempt(left) == []


def test_processes_of_one_handler_can_share_memory(probe):
    code = "import multiprocessing\nwith multiprocessing.Lock(): answer = 1"
    assert probe("sharing")(code) == 1


def test_two_instances_are_two_users_and_cannot_reach_each_other(probe, queue, host, broker):
    one, two = probe("one"), probe("two", f"{queue}-two")
    users = {probed.attempt("os.getuid()") for probed in (one, two)}
    assert len(users) == 2
    assert all(61184 <= user <= 65519 for user in users), "of systemd's range for such users"
    assert "FileNotFoundError" in one.attempt("os.listdir('/var/lib/fedora-messaging/two')")
    assert "PermissionError" in one.attempt("os.listdir('/run/fedora-messaging/two')")
    control = "/run/fedora-messaging/two/control"
    connect = f"socket.socket(socket.AF_UNIX).connect('{control}')"
    assert "PermissionError" in one.attempt(connect)
    pid = two.service.show("MainPID")
    assert "PermissionError" in one.attempt(f"os.kill({pid}, 0)")
    assert one.attempt(f"os.path.exists('/proc/{pid}')") is False


@pytest.mark.parametrize("name", sorted(path.name for path in DROP_INS.iterdir()))
def test_a_drop_in_is_exposed_no_more_than_its_documentation_says(host, drop_in, name):
    [documented] = re.findall(
        rf"fm-consumer@NAME\.service\.d/{name}` \|.*\| ([0-9.]+) \|$",
        REFERENCE.read_text(),
        re.MULTILINE,
    )
    drop_in("documented", name)
    assert exposure(host, "fm-consumer@documented") <= float(documented)


def test_a_static_user_takes_the_state_over(probe, host, drop_in):
    instance = probe("static")
    assert instance.attempt("pathlib.Path(os.environ['STATE_DIRECTORY'], 'x').write_text('1')")
    instance.service.systemctl("stop")
    host.run("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "consumer")
    drop_in("static", "static-user.conf")
    instance.service.systemctl("start")
    user = int(host.run("id", "-u", "consumer").stdout)
    assert instance.attempt("os.getuid()") == user
    state = "pathlib.Path(os.environ['STATE_DIRECTORY'], 'x')"
    assert instance.attempt(f"[{state}.read_text(), {state}.write_text('2')]") == ["1", 1]
    assert set(instance(WALK)) >= {"/var/lib/fedora-messaging/static"}
    assert "/etc" not in instance(WALK)


def test_a_keytab_of_roots_is_read(probe, host, drop_in):
    keytab = "/etc/fedora-messaging/kerberos.keytab"
    host.write(keytab, "a key", mode=0o600)
    drop_in("kerberos", "keytab.conf")
    instance = probe("kerberos")
    assert "PermissionError" in instance.attempt(f"open('{keytab}').read()")
    name = "os.environ['KRB5_CLIENT_KTNAME'].removeprefix('FILE:')"
    assert instance.attempt(f"open({name}).read()") == "a key"
    assert "Error" in instance.attempt(f"open({name}, 'w').write('another')")
    tickets = "os.environ['KRB5CCNAME'].removeprefix('FILE:')"
    assert instance.attempt(f"open({tickets}, 'w').write('ticket')") == len("ticket")
    assert instance.attempt(f"{tickets}.startswith(os.environ['RUNTIME_DIRECTORY'])")


# Answers with the user at the other end, by which PostgreSQL knows the client (`peer`).
SERVER = """#!/usr/bin/python3
import os, socket, struct
os.makedirs("/run/postgresql", exist_ok=True)
server = socket.socket(socket.AF_UNIX)
server.bind("/run/postgresql/.s.PGSQL.5432")
os.chmod("/run/postgresql/.s.PGSQL.5432", 0o777)
server.listen()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    client, _ = server.accept()
    peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    client.sendall(str(struct.unpack("3i", peer)[1]).encode())
    client.close()
"""


def test_postgresql_is_reached_over_its_socket_as_the_user_of_the_instance(probe, host, drop_in):
    host.write("/usr/local/bin/postgresql", SERVER, mode=0o755)
    unit = "[Service]\nType=notify\nExecStart=/usr/local/bin/postgresql\n"
    host.write("/etc/systemd/system/postgresql.service", unit)
    drop_in("database", "postgresql.conf")
    instance = probe("database")
    assert host.run("systemctl", "is-active", "postgresql").stdout == "active\n"
    said = instance(
        "import os, socket\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "client.connect(os.environ['PGHOST'] + '/.s.PGSQL.5432')\n"
        "answer = [int(client.recv(100)), os.getuid(), os.environ['PGUSER']]\n"
    )
    assert said[0] == said[1] != 0
    assert said[2] == instance.service.show("User") == "fm-database"


RUN = """
import os, subprocess
home = subprocess.run("touch $HOME/here && ls $HOME/here", shell=True, capture_output=True)
memory = subprocess.run("grep -c MemTotal /proc/meminfo", shell=True, capture_output=True)
def may(what):
    try:
        what()
    except PermissionError:
        return False
    return True
answer = [home.returncode == 0, memory.stdout == b"1\\n",
          may(lambda: os.setpriority(os.PRIO_PROCESS, 0, 1)),
          may(lambda: os.chown(os.environ["STATE_DIRECTORY"], os.getuid(), os.getgid()))]
"""


def test_other_programs_get_what_they_need(probe, host, drop_in):
    plain = probe("plain")
    assert plain(RUN) == [False, False, False, False]
    plain.service.systemctl("stop")
    drop_in("forking", "subprocess.conf")
    instance = probe("forking")
    assert instance(RUN) == [True, True, True, True]
    assert instance.service.show("TasksMax") == "512"


def test_more_memory_is_allowed(probe, drop_in):
    drop_in("large", "memory.conf")
    service = probe("large").service
    assert service.show("MemoryHigh") == str(2 << 30)
    assert service.show("MemoryMax") == str(3 << 30)


CALL = """
import socket
answer = []
for address in ("127.0.0.1", "127.0.0.2"):
    with socket.create_server((address, 0)) as server:
        try:
            socket.create_connection(server.getsockname(), 1).close()
        except OSError:
            continue
        answer.append(address)
"""


def test_other_addresses_than_those_named_are_out_of_reach(probe, host, drop_in):
    instance = probe("open")
    assert instance(CALL) == ["127.0.0.1", "127.0.0.2"]
    instance.service.systemctl("stop")
    named = "IPAddressAllow=localhost 192.0.2.0/24 2001:db8::/32"
    drop_in("closed", "addresses.conf", named, "IPAddressAllow=127.0.0.1")
    instance = probe("closed")
    assert instance(CALL) == ["127.0.0.1"]
