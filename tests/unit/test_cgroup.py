# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of the control group, and slots that do or do not fit into them."""

from pathlib import Path

import pytest

from consumer_framework.adapters.systemd.cgroup import (
    most_memory,
    most_tasks,
    tasks_of_service,
)
from consumer_framework.runtime.assembly.plan import tasks_problem
from consumer_framework.settings import Framework


@pytest.fixture
def tree(tmp_path):
    def make(own, **files):
        for name, text in files.items():
            file = tmp_path / "fs" / name.replace("__", "/").replace("_max", ".max")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "own").write_text(own)
        return tmp_path / "fs", tmp_path / "own"

    return make


def test_the_lowest_limit_of_a_group_and_those_above_it_counts(tree):
    places = tree("0::/a/b\n", a__b__pids_max="max\n", a__pids_max="64\n", pids_max="100\n")
    assert most_tasks(*places) == 64
    assert most_memory(*places) is None


def test_a_group_of_version_1_has_its_own_files(tmp_path):
    (tmp_path / "own").write_text("5:cpu:/x\n4:pids:/x\n3:memory:/\n")
    for name, text in {
        "pids/x/pids.max": "7",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert most_tasks(tmp_path, tmp_path / "own") == 7
    assert most_memory(tmp_path, tmp_path / "own") is None


def test_there_is_no_limit_where_no_file_can_be_read(tmp_path):
    assert most_tasks(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("said", "most"), [("TasksMax=256", 256), ("TasksMax=infinity", None), ("", None)]
)
def test_the_limit_of_a_service_is_asked_of_systemd(tmp_path, monkeypatch, said, most):
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$5" = fm-consumer@a.service ] && echo "{said}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tasks_of_service("fm-consumer@a.service") == most


def test_a_system_without_systemd_has_no_limit_for_services(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert tasks_of_service("fm-consumer@a.service") is None


def test_the_unit_has_room_for_the_most_slots_there_may_be():
    unit = Path(__file__).parents[2] / "units/fm-consumer@.service"
    (line,) = [each for each in unit.read_text().splitlines() if each.startswith("TasksMax=")]
    assert tasks_problem(Framework(slots=64), int(line.removeprefix("TasksMax=")) // 2) is None


def test_slots_that_need_more_threads_than_allowed_are_reported_with_the_cure():
    assert tasks_problem(Framework(slots=64), None) is None
    assert tasks_problem(Framework(), 18) is None
    problem = tasks_problem(Framework(slots=60), 64)
    assert problem is not None
    assert problem.path == "consumer_config.framework.slots"
    assert "60 slots need 77 threads, and 64 tasks are allowed" in str(problem)
    assert "set TasksMax=308" in str(problem)
