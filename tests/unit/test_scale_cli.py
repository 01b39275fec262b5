# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer scale`, with a program in the place of systemctl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from consumer_framework.adapters.systemd.credentials import UnitCredentials
from consumer_framework.adapters.systemd.systemctl import Systemctl, SystemctlError
from consumer_framework.runtime.assembly import access
from consumer_framework.settings.workers import number_on_host

from .machine import TOML, make_host

if TYPE_CHECKING:
    import os

    from .machine import Host


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    return make_host(short_tmp_path, monkeypatch)


def test_scaling_up_links_enables_and_starts_and_down_undoes_it(host):
    host.configures()
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "enable   fm-consumer@sample",
        "start    fm-consumer@sample",
        f"link     {host.etc}/sample_2.toml -> sample.toml",
        "enable   fm-consumer@sample_2",
        "start    fm-consumer@sample_2",
        "sample: 2 workers",
    ]
    assert "fm-consumers.target is not enabled" in result.stderr
    assert host.links() == ["sample_2"]
    assert host.calls()[-2:] == ["enable fm-consumer@sample_2", "start fm-consumer@sample_2"]
    result = host.does("scale", "sample", "1")
    assert "stop     fm-consumer@sample_2, which finishes" in result.stdout
    assert result.stdout.endswith("sample: 1 worker\n")
    assert host.links() == []
    assert host.calls()[-2:] == ["stop fm-consumer@sample_2", "disable fm-consumer@sample_2"]


def test_a_dry_run_prints_the_steps_and_does_nothing(host):
    host.configures()
    host.has_unit("sample")
    result = host.does("scale", "sample", "2", "--dry-run")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["link", "enable", "start"]
    assert (host.links(), host.calls()) == ([], [])
    host.has_unit("fm", UnitFileState="enabled")
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.has_unit("sample_2")
    units = json.loads((host.directory / "bin/units.json").read_text())
    units["fm-consumers.target"] = {"UnitFileState": "enabled"}
    (host.directory / "bin/units.json").write_text(json.dumps(units))
    assert host.does("scale", "sample", "2", "--dry-run").output == "nothing to do\n"


def test_workers_may_share_a_file_with_a_monitoring_port_for_each_has_its_own(host):
    host.configures(text=f"{TOML}\n[monitoring]\nport = 8000\n")
    assert host.does("scale", "sample", "3").exit_code == 0
    numbers = [number_on_host(name, host.etc) for name in ("sample", "sample_2", "sample_3")]
    assert numbers == [1, 2, 3]


def test_a_worker_with_deferred_messages_stays_and_nothing_is_changed(host):
    host.configures()
    host.does("scale", "sample", "2")
    host.keeps("sample_2", deferred=2, quarantined=1)
    before = host.calls()
    refused = host.does("scale", "sample", "1")
    assert refused.exit_code == 1
    assert "sample_2 stays, for it has 2 deferred messages, due until 20" in refused.stderr
    assert (host.links(), host.calls()) == (["sample_2"], before)
    gone = host.does("scale", "sample", "1", "--leave-deferred")
    assert gone.exit_code == 0
    assert "1 quarantined message; see 'fm-consumer quarantine list sample_2'" in gone.stderr
    assert "2 deferred messages, to run when sample_2 is back" in gone.stderr
    assert host.links() == []


def test_a_worker_whose_store_cannot_be_read_stays(host):
    host.configures()
    host.does("scale", "sample", "2")
    state = host.directory / "lib/sample_2"
    state.mkdir()
    (state / "store.sqlite3").write_text("no database at all, but long enough to look like one")
    refused = host.does("scale", "sample", "1")
    assert refused.exit_code == 1
    assert "sample_2 stays, for nobody can tell what it keeps:" in refused.stderr
    assert host.does("scale", "sample", "1", "--leave-deferred").exit_code == 0


def test_a_state_directory_that_this_user_may_not_read_is_an_error_with_a_cure(host, monkeypatch):
    stat = Path.stat

    def refuse(file: Path, **more: Any) -> os.stat_result:
        if file.name == "store.sqlite3":
            raise PermissionError(13, "Permission denied")
        return stat(file, **more)

    host.configures()
    host.does("scale", "sample", "2")
    monkeypatch.setattr(Path, "stat", refuse)
    result = host.does("scale", "sample", "1")
    assert result.exit_code == 1
    assert "store.sqlite3: cannot be read: permission denied; use sudo" in result.stderr
    assert host.links() == ["sample_2"]


def test_only_an_instance_that_has_a_file_is_scaled(host):
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 78
    assert "there is no instance 'sample': no file" in result.stderr
    assert "write that file first" in result.stderr
    assert host.does("scale", "a.b", "2").exit_code == 78
    assert host.does("scale", "sample", "0").exit_code == 2


def test_without_systemctl_nothing_is_done_and_the_reason_is_shown(host, monkeypatch):
    host.configures()
    monkeypatch.setenv("PATH", "/nonexistent")
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 1
    assert "there is no systemctl in $PATH: no systemd runs here" in result.stderr
    assert host.links() == []


