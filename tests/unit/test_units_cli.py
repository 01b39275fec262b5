# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer units`, on a system whose root directory is a temporary one."""

from __future__ import annotations

import grp
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from consumer_framework.adapters.systemd import systemctl, unit_files
from consumer_framework.adapters.systemd.unit_files import marked, with_command
from consumer_framework.cli import main
from consumer_framework.cli import units as cli_units
from consumer_framework.operate import units

from .machine import make_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "/opt/fm-consumer/bin/fm-consumer"
TEMPLATE = "fm-consumer@.service"
DROP_IN = "fm-consumer@.service.d/10-consumer-framework.conf"
# The unit that Fedora's fedora-messaging owns, in short.
FEDORAS = "[Service]\nExecStart=/usr/bin/fedora-messaging consume\n"
ALL = sorted(
    [TEMPLATE, "fm-consumers.target", "fm-outbox@.service"]
    + [f"fm-consumer-{name}.{k}" for name in ("metrics", "retention") for k in ("service", "timer")]
)


@dataclass
class System:
    root: Path

    @property
    def place(self) -> Path:
        return self.root / "etc/systemd/system"

    def does(self, verb: str, *options: str) -> Result:
        words = ["units", verb, "--root", str(self.root), *options]
        return CliRunner().invoke(main, words, catch_exceptions=False)

    def there(self) -> list[str]:
        files = (path for path in self.place.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.place)) for path in files)

    def package(self) -> Path:
        file = self.root / "usr/lib/systemd/system" / TEMPLATE
        file.parent.mkdir(parents=True)
        file.write_text(FEDORAS)
        return file

    def edit(self, name: str = TEMPLATE) -> Path:
        file = self.place / name
        file.write_text(file.read_text() + "# by hand\n")
        return file


@pytest.fixture
def elsewhere(monkeypatch):
    """This fm-consumer is where a service may run it, which a checkout is not."""
    monkeypatch.setattr(units, "own_command", lambda: Path(COMMAND))
    monkeypatch.setattr(units, "needed_by", lambda _: [Path("/usr/bin/env")])


@pytest.fixture
def system(tmp_path, elsewhere) -> System:
    return System(tmp_path)


def test_installing_writes_the_units_and_they_run_this_very_command(system):
    result = system.does("install")
    assert result.exit_code == 0, result.output
    assert system.there() == ALL
    assert f"write   {system.place}/{TEMPLATE}" in result.stdout
    text = (system.place / TEMPLATE).read_text()
    assert f"\nExecStart=\nExecStart={COMMAND} run %i\n" in text
    shipped = (ROOT / "units" / TEMPLATE).read_text()
    assert text == marked(with_command(shipped, COMMAND))
    retention = (system.place / "fm-consumer-retention.service").read_text()
    assert f"ExecStart={COMMAND} quarantine expire\n" in retention
    assert {path.stat().st_mode & 0o777 for path in system.place.iterdir()} == {0o644}


def test_installing_twice_changes_nothing(system):
    system.does("install")
    assert system.does("diff").stdout == ""
    again = system.does("install")
    assert again.exit_code == 0
    assert {line.split()[0] for line in again.stdout.splitlines()[:-1]} == {"keep"}
    assert again.stdout.endswith("nothing to do\n")


def test_an_edited_unit_is_shown_by_diff_and_stays_unless_forced(system):
    system.does("install")
    file = system.edit()
    shown = system.does("diff")
    assert shown.exit_code == 1
    assert shown.stdout.splitlines()[:2] == [f"--- {file}", "+++ fm-consumer units show"]
    assert "-# by hand" in shown.stdout
    (system.place / "fm-consumers.target").unlink()
    refused = system.does("install")
    assert refused.exit_code == 1
    assert f"{file}: was edited ('fm-consumer units diff' shows where)" in refused.stderr
    assert "# by hand" in file.read_text()
    assert "fm-consumers.target" not in system.there(), "all or nothing"
    assert system.does("install", "--force").exit_code == 0
    assert system.does("diff").exit_code == 0


