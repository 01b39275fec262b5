# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Prometheus that scrapes what a test names, and answers queries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import pytest

from consumer_framework.testing.broker.place import reserve_port

from .instance import until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def program(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        lacking = f"{name} is not installed: packaging/system-packages prometheus"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    assert found is not None
    return found


def promtool(*arguments: str | Path, given: str | None = None) -> tuple[int, str]:
    """Run promtool; return its exit code and its output."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(
        command, check=False, input=given, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """One process of Prometheus, on a free port of the loopback device.

    Args:
        directory: Holds its configuration and its data.
        targets: ``HOST:PORT`` of each page of metrics.
        rules: Files of rules.
    """

    def __init__(self, directory: Path, targets: Iterable[str], rules: Iterable[Path] = ()) -> None:
        directory.mkdir()
        with reserve_port() as holder:
            self._address = f"127.0.0.1:{holder.getsockname()[1]}"
        static = [{"targets": list(targets)}]
        # YAML is a superset of JSON.
        (directory / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(path) for path in rules],
                    "scrape_configs": [{"job_name": "fm-consumer", "static_configs": static}],
                }
            )
        )
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log = (self._directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={self._directory}/prometheus.yml",
                f"--storage.tsdb.path={self._directory}/data",
                f"--web.listen-address={self._address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        until(self._is_ready, (self._directory / "log").read_text)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the series of an expression, each with its labels and its value now."""
        found = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules, each with its state and its fault."""
        found = self._get("/api/v1/rules")["data"]["groups"]
        return [rule for group in found for rule in group["rules"]]

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Prometheus has ended"
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=10) as answer:
            return json.load(answer)
