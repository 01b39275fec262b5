# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tests on every supported systemd and its Python: `make acceptance-matrix`.

For each suite of Debian the acceptance tests run on its systemd. If its Python is newer than the
oldest supported one, the unit and integration tests run on that Python, in a container of the suite
and with its RabbitMQ.

    python -m tests.acceptance.matrix [SUITE]...
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.container import (
    CACHE,
    Container,
    RootUnavailable,
    build_root,
    product_venv,
    why_not,
)

REPO = Path(__file__).parents[2]
# bookworm has systemd 252, trixie 257, and sid the newest.
SUITES = ("bookworm", "trixie", "sid")
# Its Python is that of `make test`.
OLDEST = "bookworm"
BROKER = ("rabbitmq-server",)
# As in `make test`.
IN_PARALLEL = ("-n", os.environ.get("TEST_WORKERS", "3"), "--dist", "loadfile")
# Seconds. The tests need some 15 minutes on an idle machine.
LONGEST = 3600


@dataclass(frozen=True)
class Verdict:
    what: str
    passed: bool | None
    said: str

    def __str__(self) -> str:
        word = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"{word:<8} {self.what}: {self.said}"


def main(suites: list[str]) -> int:
    if reason := why_not():
        print(f"the matrix cannot run here: {reason}")
        return 1
    verdicts = [verdict for suite in suites or SUITES for verdict in of_suite(suite)]
    print("\n".join(["", *map(str, verdicts)]))
    return int(any(verdict.passed is False for verdict in verdicts))


def of_suite(suite: str) -> list[Verdict]:
    try:
        root = build_root(suite)
    except RootUnavailable as unavailable:
        return [Verdict(suite, None, str(unavailable))]
    with Container(root) as container:
        systemd = container.run("systemctl", "--version").stdout.split()[1]
        python = container.run("python3", "--version").stdout.split()[1]
    verdicts = [acceptance(suite, f"{suite}, systemd {systemd}")]
    if suite != OLDEST:
        verdicts.append(on_its_python(suite, f"{suite}, Python {python}"))
    return verdicts


def acceptance(suite: str, what: str) -> Verdict:
    """Run the acceptance tests on the systemd of *suite*."""
    print(f"== {what}: acceptance tests", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *IN_PARALLEL, "tests/acceptance"],
        cwd=REPO,
        env={**os.environ, "ACCEPTANCE_SUITE": suite, "CI": "true"},
        check=False,
    )
    return Verdict(f"{what}, acceptance tests", done.returncode == 0, f"exit {done.returncode}")


def on_its_python(suite: str, what: str) -> Verdict:
    """Run the unit and integration tests on the Python of *suite*."""
    print(f"== {what}: unit and integration tests", flush=True)
    name = f"{what}, unit and integration tests"
    try:
        root = build_root(suite, BROKER)
        venv = product_venv(REPO, suite=suite, extra="test")
    except (RootUnavailable, subprocess.CalledProcessError) as error:
        return Verdict(name, None, f"cannot be had here: {error}")
    sources = CACHE / "run" / f"sources-{suite}-{os.getpid()}"
    copy_repository(sources)
    try:
        return Verdict(name, *run_tests(root, venv, sources))
    finally:
        shutil.rmtree(sources)


def copy_repository(target: Path) -> None:
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=REPO, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target / name)


def run_tests(root: Path, venv: Path, sources: Path) -> tuple[bool, str]:
    log = sources / "pytest.log"
    script = (
        'cd "$1" && export TMPDIR=/t && '
        'exec "$2/bin/pytest" -q $3 tests/unit tests/integration >pytest.log 2>&1'
    )
    # The container's own directories are in memory, and `fm-consumer check` would warn of that. The
    # names of Unix sockets must be short.
    (sources / ".tmp").mkdir()
    (sources / ".tmp").chmod(0o1777)
    on_disk = f"--bind={sources}/.tmp:/t"
    with Container(
        root, read_only=[venv], writable=[sources], nspawn_options=[on_disk]
    ) as container:
        # The tests start their own nodes.
        container.run("systemctl", "disable", "--now", "rabbitmq-server", check=False)
        began = time.monotonic()
        words = ("sh", "-c", script, "sh", str(sources), str(venv), " ".join(IN_PARALLEL))
        done = container.run(*words, check=False, timeout=LONGEST)
    lines = log.read_text().splitlines()
    kept = CACHE / f"{sources.name.rpartition('-')[0]}.log"
    shutil.copy(log, kept)
    print("\n".join(lines if done.returncode else lines[-1:]))
    seconds = time.monotonic() - began
    return done.returncode == 0, f"{lines[-1].strip('= ')}, {seconds:.0f} s, log in {kept}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