def test_a_foreign_file_is_never_replaced_unless_forced(system):
    system.place.mkdir(parents=True)
    (system.place / TEMPLATE).write_text(FEDORAS)
    refused = system.does("install")
    assert refused.exit_code == 1
    assert "was not written by this command; move it away, or give --force" in refused.stderr
    assert system.there() == [TEMPLATE]
    assert system.does("install", "--force").exit_code == 0
    assert system.does("diff").exit_code == 0


def test_a_masked_unit_is_a_foreign_file(system):
    system.place.mkdir(parents=True)
    (system.place / TEMPLATE).symlink_to("/dev/null")
    refused = system.does("install")
    assert refused.exit_code == 1
    assert "-a link to /dev/null" in system.does("diff").stdout
    assert (system.place / TEMPLATE).is_symlink()


@pytest.mark.parametrize("text", [marked("[Unit]\n"), (ROOT / "units" / TEMPLATE).read_text()])
def test_an_older_text_and_one_copied_by_hand_are_replaced(system, text):
    system.place.mkdir(parents=True)
    (system.place / TEMPLATE).write_text(text)
    assert system.does("install").exit_code == 0
    assert f"ExecStart={COMMAND} run" in (system.place / TEMPLATE).read_text()


def test_where_a_package_owns_the_unit_a_drop_in_is_written(system):
    package = system.package()
    assert system.does("install").exit_code == 0
    assert system.there() == sorted([DROP_IN, *(name for name in ALL if name != TEMPLATE)])
    assert package.read_text() == FEDORAS
    assert f"ExecStart=\nExecStart={COMMAND} run %i\n" in (system.place / DROP_IN).read_text()
    assert system.does("diff").exit_code == 0


def test_the_drop_in_and_the_unit_give_way_to_each_other(system):
    system.does("install")
    package = system.package()
    moved = system.does("install")
    assert f"remove  {system.place}/{TEMPLATE}" in moved.stdout
    assert DROP_IN in system.there()
    assert TEMPLATE not in system.there()
    package.unlink()
    system.does("install")
    assert system.there() == ALL
    assert not (system.place / DROP_IN).parent.exists()


def test_uninstalling_removes_the_installed_files_and_no_others(system):
    system.does("install")
    own = system.place / "fm-consumer@sample.service.d/own.conf"
    own.parent.mkdir()
    own.write_text("[Service]\n")
    (system.place / "fm-consumers.target").write_text("[Unit]\n")
    result = system.does("uninstall")
    assert result.exit_code == 0, result.output
    assert f"keep    {system.place}/fm-consumers.target" in result.stdout
    assert system.there() == ["fm-consumer@sample.service.d/own.conf", "fm-consumers.target"]
    assert system.does("uninstall", "--force").stdout.endswith("nothing to do\n")
    assert len(system.there()) == 2


def test_uninstalling_keeps_edited_files_unless_forced(system):
    system.does("install")
    file = system.edit()
    refused = system.does("uninstall")
    assert refused.exit_code == 1
    assert f"{file}: was edited; save the change elsewhere" in refused.stderr
    assert system.there() == ALL
    assert system.does("uninstall", "--force").exit_code == 0
    assert system.there() == []


def test_a_dry_run_prints_the_steps_and_does_nothing(system):
    result = system.does("install", "--dry-run")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(ALL)
    assert system.there() == []
    system.does("install")
    assert "remove" in system.does("uninstall", "--dry-run").stdout
    assert system.there() == ALL


def test_json_tells_programs(system):
    assert {one["found"] for one in json.loads(system.does("diff", "--json").stdout)} == {"nothing"}
    told = json.loads(system.does("install", "--json").stdout)
    assert {"path": str(system.place / TEMPLATE), "action": "write"} in told["files"]
    assert (told["dry_run"], told["systemd_told"]) == (False, False)
    shown = {one["name"]: one["text"] for one in json.loads(system.does("show", "--json").stdout)}
    assert marked(shown[str(system.place / TEMPLATE)]) == (system.place / TEMPLATE).read_text()


def test_show_prints_the_files_to_install_and_any_file_by_its_name(system):
    assert f"# {system.place}/{TEMPLATE}\n# One message consumer" in system.does("show").stdout
    names = system.does("show", "--names").stdout.splitlines()
    shipped = ROOT / "units"
    files = (path for path in shipped.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(shipped)) for path in files)
    drop_in = system.does("show", "memory.conf").stdout
    assert drop_in == (shipped / "examples/fm-consumer@NAME.service.d/memory.conf").read_text()
    unknown = system.does("show", "memory")
    assert unknown.exit_code == 2
    assert "there is no unit file 'memory'; there are: examples/" in unknown.stderr


