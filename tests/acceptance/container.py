# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a real systemd as PID 1 in a throw-away container. Knows nothing of pytest.

debootstrap makes a Debian root once (`build_root`), and nothing writes to it in the cache again.
`Container` puts an overlay in memory over it and boots that with systemd-nspawn, so every container
starts pristine. `product_venv` installs the product with the root's own Python. All of this needs
root; `why_not` names everything else that this machine lacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Not under /home, /root or /tmp: ProtectHome= and PrivateTmp= hide those from the units under test.
CACHE = Path("/var/cache/consumer-framework-tests")

ROOT_PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-venv",
    "procps",
    "iproute2",
    "rpm",
)
PRODUCT_SOURCES = (
    "consumer_framework",
    "units",
    # The wheel has the page of the browser.
    "packaging/cockpit",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
UNUSED_VENV_SECONDS = 2 * 60 * 60
BOOT_SECONDS = 60.0
SHUTDOWN_SECONDS = 30.0

# The variables of a host's shell (PATH with shims, PYTHONPATH, LANG) must not reach the container.
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}
NETWORK_ENVIRONMENT = (
    "PIP_INDEX_URL",
    "PIP_DEFAULT_TIMEOUT",
    *(
        name
        for lower in ("http_proxy", "https_proxy", "no_proxy")
        for name in (lower, lower.upper())
    ),
)
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
)


