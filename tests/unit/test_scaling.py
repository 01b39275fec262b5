# SPDX-License-Identifier: GPL-2.0-or-later
"""The number of workers: the plan, and its steps carried out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fedora_messaging.message import Message
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.adapters.systemd.systemctl import (
    TARGET,
    SystemctlError,
    Unit,
    unit_name,
)
from consumer_framework.core.errors import ConfigurationError, StoreError
from consumer_framework.operate import scaling as host
from consumer_framework.operate.scaling import (
    ScaleAction,
    ScaleStep,
    ScalingError,
    StepRunner,
    Workers,
    plan,
)
from consumer_framework.publishing import Outbox
from consumer_framework.runtime import state_files
from consumer_framework.runtime.state_files import StoredCounts, count_unsent
from consumer_framework.settings.workers import (
    files_in,
    group_of,
    in_groups,
    number_of,
    worker_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RUNS = {"active": "active", "sub": "running", "file_state": "enabled"}
ENABLED = {"file_state": "enabled"}
FAILED = {"active": "failed", "sub": "failed"}


def units(**states: dict[str, str]) -> dict[str, Unit]:
    """Units by instance: {} for one that is neither enabled nor running."""
    return {unit_name(name): Unit(unit_name(name), **more) for name, more in states.items()}  # type: ignore[arg-type]


def words(steps: Sequence[ScaleStep]) -> list[str]:
    return [f"{step.action} {step.instance}" for step in steps]


NAME = {"a": None}
THREE = {"a": None, "a_2": "a", "a_3": "a"}


@pytest.mark.parametrize(
    ("files", "there", "count", "expected"),
    [
        (NAME, units(a=RUNS), 1, []),
        (NAME, {}, 1, ["enable a", "start a"]),
        (NAME, units(a=RUNS), 2, ["link a_2", "enable a_2", "start a_2"]),
        (THREE, units(a=RUNS, a_2=RUNS, a_3=RUNS), 3, []),
        (THREE, units(a=RUNS, a_2=RUNS | {"file_state": "disabled"}, a_3=RUNS), 3, ["enable a_2"]),
        (THREE, units(a=RUNS, a_2=RUNS | {"active": "failed"}, a_3=RUNS), 3, ["start a_2"]),
        (THREE, units(a=RUNS, a_2=RUNS | {"active": "activating"}, a_3=RUNS), 3, ["start a_2"]),
        (THREE, units(a=RUNS, a_2=RUNS | {"active": "reloading"}, a_3=RUNS), 3, []),
        (
            THREE,
            units(a=RUNS, a_2=RUNS, a_3=RUNS),
            1,
            [
                *("stop a_3", "check a_3", "disable a_3", "unlink a_3"),
                *("stop a_2", "check a_2", "disable a_2", "unlink a_2"),
            ],
        ),
        # An interrupted command, and work by hand, is completed.
        (THREE, units(a=RUNS, a_2=RUNS), 2, ["unlink a_3"]),
        (THREE, units(a=RUNS, a_2=RUNS, a_3=ENABLED), 2, ["disable a_3", "unlink a_3"]),
        (NAME, units(a=RUNS, a_2=RUNS), 1, ["stop a_2", "check a_2", "disable a_2"]),
        (NAME, units(a=RUNS, a_2=RUNS), 2, ["link a_2"]),
        ({**NAME, "a_7": "a"}, units(a=RUNS), 1, ["unlink a_7"]),
        (THREE, units(a=RUNS, a_2=RUNS, a_3=FAILED), 2, ["stop a_3", "check a_3", "unlink a_3"]),
        # Other people's files.
        ({**NAME, "a_2": None}, units(a=RUNS, a_2=RUNS), 1, []),
        ({**NAME, "a_2": "b"}, units(a=RUNS, a_2=RUNS), 1, []),
        ({**NAME, "a_02": "a", "a_1": "a", "a-2": "a", "a_2x": "a"}, units(a=RUNS), 1, []),
        ({**NAME, "b": None, "b_2": "b"}, units(a=RUNS, b=RUNS, b_2=RUNS), 1, []),
        # NAME's own file may be a link to anywhere.
        ({"a": "common", "common": None}, units(a=RUNS), 1, []),
    ],
)  # fmt: skip
def test_the_plan_has_the_missing_steps_and_no_others(files, there, count, expected):
    assert words(plan(Workers("a", files, there), count)) == expected


def test_the_highest_number_goes_first_also_from_ten_on():
    files = {**NAME, **{f"a_{n}": "a" for n in range(2, 12)}}
    steps = plan(Workers("a", files, units(a=RUNS)), 8)
    assert words(steps)[-3:] == ["unlink a_11", "unlink a_10", "unlink a_9"]


@pytest.mark.parametrize(
    ("found", "count", "said"),
    [
        (Workers("a", {**NAME, "a_2": None}), 2, "a_2.toml is in the way, and stays as it is"),
        (Workers("a", {**NAME, "a_2": "gone"}), 3, "it is no link to a.toml"),
        (Workers("a_2", {**NAME, "a_2": "a"}), 3, "a_2 is a worker of a: scale that"),
        (Workers("a" * 27, {"a" * 27: None}), 2, "is too long for an instance"),
        (Workers("a", NAME, units(a={"load": "not-found"})), 1, "systemd knows no fm-consumer@"),
    ],
)
def test_an_obstacle_is_named_with_a_cure_and_nothing_is_planned(found, count, said):
    with pytest.raises(ScalingError, match=said):
        plan(found, count)


def test_every_file_that_is_in_the_way_is_named_at_once():
    with pytest.raises(ScalingError) as raised:
        plan(Workers("a", {"a": None, "a_2": None, "a_4": None}), 4)
    assert [line.partition(" ")[0] for line in str(raised.value).splitlines()] == [
        "a_2.toml",
        "a_4.toml",
    ]


def test_a_worker_with_deferred_messages_stays_unless_they_may_be_left():
    found = Workers("a", THREE, units(a=RUNS), {"a_3": StoredCounts(deferred=1200, last_due=0.0)})
    with pytest.raises(ScalingError, match=r"a_3 stays, for it has 1,200 deferred messages, due"):
        plan(found, 2)
    steps = plan(found, 2, leave_deferred=True)
    assert ScaleStep(ScaleAction.UNLINK, "a_3") in steps
    [warning] = [step.text for step in steps if step.action is ScaleAction.WARN]
    expected = "left in /var/lib/fedora-messaging/a_3: 1,200 deferred messages, to run when a_3 is"
    assert warning.startswith(expected)
    # It is no obstacle where the worker stays anyway.
    assert plan(replace(found, units=units(a=RUNS, a_2=RUNS, a_3=RUNS)), 3) == []


def test_a_worker_with_published_messages_stays_until_they_are_sent():
    found = Workers("a", THREE, units(a=RUNS), {"a_3": StoredCounts(unsent=2)})
    with pytest.raises(ScalingError, match=r"a_3 stays, for 2 messages that its handler published"):
        plan(found, 2)
    steps = plan(found, 2, leave_deferred=True)
    [warning] = [step.text for step in steps if step.action is ScaleAction.WARN]
    place = "/var/lib/fedora-messaging/a_3"
    assert warning == f"left in {place}: 2 published messages, to send when a_3 is back"


def test_quarantined_messages_stay_and_the_plan_names_their_place():
    found = Workers("a", THREE, units(a=RUNS, a_2=RUNS), {"a_3": StoredCounts(quarantined=1)})
    [warning] = [step.text for step in plan(found, 2) if step.action is ScaleAction.WARN]
    assert warning == (
        "left in /var/lib/fedora-messaging/a_3: 1 quarantined message; "
        "see 'fm-consumer quarantine list a_3'"
    )


def test_a_target_that_is_not_enabled_is_warned_of():
    there = units(a=RUNS) | {TARGET: Unit(TARGET)}
    [warning] = plan(Workers("a", NAME, there), 1)
    assert (warning.action, f"systemctl enable {TARGET}" in warning.text) == (
        ScaleAction.WARN,
        True,
    )
    there[TARGET] = Unit(TARGET, file_state="enabled")
    assert plan(Workers("a", NAME, there), 1) == []


# Carried out.


@dataclass
class FakeServices:
    """A service manager that obeys."""

    enabled: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    killed_when_stopped: bool = False
    refuses: str = ""

    def show(self, names: Sequence[str]) -> dict[str, Unit]:
        known = self.enabled | self.running | {*self.failed}
        asked = {Unit(name).instance for name in names if "*" not in name} - {""}
        patterns = tuple(name.partition("*")[0] for name in names if "*" in name)
        asked |= {one for one in known if patterns and unit_name(one).startswith(patterns)}
        return {unit_name(one): self._unit(one) for one in asked}

    def _unit(self, one: str) -> Unit:
        active = "active" if one in self.running else "inactive"
        return Unit(
            unit_name(one),
            active="failed" if one in self.failed else active,
            file_state="enabled" if one in self.enabled else "disabled",
            result=self.failed.get(one, "success"),
        )

    def enable(self, instance: str) -> None:
        self._may("enable", instance)
        self.enabled.add(instance)

    def disable(self, instance: str) -> None:
        self._may("disable", instance)
        self.enabled.discard(instance)

    def start(self, instance: str) -> None:
        self._may("start", instance)
        self.failed.pop(instance, None)
        self.running.add(instance)

    def stop(self, instance: str) -> None:
        self._may("stop", instance)
        if instance in self.running and self.killed_when_stopped:
            self.failed[instance] = "timeout"
        self.running.discard(instance)

    def reset_failed(self, instance: str) -> None:
        self.failed.pop(instance)

    def _may(self, verb: str, instance: str) -> None:
        if self.refuses == f"{verb} {instance}":
            raise SystemctlError(f"systemctl {verb} {instance}: no")


@pytest.fixture
def directory(tmp_path) -> Path:
    (tmp_path / "a.toml").touch()
    return Path(tmp_path)


@pytest.fixture(autouse=True)
def stored(monkeypatch) -> dict[str, StoredCounts]:
    """The messages in the stores of workers, by instance."""
    found: dict[str, StoredCounts] = {}
    monkeypatch.setattr(host, "count_stored", lambda place: found.get(place.name, StoredCounts()))
    return found


def executor(directory: Path, services: FakeServices) -> StepRunner:
    return StepRunner("a", directory, services, lambda _: None, lambda _: None)


class Killed(Exception):  # noqa: N818 -- no error
    pass


def interrupt(directory: Path, services: FakeServices, count: int, after: int) -> None:
    """Scale, and be killed before the step after so many."""
    told: list[ScaleStep] = []

    def tell(step: ScaleStep) -> None:
        if len(told) == after:
            raise Killed
        told.append(step)

    steps = plan(host.find_workers(directory, services, "a", count, strict=True), count)
    with contextlib.suppress(Killed):
        StepRunner("a", directory, services, tell, lambda _: None).run(steps)


def scale(
    directory: Path,
    services: FakeServices,
    count: int,
    warn: Callable[[str], None] = lambda _: None,
    name: str = "a",
) -> list[ScaleStep]:
    """Plan, carry out, and return the steps that were told."""
    told: list[ScaleStep] = []
    found = host.find_workers(directory, services, name, count, strict=True)
    StepRunner(name, directory, services, told.append, warn).run(plan(found, count))
    return told


def test_a_plan_is_reported_step_by_step_and_then_no_step_is_left(directory):
    services = FakeServices()
    assert words(scale(directory, services, 2)) == [
        *("enable a", "start a", "link a_2", "enable a_2", "start a_2"),
    ]
    assert str((directory / "a_2.toml").readlink()) == "a.toml"
    assert scale(directory, services, 2) == []
    scale(directory, services, 1)
    assert (services.running, services.enabled) == ({"a"}, {"a"})
    assert [path.name for path in directory.iterdir()] == ["a.toml"]


def test_a_step_that_fails_ends_it_and_the_next_time_goes_on_there(directory):
    services = FakeServices(refuses="start a_2")
    with pytest.raises(SystemctlError):
        scale(directory, services, 3)
    assert services.running == {"a"}
    services.refuses = ""
    told = words(scale(directory, services, 3))
    assert told == ["start a_2", "link a_3", "enable a_3", "start a_3"]
    services.refuses = "disable a_3"
    with pytest.raises(SystemctlError):
        scale(directory, services, 2)
    assert (directory / "a_3.toml").is_symlink(), "it is not forgotten"
    services.refuses = ""
    assert words(scale(directory, services, 2)) == ["disable a_3", "unlink a_3"]


def test_messages_deferred_while_a_worker_stops_have_it_started_again(directory, stored):
    services = FakeServices()
    scale(directory, services, 2)
    steps = plan(host.find_workers(directory, services, "a", 1, strict=True), 1)
    stored["a_2"] = StoredCounts(deferred=1, last_due=0.0)
    with pytest.raises(ScalingError, match=r"a_2 stays, for it has 1 deferred message, .* again$"):
        executor(directory, services).run(steps)
    assert services.running == {"a", "a_2"}
    assert (directory / "a_2.toml").is_symlink()


def test_messages_that_a_worker_could_not_send_have_it_started_again(
    directory, stored, monkeypatch, tmp_path
):
    monkeypatch.setattr(state_files, "SYSTEM_STATE", tmp_path)
    services = FakeServices()
    scale(directory, services, 2)
    steps = plan(host.find_workers(directory, services, "a", 1, strict=True), 1)
    (tmp_path / "a_2").mkdir()
    outbox = Outbox(f"sqlite:///{tmp_path}/a_2/outbox.sqlite3")
    outbox.publish(Message(topic="a"))
    outbox.close()
    with pytest.raises(ScalingError, match=r"a_2 stays, for 1 message that .* again$"):
        executor(directory, services).run(steps)
    assert services.running == {"a", "a_2"}


def test_an_outbox_that_cannot_be_read_keeps_its_worker(tmp_path):
    assert count_unsent(tmp_path) == 0
    file = tmp_path / "outbox.sqlite3"
    file.write_bytes(b"")
    assert count_unsent(tmp_path) == 0, "an outbox without tables"
    file.write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        count_unsent(tmp_path)


def test_a_worker_that_had_to_be_killed_is_reported_and_leaves_no_failed_unit(directory):
    services = FakeServices(killed_when_stopped=True)
    warnings: list[str] = []
    scale(directory, services, 2)
    scale(directory, services, 1, warnings.append)
    assert "a_2 did not finish within the TimeoutStopSec=" in warnings[0]
    assert services.failed == {}


def test_a_worker_that_had_failed_before_is_removed_without_a_message(directory):
    services = FakeServices()
    warnings: list[str] = []
    scale(directory, services, 2)
    services.running.discard("a_2")
    services.failed["a_2"] = "exit-code"
    scale(directory, services, 1, warnings.append)
    assert (services.failed, warnings) == ({}, [])


def test_a_link_that_was_replaced_meanwhile_stays(directory):
    services = FakeServices(running={"a"}, enabled={"a"})
    (directory / "a_2.toml").symlink_to("a.toml")
    steps = plan(host.find_workers(directory, services, "a", 1, strict=True), 1)
    (directory / "a_2.toml").unlink()
    (directory / "a_2.toml").write_text("mine")
    with pytest.raises(ScalingError, match=r"no link to a\.toml any more"):
        executor(directory, services).run(steps)
    assert (directory / "a_2.toml").read_text() == "mine"


def test_a_link_that_cannot_be_made_or_removed_is_named(directory, monkeypatch):
    services = FakeServices(running={"a"}, enabled={"a"})
    steps = [ScaleStep(ScaleAction.LINK, "a")]
    scaler = executor(directory, services)
    with pytest.raises(ScalingError, match=r"a\.toml: cannot be made: file exists"):
        scaler.run(steps)
    (directory / "a_2.toml").symlink_to("a.toml")

    def refuse(_path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ScalingError, match="cannot be removed: operation not permitted; use sudo"):
        scaler.run([ScaleStep(ScaleAction.UNLINK, "a_2")])


def test_a_user_who_may_not_change_the_directory_is_told_before_the_first_step(
    directory, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    services = FakeServices()
    with pytest.raises(ScalingError, match="may not be changed by this user; use sudo"):
        scale(directory, services, 2)
    assert services == FakeServices()
    # Without a link nothing of it is needed.
    scale(directory, services, 1)
    assert services.running == {"a"}


NAMES = st.sampled_from(["a", "a_2", "a_3", "a_4", "a_10", "a_02", "a-2", "a_2_2", "b", "b_2"])
# A file of its own; a link to the file of its name, to another, to nothing, to elsewhere.
KINDS = st.sampled_from(["file", "a.toml", "./a.toml", "b.toml", "gone.toml", "/nowhere/a.toml"])


def write(directory: Path, files: dict[str, str]) -> None:
    (directory / "a.toml").write_text("own")
    for name, kind in files.items():
        path = directory / f"{name}.toml"
        if kind == "file":
            path.write_text(f"of {name}")
        elif name != "a":
            path.symlink_to(kind)


def photograph(directory: Path) -> dict[str, str]:
    paths = sorted(directory.iterdir())
    return {p.stem: str(p.readlink()) if p.is_symlink() else p.read_text() for p in paths}


@given(
    files=st.dictionaries(NAMES, KINDS),
    enabled=st.sets(NAMES),
    running=st.sets(NAMES),
    failed=st.sets(NAMES),
    count=st.integers(1, 6),
    interrupted_after=st.integers(0, 12),
)
def test_afterwards_the_workers_are_complete_and_foreign_files_are_untouched(
    files, enabled, running, failed, count, interrupted_after
):
    wanted = {worker_name("a", number) for number in range(1, count + 1)}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write(directory, {name: kind for name, kind in files.items() if name != "a"})
        before, found = photograph(directory), files_in(directory)
        others = {
            name
            for name in (*before, *enabled, *running, *failed)
            if not (
                name == "a" or (number_of("a", name) and (name not in found or found[name] == "a"))
            )
        }
        services = FakeServices({*enabled}, running - failed, dict.fromkeys(failed, "exit-code"))
        state = [{*services.enabled}, {*services.running}, {*services.failed}]
        try:
            interrupt(directory, services, count, interrupted_after)
            scale(directory, services, count)
        except ScalingError:
            assert others & wanted, "only what is not ours is in the way"
            assert photograph(directory) == before
            assert state == [services.enabled, services.running, {*services.failed}]
            return
        after = photograph(directory)
        ours = {name for name, link in files_in(directory).items() if link == "a"}
        assert {"a", *(name for name in ours if number_of("a", name))} == wanted
        assert wanted == services.running - others == services.enabled - others
        assert {*services.failed} <= others
        assert [state[0] & others, state[1] & others, state[2] & others] == [
            services.enabled & others,
            services.running & others,
            {*services.failed} & others,
        ]
        assert {n: t for n, t in after.items() if n in others} == {
            n: t for n, t in before.items() if n in others
        }
        assert after["a"] == "own"
        assert scale(directory, services, count) == [], "a second time there is nothing to do"


# Names and groups.


@pytest.mark.parametrize(
    ("instance", "number"),
    [("a", None), ("a_2", 2), ("a_10", 10), ("a_1", None), ("a_02", None), ("a_2_3", None),
     ("b_2", None), ("a_", None), ("a_x", None), ("a_٣", None)],
)  # fmt: skip
def test_a_worker_is_recognized_by_its_name(instance, number):
    assert number_of("a", instance) == number


def test_a_link_makes_a_worker_and_a_name_alone_does_only_without_a_file():
    files = {"a": None, "a_2": "a", "a_3": None, "b_2": None}
    assert [group_of(name, files) for name in ("a", "a_2", "a_3", "a_4", "b_2", "b_3")] == [
        *("a", "a", "a_3", "a", "b_2", "b_3"),
    ]
    assert in_groups(["a_10", "b", "a_9", "a"], {"a": None}) == {
        "a": ["a", "a_9", "a_10"],
        "b": ["b"],
    }


def test_files_of_other_programs_are_no_instances_and_a_missing_directory_has_none(tmp_path):
    for name in ("fedora.stg.toml", "a.toml", "a.toml.rpmnew", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "a_2.toml").symlink_to(tmp_path / "a.toml")
    (tmp_path / "a_3.toml").symlink_to("../a.toml")
    assert files_in(tmp_path) == {"a": None, "a_2": "a", "a_3": None}
    assert files_in(tmp_path / "none") == {}
    with pytest.raises(ConfigurationError, match="cannot be read: Not a directory; make it"):
        files_in(tmp_path / "a.toml")