def test_a_user_without_permission_is_told_to_use_sudo(system, monkeypatch):
    monkeypatch.setattr(unit_files, "may_change", lambda _: False)
    result = system.does("install")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"fm-consumer: {system.place}: may not be changed by this user")
    assert "use sudo" in result.stderr
    assert system.there() == []


def test_a_failed_write_is_reported_in_one_line(system):
    system.place.parent.mkdir(parents=True)
    system.place.write_text("a file where the directory should be")
    result = system.does("install")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "cannot be written" in result.stderr


def test_a_directory_in_the_place_of_a_file_is_reported_in_one_line(system):
    place = system.place / TEMPLATE
    place.mkdir(parents=True)
    result = system.does("install")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{place}: cannot be read: is a directory" in result.stderr
    with pytest.raises(unit_files.UnitFileError, match="cannot be written: is a directory"):
        unit_files.write(place, "text")
    assert list(system.place.iterdir()) == [place], "and leaves nothing"
    with pytest.raises(unit_files.UnitFileError, match="cannot be removed"):
        unit_files.remove(place)


def test_a_directory_that_is_not_absolute_is_refused(system):
    assert system.does("install", "--directory", "units").exit_code == 2


def test_a_command_that_the_sandbox_hides_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "own_command", lambda: Path("/home/me/venv/bin/fm-consumer"))
    system = System(tmp_path)
    result = system.does("install")
    assert result.exit_code == 1
    assert "/home/me/venv/bin/fm-consumer: ProtectHome= of the unit hides /home" in result.stderr
    assert "python3 -m venv /opt/fm-consumer" in result.stderr
    assert system.there() == []


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("/root/v/bin/x", "ProtectHome="),
        ("/var/tmp/v/bin/x", "PrivateTmp="),  # noqa: S108 -- no file
        ("/opt/tmp/x", ""),
        ("/rootless/x", ""),
    ],
)
def test_the_setting_that_hides_a_path_is_named(path, setting):
    said = list(units.hidden([Path(path), Path(path)]))
    directory = path.removesuffix("/v/bin/x")
    expected = f"{path}: {setting} of the unit hides {directory} from services"
    assert said == ([expected] if setting else [])