class CommandFailed(subprocess.CalledProcessError):
    """A command failed; the text has its exit status and its output."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout}{self.stderr}"


class RootUnavailable(RuntimeError):  # noqa: N818 - a state of the machine, not a bug
    """debootstrap could not make the Debian root, usually because the mirror is out of reach."""


def why_not() -> str | None:
    """Return the reason why this machine cannot boot a container, or None if it can.

    The function does not guess from the environment. It tries the steps of `Container`: an overlay,
    then systemd-nspawn with this machine's own /usr. That takes about 0.2 seconds.
    """
    if sys.platform != "linux":
        return "systemd containers need Linux"
    if os.geteuid() != 0:
        return "booting a container needs root"
    return _missing_tools() or _mounting_fails() or _nspawn_fails()


def _missing_tools() -> str | None:
    packages_by_tool = {
        "systemd-nspawn": "systemd-container",
        "debootstrap": "debootstrap",
        "nsenter": "util-linux",
        "setpriv": "util-linux",
    }
    missing = [tool for tool in packages_by_tool if shutil.which(tool) is None]
    if not missing:
        return None
    packages = " ".join(sorted({packages_by_tool[tool] for tool in missing}))
    return f"{', '.join(missing)} not found: apt install {packages} (or: dnf install {packages})"


def _mounting_fails() -> str | None:
    script = (
        'mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir upper work merged && '
        "mount -t overlay -o lowerdir=/usr,upperdir=upper,workdir=work overlay merged"
    )
    with tempfile.TemporaryDirectory() as mount_point:
        probe = ("unshare", "--mount", "sh", "-c", script, "sh", mount_point)
        return _complaint_of("mounting an overlay", probe)


def _nspawn_fails() -> str | None:
    name = _machine_name()
    options = ("--quiet", "--directory=/", "--volatile=yes", "/usr/bin/true")
    try:
        return _complaint_of("systemd-nspawn", _nspawn_command(name, options))
    except OSError as error:
        return f"no cgroup for a container can be made: {error}"
    finally:
        _forget_machine(name)


def _complaint_of(action: str, command: tuple[str, ...]) -> str | None:
    try:
        _host(*command, timeout=20)
    except subprocess.TimeoutExpired:
        return f"{action} does not come to an end on this machine"
    except CommandFailed as failure:
        last_line = (failure.stderr.strip() or str(failure)).splitlines()[-1]
        return f"{action} fails on this machine: {last_line}"
    return None


def build_root(suite: str = "bookworm", more_packages: Iterable[str] = ()) -> Path:
    """Return the directory of a Debian root; debootstrap makes it if the cache has none.

    The first call takes about a minute. The name contains a hash of the package list, and a root
    gets its name only when it is complete.

    Args:
        suite: Debian's name of a release.
        more_packages: Debian packages in addition to `ROOT_PACKAGES`.

    Raises:
        RootUnavailable: debootstrap failed; the message has the end of its output.
    """
    packages = (*ROOT_PACKAGES, *more_packages)
    root = CACHE / "roots" / f"{suite}-{_short_hash(' '.join(packages).encode())}"
    if root.is_dir():
        return root
    with _locked(root.name):
        if not root.is_dir():
            unfinished = root.with_name(f".{root.name}.unfinished")
            _empty_directory(unfinished)
            _debootstrap(suite, unfinished, packages)
            unfinished.rename(root)
    return root


def _debootstrap(suite: str, target: Path, packages: Iterable[str]) -> None:
    # In its own namespaces: all mounts and processes of debootstrap end with it, also after ^C.
    command = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "debootstrap")
    options = ("--variant=minbase", f"--include={','.join(packages)}")
    try:
        _host(*command, *options, suite, str(target), *_debian_mirror())
    except CommandFailed as failure:
        last_lines = "\n".join(failure.stdout.splitlines()[-5:])
        raise RootUnavailable(f"debootstrap {suite} failed:\n{last_lines}") from failure
    shutil.rmtree(target / "var/cache/apt/archives", ignore_errors=True)
    (target / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


def _debian_mirror() -> list[str]:
    """Return the mirror of this machine's apt, from either of its two formats.

    None on a host without apt: debootstrap then uses its default.
    """
    key, options = r"(?:URIs:|deb\s)", r"(?:\[[^]]*\]\s+)?"
    uri = re.compile(rf"^{key}\s*{options}(https?://\S+/debian)/?(?:\s|$)", re.MULTILINE)
    apt = Path("/etc/apt")
    for sources in (*apt.glob("sources.list.d/*.sources"), *apt.glob("**/*.list")):
        if found := uri.search(sources.read_text()):
            return [found[1]]
    return []


class Container:
    """A pristine Debian container that shares the host's network and dies with its creator.

    The context manager boots it on entry and stops it on exit. To put files in before systemd
    starts, pass ``boot=False`` and call `boot` later. `write` and `run` work before the boot (in a
    chroot) and after it (in the container's namespaces).

    Args:
        root: A directory from `build_root`, which stays unmodified.
        read_only: Host paths that the container sees at the same path, after `boot` only.
        writable: Like *read_only*, but writes go to the host.
        nspawn_options: Further options of systemd-nspawn(1), such as ``--capability=…``.
        boot: True if entering the context boots.

    The thread that calls `boot` must outlive the container: the kernel ties the two together.
    """

    def __init__(
        self,
        root: Path,
        *,
        read_only: Iterable[Path] = (),
        writable: Iterable[Path] = (),
        nspawn_options: Iterable[str] = (),
        boot: bool = True,
    ) -> None:
        self.name = _machine_name()
        self._directory = CACHE / "run" / self.name
        self.root = self._directory / "merged"
        self.console_log = self._directory / "console.log"
        self._lower = root
        self._boot_on_entry = boot
        self._options = (
            *(f"--bind-ro={path}" for path in read_only),
            *(f"--bind={path}" for path in writable),
            *nspawn_options,
        )
        self._init_pid: int | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._mount()
            if self._boot_on_entry:
                self.boot()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _mount(self) -> None:
        _sweep_up_after_the_dead()
        self._directory.mkdir(parents=True)
        self._undo.callback(_unmount, self._directory)
        _host("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(self._directory))
        upper, work = self._directory / "upper", self._directory / "work"
        for directory in (upper, work, self.root):
            _empty_directory(directory)
        layers = f"lowerdir={self._lower},upperdir={upper},workdir={work}"
        _host("mount", "-t", "overlay", "-o", layers, "overlay", str(self.root))

    def boot(self) -> None:
        """Start systemd and return when it has started everything (running or degraded).

        Raises:
            RuntimeError: systemd did not start everything; the message has the console's output.
        """
        self._undo.callback(_forget_machine, self.name)
        options = ("--boot", f"--directory={self.root}", "--resolv-conf=replace-host")
        command = _nspawn_command(self.name, (*options, *self._options))
        with self.console_log.open("wb") as console:
            nspawn = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                umask=0o022,
                # ^C must reach only the test run, which then stops the container in an orderly way.
                start_new_session=True,
            )
        self._undo.callback(self._halt, nspawn)
        self._await_boot(nspawn, time.monotonic() + BOOT_SECONDS)

    def _await_boot(self, nspawn: subprocess.Popen[bytes], deadline: float) -> None:
        while time.monotonic() < deadline and nspawn.poll() is None:
            self._init_pid = _child_named_systemd(nspawn.pid)
            if self._init_pid is not None and self._is_up(deadline):
                return
            time.sleep(0.02)
        console = self.console_log.read_text(errors="replace")
        raise RuntimeError(f"systemd did not come up in the container:\n{console}")

    def _is_up(self, deadline: float) -> bool:
        seconds_left = max(deadline - time.monotonic(), 1)
        # This fails at once until systemd has made its socket.
        with contextlib.suppress(subprocess.TimeoutExpired):
            state = self.run(
                "systemctl", "is-system-running", "--wait", check=False, timeout=seconds_left
            )
            return state.stdout.strip() in {"running", "degraded"}
        return False

    def _halt(self, nspawn: subprocess.Popen[bytes]) -> None:
        self._init_pid = None
        nspawn.terminate()
        try:
            nspawn.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()

    def stop(self) -> None:
        """Shut down and remove everything that the container made. A second call does nothing."""
        self._undo.close()

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float | None = 60,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the container's root and return its output as text.

        Raises:
            CommandFailed: Its exit status is not 0, and *check* is true.
            subprocess.TimeoutExpired: The command was killed after *timeout* seconds.
        """
        command = (*self._entrance(), *argv)
        return _execute(command, CLEAN_ENVIRONMENT, stdin=stdin, timeout=timeout, check=check)

    def _entrance(self) -> tuple[str, ...]:
        if self._init_pid is None:
            return ("chroot", str(self.root))
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return ("nsenter", f"--target={self._init_pid}", *namespaces, "--")

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        """Write a file as root, with the directories above it; replace an existing file."""
        # From the inside, so that tmpfs mounts and absolute symlinks resolve as in the container.
        script = 'mkdir -p "${1%/*}/" && cat >"$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", str(path), f"{mode:o}", stdin=text)

    def link_product(self, venv: Path) -> None:
        """Make /usr/bin/fm-consumer a link into *venv*, which must be in `read_only`."""
        self.run("ln", "-sfn", f"{venv}/bin/fm-consumer", "/usr/bin/fm-consumer")


def product_venv(
    repo: Path, *, suite: str = "bookworm", extra_packages: Iterable[str] = (), extra: str = ""
) -> Path:
    """Return a virtualenv that works in containers of *suite*, with *repo* installed.

    Args:
        repo: The directory of the sources.
        suite: A suite of `build_root`.
        extra_packages: Additional packages for pip.
        extra: An extra of the product, such as ``test``.

    The installation is not editable and happens inside a container, so that neither the host's
    Python nor the working tree leaks in. The cache keeps one venv for each state of the sources,
    until it is unused for two hours.
    """
    root, packages = build_root(suite), tuple(extra_packages)
    venvs = CACHE / "venvs"
    with _temporary_directory() as snapshot:
        _copy_sources(repo, snapshot)
        metadata = (repo / "pyproject.toml").read_text()
        wanted = "\0".join((root.name, *packages, extra, metadata))
        dependencies = _short_hash(wanted.encode())
        venv = venvs / f"{suite}-{dependencies}-{_hash_of_tree(snapshot)}"
        complete = venv / "complete"
        with _locked(f"venv-{suite}-{dependencies}"):
            if not complete.exists():
                product = f"{snapshot}[{extra}]" if extra else str(snapshot)
                _build_venv(root, venv, snapshot, (product, *packages))
            complete.touch()
    _remove_unused_venvs(venvs)
    return venv


def _build_venv(root: Path, venv: Path, sources: Path, requirements: tuple[str, ...]) -> None:
    same_dependencies, _, _ = venv.name.rpartition("-")
    relatives = list(venv.parent.glob(f"{same_dependencies}-*/complete"))
    pip_cache = CACHE / "pip"
    pip_cache.mkdir(parents=True, exist_ok=True)
    _empty_directory(venv)
    with (
        _removed_on_failure(venv),
        Container(root, read_only=[sources], writable=[venv, pip_cache]) as container,
    ):
        environment = _network_environment(container)
        pip = ("env", *environment, f"{venv}/bin/pip", "install", f"--cache-dir={pip_cache}")
        if relatives:
            # This takes 3 seconds instead of 12 after each change of the sources.
            _copy_venv(relatives[0].parent, venv)
            container.run(*pip, "--no-deps", "--force-reinstall", str(sources), timeout=600)
        else:
            container.run("python3", "-m", "venv", str(venv))
            container.run(*pip, *requirements, timeout=600)


def _copy_venv(source: Path, target: Path) -> None:
    everything_but_the_mark = shutil.ignore_patterns("complete")
    shutil.copytree(
        source, target, symlinks=True, dirs_exist_ok=True, ignore=everything_but_the_mark
    )
    scripts = (path for path in (target / "bin").iterdir() if not path.is_symlink())
    for path in (target / "pyvenv.cfg", *scripts):
        path.write_text(path.read_text().replace(str(source), str(target)))


def _copy_sources(repo: Path, target: Path) -> None:
    for name in PRODUCT_SOURCES:
        source = repo / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target / name)