def test_a_systemctl_that_cannot_be_run_is_an_error(host):
    (host.directory / "bin/systemctl").chmod(0o644)
    with pytest.raises(SystemctlError, match="systemctl cannot be run: Permission denied"):
        Systemctl().show(["x.service"])


def test_a_failed_worker_that_goes_leaves_no_failed_unit(host):
    host.configures()
    host.does("scale", "sample", "2")
    host.has_unit("sample_2", "failed")
    # The program keeps a stopped unit failed, as systemd does.
    program = host.directory / "bin/systemctl"
    program.write_text(program.read_text().replace('"stop": ("ActiveState", "inactive")', ""))
    assert host.does("scale", "sample", "1").exit_code == 0
    assert "reset-failed fm-consumer@sample_2" in host.calls()


def test_the_output_of_systemctl_is_passed_on(host):
    host.configures()
    (host.directory / "bin/broken").write_text("Failed to connect to bus:\nHost is down")
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 1
    assert "systemctl show: Failed to connect to bus: Host is down" in result.stderr


def test_a_failed_start_shows_how_to_go_on(host, monkeypatch):
    def refuse(_self: Systemctl, instance: str) -> None:
        raise SystemctlError(f"systemctl start {instance}: timeout.")

    host.configures()
    monkeypatch.setattr(Systemctl, "start", refuse)
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 1
    assert "timeout. When that is mended, 'fm-consumer scale sample 2' goes on" in result.stderr


def test_ctrl_c_shows_how_to_go_on(host, monkeypatch):
    def interrupt(_self: Systemctl, _instance: str) -> None:
        raise KeyboardInterrupt

    host.configures()
    monkeypatch.setattr(Systemctl, "start", interrupt)
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 130
    assert "interrupted; 'fm-consumer scale sample 2' goes on where it was" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TOML.replace("exclusive = false", "exclusive = true"),
            'queues."sample".exclusive: the queue belongs to one connection',
        ),
        (
            TOML.replace("queues.sample", 'queues.""').replace('queue = "sample"', 'queue = ""'),
            'queues."": the broker names a queue for each worker',
        ),
        (
            'amqp_url = "amqp://localhost"\ncallback = "sample:Sample"\n',
            'queues."": the broker names a queue for each worker',
        ),
        (TOML.replace("durable", "durrable"), "durrable"),
    ],
    ids=["exclusive", "server-named", "no queue", "broken"],
)
def test_settings_that_workers_cannot_share_refuse_more_workers_but_not_fewer(host, text, said):
    file = host.configures(text=text)
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 78
    assert f"{file}: {said}" in result.stderr or said in result.stderr
    assert (host.links(), host.calls()) == ([], [])
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.has_unit("sample")
    assert host.does("scale", "sample", "1").exit_code == 0
    assert host.links() == []


def test_a_worker_that_would_lack_a_credential_is_not_made(host, monkeypatch):
    host.configures()
    file = host.etc / "sample.toml"
    file.write_text(f'topic_prefix = "credential:prefix"\n{file.read_text()}')
    (host.directory / "credstore").mkdir()
    (host.directory / "credstore/fm-consumer.sample.prefix").write_text("x")
    stores = (host.directory / "credstore",)
    monkeypatch.setattr(UnitCredentials.__init__, "__defaults__", (stores,))
    monkeypatch.setattr(access, "CONFIGURATION_DIRECTORY", host.etc)
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 78
    assert f'{file}, for sample_2: topic_prefix: the credential "prefix" is given' in result.stderr
    assert host.links() == []
    assert host.calls() == []
    (host.directory / "credstore/fm-consumer.sample_2.prefix").symlink_to(
        "fm-consumer.sample.prefix"
    )
    assert host.does("scale", "sample", "2").exit_code == 0


def test_workers_of_a_queue_with_a_single_active_consumer_stand_by(host):
    host.configures(text=TOML.replace("{}", "{x-single-active-consumer = true}"))
    result = host.does("scale", "sample", "2")
    assert result.exit_code == 0
    assert "x-single-active-consumer: one worker at a time gets its messages" in result.stderr


def test_a_consumer_that_keeps_files_is_scaled_with_a_warning(host):
    host.configures()
    files = host.directory / "lib/sample/files"
    files.mkdir(parents=True)
    assert "keeps files" not in host.does("scale", "sample", "2", "--dry-run").stderr
    (files / "cache.db").touch()
    result = host.does("scale", "sample", "2", "--dry-run")
    assert result.exit_code == 0
    assert f"the consumer keeps files in {files}; each worker has a directory of its own" in (
        result.stderr
    )


def test_the_steps_are_printed_as_json_for_programs(host):
    host.configures()
    host.has_unit("sample")
    planned = json.loads(host.does("scale", "sample", "2", "--dry-run", "--json").stdout)
    done = json.loads(host.does("scale", "sample", "2", "--json").stdout)
    assert (done["name"], done["workers"]) == ("sample", 2)
    steps = [(step["action"], step["instance"]) for step in done["steps"]]
    assert [step for step in steps if step[0] != "warn"] == [
        ("link", "sample_2"),
        ("enable", "sample_2"),
        ("start", "sample_2"),
    ]
    assert [(step["action"], step["instance"]) for step in planned["steps"]] == steps