def test_a_directory_that_others_may_not_enter_is_warned_of(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    file = closed / "fm-consumer"
    closed.mkdir()
    file.write_text("")
    file.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    closed.chmod(0o700)
    [said] = [line for line in units.unreadable([file]) if str(closed) in line]
    assert said.startswith(f"{file}: ")
    monkeypatch.setattr(units, "needed_by", lambda _: [file])
    monkeypatch.setattr(units, "hidden", lambda _: [])
    warned = System(tmp_path).does("install", "--dry-run")
    assert warned.exit_code == 0
    assert "is not readable by everyone" in warned.stderr
    assert "is not readable by everyone; chmod o+rX" in said


def test_this_command_is_the_one_of_this_environment():
    command = units.own_command()
    assert command == Path(sys.executable).with_name("fm-consumer")
    assert units.needed_by(command)[0] == command


def test_systemd_reads_the_units_where_it_runs(tmp_path, monkeypatch, elsewhere):
    host = make_host(tmp_path / "host", monkeypatch)
    calls = tmp_path / "host/bin/reloads"
    (tmp_path / "host/bin/systemctl").write_text(f"#!/bin/sh\necho $3 >>{calls}\n")
    monkeypatch.setattr(cli_units, "RUNS", tmp_path)
    place = str(tmp_path / "units")
    result = host.does("units", "install", "--directory", place)
    assert "systemd has read its units again" in result.stdout
    assert calls.read_text() == "daemon-reload\n"
    host.does("units", "install", "--directory", place)
    assert calls.read_text() == "daemon-reload\n", "nothing has changed"
    (tmp_path / "host/bin/systemctl").write_text(
        "#!/bin/sh\n[ $3 = show ] && exit 0; echo no >&2; exit 1\n"
    )
    failed = host.does("units", "uninstall", "--directory", place)
    assert (failed.exit_code, failed.stderr) == (1, "fm-consumer: systemctl daemon-reload: no\n")
    monkeypatch.setattr(cli_units, "RUNS", tmp_path / "nothing")
    result = host.does("units", "install", "--directory", place)
    assert "run: systemctl daemon-reload" in result.stdout


def test_uninstalling_is_refused_while_instances_run(tmp_path, monkeypatch, elsewhere):
    host = make_host(tmp_path / "host", monkeypatch)
    monkeypatch.setattr(cli_units, "RUNS", tmp_path)
    place = tmp_path / "units"
    host.does("units", "install", "--directory", str(place))
    host.has_unit("sample")
    host.has_unit("waits", "activating")
    host.has_unit("ended", "inactive")
    refused = host.does("units", "uninstall", "--directory", str(place))
    assert refused.exit_code == 1
    assert "systemctl disable --now fm-consumer@sample fm-consumer@waits" in refused.stderr
    assert (place / TEMPLATE).exists()
    forced = host.does("units", "uninstall", "--directory", str(place), "--force")
    assert forced.exit_code == 0
    assert not (place / TEMPLATE).exists()


def test_daemon_reload_without_systemd_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(systemctl.SystemctlError, match="no systemctl"):
        systemctl.Systemctl().daemon_reload()


@pytest.mark.skipif(
    not importlib.util.find_spec("hatchling"), reason="the extra `dev` is not installed"
)
def test_a_wheel_has_the_units_in_it(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = "from consumer_framework.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", program, "units", "show", "--json", TEMPLATE, "memory.conf"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    unit, drop_in = json.loads(shown.stdout)
    original = (ROOT / "units" / TEMPLATE).read_text()
    command = str(Path(sys.executable).with_name("fm-consumer"))
    assert unit["text"] == with_command(original, command)
    assert drop_in["text"].endswith("MemoryMax=3G\n")
    names: Any = zipfile.ZipFile(wheel).namelist()
    assert f"consumer_framework/units/{TEMPLATE}" in names


def test_only_whole_paths_of_the_command_are_replaced():
    text = "ExecStart=/usr/bin/fm-consumer run\nX=/usr/bin/fm-consumer-x /a/usr/bin/fm-consumer\n"
    assert with_command(text, "/c") == text.replace("=/usr/bin/fm-consumer run", "=/c run")


def test_the_reference_lists_every_unit_file():
    page = (ROOT / "docs/reference/units.md").read_text()
    listed = re.findall(r"^\| `((?:examples/)?fm-(?:consumer|outbox)[^`]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(unit_files.shipped())


# The place for the socket of operators, which root makes in a directory of the instance's user.


@pytest.fixture(
    params=[("fm-consumer@.service", "fedora-messaging"), ("fm-outbox@.service", "fm-outbox")]
)
def makes_place(request, tmp_path) -> Callable[[], int]:
    """Run the command of a unit below *tmp_path*, with the group of this user."""
    unit, directory = request.param
    (tmp_path / directory / "sample").mkdir(parents=True)
    text = (ROOT / "units" / unit).read_text()
    (script,) = re.findall(r"^ExecStartPre=-\+/bin/sh -c '(.+)'$", text, re.MULTILINE)
    script = script.replace("$$", "$").replace("%%", "%").replace("%i", "sample")
    script = script.replace("/run/", f"{tmp_path}/")
    script = re.sub("fm-operators", grp.getgrgid(os.getgid()).gr_name, script)
    command = ["/bin/sh", "-c", script]
    return lambda: subprocess.run(command, check=False, timeout=60, capture_output=True).returncode


def test_the_unit_makes_a_place_for_the_socket_of_operators(makes_place, tmp_path):
    assert makes_place() == 0
    (place,) = tmp_path.glob("*/sample/operators")
    assert stat.filemode(place.lstat().st_mode) == "drwx--s---"
    assert list(tmp_path.glob("*/.*")) == []


def test_root_follows_no_link_that_the_user_of_an_instance_has_put_there(makes_place, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (runtime,) = tmp_path.glob("*/sample")
    (runtime / "operators").symlink_to(victim)
    assert makes_place() != 0
    assert stat.filemode(victim.stat().st_mode) == "drwxr-xr-x"
    assert list(victim.iterdir()) == []