def _hash_of_tree(directory: Path) -> str:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return _short_hash(
        *(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode() for path in files),
        *(path.read_bytes() for path in files),
    )


def _short_hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _network_environment(container: Container) -> list[str]:
    environment = {name: os.environ[name] for name in NETWORK_ENVIRONMENT if name in os.environ}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    # The host may trust its own certificate authority, such as a proxy's.
    bundle = next((Path(path) for path in CA_BUNDLES if Path(path).exists()), None)
    if bundle is not None:
        container.write(CA_BUNDLES[0], bundle.read_text())
        environment["PIP_CERT"] = CA_BUNDLES[0]
    return [f"{name}={value}" for name, value in environment.items()]


def _remove_unused_venvs(venvs: Path) -> None:
    for complete in venvs.glob("*/complete"):
        if time.time() - complete.stat().st_mtime > UNUSED_VENV_SECONDS:
            shutil.rmtree(complete.parent, ignore_errors=True)


def _machine_name() -> str:
    return f"fmtest-{os.getpid()}-{secrets.token_hex(3)}"


def _nspawn_command(name: str, options: tuple[str, ...]) -> tuple[str, ...]:
    join = 'for group in $CGROUPS; do echo $$ >"$group/cgroup.procs" || exit; done; exec "$@"'
    cgroups, scope_option = _cgroups_for(name)
    return (
        *("env", f"CGROUPS={' '.join(map(str, cgroups))}"),
        # systemd 256 and later boot on the unified hierarchy only, so all suites use it.
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
        # A container must not survive a test run that is killed.
        *("setpriv", "--pdeathsig", "TERM", "sh", "-c", join, "sh"),
        *("systemd-nspawn", f"--machine={name}", "--register=no", *scope_option),
        *("--console=pipe", "--settings=no", "--link-journal=no", *options),
    )


def _cgroups_for(name: str) -> tuple[list[Path], tuple[str, ...]]:
    """Make the cgroups of a new container, unless the host's systemd makes a scope for it."""
    if Path("/run/systemd/system").exists():
        return [], ()
    cgroups = [parent / name for parent in _own_cgroups()]
    for cgroup in cgroups:
        cgroup.mkdir()
    return cgroups, ("--keep-unit",)


def _own_cgroups() -> list[Path]:
    """Return this process's cgroup in each hierarchy that a systemd manages."""
    mount_points = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        if after.startswith("cgroup2 "):
            mount_points[""] = before.split()[4]
        elif after.startswith("cgroup ") and "name=systemd" in after:
            mount_points["name=systemd"] = before.split()[4]
    own = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    return [
        Path(mount_points[controllers] + path)
        for _, controllers, path in own
        if controllers in mount_points
    ]


def _forget_machine(name: str) -> None:
    """Remove the leftovers of nspawn on a host without systemd."""
    shutil.rmtree(f"/run/systemd/nspawn/propagate/{name}", ignore_errors=True)
    for parent in _own_cgroups():
        for directory, _, _ in os.walk(parent / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def _child_named_systemd(parent: int) -> int | None:
    named = (pid for pid, name in _children_of(parent).items() if name == "systemd")
    return next(named, None)


def _children_of(parent: int) -> dict[int, str]:
    """Return the names of a process's children by process id."""
    children = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        # Other processes may end at any time.
        with contextlib.suppress(OSError):
            text = status.read_text()
            if f"\nPPid:\t{parent}\n" in text:
                children[int(status.parent.name)] = text.split("\n")[0].removeprefix("Name:\t")
    return children


def _unmount(directory: Path) -> None:
    if directory.is_mount():
        # Lazily: a process that is still dying must not block the unmount.
        _host("umount", "--recursive", "--lazy", str(directory))
    directory.rmdir()


def _sweep_up_after_the_dead() -> None:
    """Remove the mounts of test runs that were killed."""
    for directory in (CACHE / "run").glob("fmtest-*"):
        owner = directory.name.split("-")[1]
        if not Path("/proc", owner).exists():
            _forget_machine(directory.name)
            with contextlib.suppress(OSError, CommandFailed):
                _unmount(directory)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Let one process at a time build the thing called *name*."""
    locks = CACHE / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    # In the cache, because a container mounts its own /tmp over directories bound below /tmp.
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="sources-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def _removed_on_failure(directory: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _empty_directory(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    # With any umask: the units under test run as users who are not root.
    directory.chmod(0o755)


def _host(*command: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return _execute(command, dict(os.environ), timeout=timeout)


def _execute(
    command: tuple[str, ...],
    environment: dict[str, str],
    *,
    stdin: str = "",
    timeout: float | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        command,
        env=environment,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        umask=0o022,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout)
        except BaseException:
            _kill_with_descendants(process)
            raise
    if check and process.returncode != 0:
        raise CommandFailed(process.returncode, command, stdout, stderr)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _kill_with_descendants(process: subprocess.Popen[str]) -> None:
    children = _children_of(process.pid)
    if children:
        # Before nsenter, which then reaps its child. The container cannot reap it, and its PID 1
        # cannot end before somebody does.
        for child in children:
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
