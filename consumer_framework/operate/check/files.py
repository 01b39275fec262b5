# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks the files of the host: the configuration, the state directory, and those of ``[tls]``."""

from __future__ import annotations

import os
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from consumer_framework.adapters import flight as flight_file
from consumer_framework.adapters.certificates import ends_of
from consumer_framework.adapters.store.files import DATABASE
from consumer_framework.adapters.systemd.accounts import Account
from consumer_framework.core.errors import ExitCode, Problem, StoreError
from consumer_framework.operate import units
from consumer_framework.runtime.state_files import count_stored

from .findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from datetime import datetime

    from consumer_framework.settings import Settings, Tls

    from .findings import Finding

# Stands for everybody without rights of their own.
_OTHERS = Account("everybody", None, frozenset())
# The password that RabbitMQ has for everybody, and takes from the same machine only.
_NO_SECRETS = {None, "", "guest"}


def file_findings(
    path: Path, account: Account | None, is_handed_over: Callable[[], bool] = lambda: False
) -> Iterator[Finding]:
    """Check that the service can read its configuration.

    Args:
        path: The file.
        account: The account of the service; None without a service.
        is_handed_over: Tells whether systemd gives the service a copy.
    """
    # Path.exists raises where this user may not look; os.path.exists does not.
    if account is not None and os.path.exists(path):  # noqa: PTH110
        if account.obstacle(path) is not None and is_handed_over():
            what = f"is closed to the service's user {account.name}: systemd gives it a copy"
            cure = "after a change, run 'fm-consumer reload' as root, or restart the instance"
            yield info("", what, cure)
            return
        yield from closed_findings("", path, account)


def closed_findings(key: str, path: Path, account: Account) -> Iterator[Finding]:
    """Report the reasons why the service cannot read a file.

    Args:
        key: The TOML path of the key that names it, or "" for the configuration itself.
        path: The file.
        account: The account of the service.
    """
    what = f"{path} is" if key else "is"
    obstacle = account.obstacle(path)
    if obstacle is not None:
        closed = f"{what} closed to the service's user {account.name}"
        where = f" by the mode of {obstacle}" if obstacle != path else ""
        yield error(Problem(key, f"{closed}{where}", _cure_of_closed(key, path, obstacle)))
    above = next((each for each in units.HIDDEN if path.resolve().is_relative_to(each)), None)
    if above is not None:
        cure = "move it, or set ProtectHome= and PrivateTmp= for the unit with systemctl edit"
        yield warning(key, f"{what} below {above}, which the unit hides from the service", cure)


def _cure_of_closed(key: str, path: Path, obstacle: Path) -> str:
    if key:
        # A key is nothing that everybody should read.
        name = path.name
        return (
            f'hand it over: write "credential:{name}", and LoadCredential={name}:{path} with '
            "systemctl edit"
        )
    return f"chmod {'o+x' if obstacle.is_dir() else 'o+r'} {obstacle}"


def password_findings(url: str, path: Path) -> Iterator[Finding]:
    """Warn of a password that everybody on the machine can read.

    Args:
        url: ``amqp_url``, which was parsed before.
        path: The file that it is in.
    """
    if urlsplit(url).password in _NO_SECRETS or _OTHERS.obstacle(path) is not None:
        return
    cure = f'chmod 600 {path}, or write "credential:NAME" for the password'
    yield warning("amqp_url", "everybody on this machine can read the password in it", cure)


_MEMORY_FILESYSTEMS = {"tmpfs", "ramfs"}
_CONTAINER_FILESYSTEMS = {"overlay", "aufs"}
_REMOTE_FILESYSTEMS = {"9p", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "nfs", "nfs4", "smb3"}
# Bytes. An instance whose store cannot be written pauses.
_LITTLE_SPACE = 64 << 20
_OTHER_DIRECTORY = "give a directory on a local disk with --state-dir"


def state_findings(directory: Path, *, made: bool) -> Iterator[Finding]:
    """Check the state directory of an instance.

    Args:
        directory: It need not be there yet.
        made: True if systemd makes it, and gives it to the service.
    """
    place = str(directory)
    there = nearest(directory)
    if not there.is_dir():
        problem = Problem(
            "", f"cannot be used for state: {there} is no directory", _OTHER_DIRECTORY
        )
        yield error(problem).at(place)
        return
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        cure = "mount it read-write, or give another directory with --state-dir"
        yield error(Problem("", "cannot be used for state: Read-only file system", cure)).at(place)
    elif not made and not os.access(there, os.W_OK | os.X_OK):
        cure = "give a directory that this user can write to with --state-dir"
        yield error(Problem("", "cannot be used for state: Permission denied", cure)).at(place)
    else:
        yield from _obstacles_in(directory)
    for finding in (
        *_filesystem_findings(filesystem_of(there)),
        *_space_findings(shutil.disk_usage(there).free),
    ):
        yield finding.at(place)


def _obstacles_in(directory: Path) -> Iterator[Finding]:
    # Only problems that will not pass by themselves.
    flight = directory / flight_file.NAME
    # Path.is_dir raises where this user may not look; os.path.isdir does not.
    if os.path.isdir(flight):  # noqa: PTH112
        yield error(Problem("", "is a directory, and must be a file", "move it away")).at(
            str(flight)
        )
    try:
        count_stored(directory)
    except StoreError as refused:
        # This user may not look, perhaps.
        if refused.lasting and os.access(directory / DATABASE, os.R_OK):
            yield error(Problem("", str(refused)))


def _filesystem_findings(kind: str) -> Iterator[Finding]:
    if kind in _MEMORY_FILESYSTEMS:
        what = f"is in memory ({kind}): what waits or is quarantined is lost when the machine stops"
        yield warning("", what, _OTHER_DIRECTORY)
    elif kind in _REMOTE_FILESYSTEMS:
        what = f"is on another machine ({kind}), where SQLite's write-ahead log is not safe"
        yield warning("", what, _OTHER_DIRECTORY)
    elif kind in _CONTAINER_FILESYSTEMS:
        what = f"is in a container's own layer ({kind}), and is lost with the container"
        yield info("", what, "mount a volume there")


def _space_findings(free: int) -> Iterator[Finding]:
    if free < _LITTLE_SPACE:
        what = f"has {free >> 20} MiB left: an instance that cannot write its store pauses"
        yield warning("", what, "make room")


# The time before the end of a certificate in which it is warned of.
NOTICE = timedelta(days=30)


def tls_findings(
    settings: Settings, account: Account | None, now: datetime, handed: Container[str] = ()
) -> Iterator[Finding]:
    """Check certificates and keys, also for an end that is near.

    Args:
        settings: The configuration. Its PEM files were checked to fit together when it was loaded.
        account: The account of the service; None without a service.
        now: The time, with its time zone.
        handed: The TOML paths of files that are credentials: the service can read them.
    """
    files = {key: Path(name) for key, name in settings.tls.model_dump().items() if name}
    if files and not settings.amqp_url.startswith("amqps:"):
        yield info("tls", "has no effect on an amqp:// URL", "write amqps:// in amqp_url")
        return
    closed = {key: path for key, path in files.items() if f"tls.{key}" not in handed}
    for key, path in closed.items() if account else ():
        yield from closed_findings(f"tls.{key}", path, account)  # type: ignore[arg-type]
    yield from _key_pair_findings(settings.tls)
    if "ca_cert" in files:
        # A bundle has many, and one that is valid may do.
        yield from _expiry_findings(
            "ca_cert", files["ca_cert"], max(ends_of(files["ca_cert"]), default=None), now
        )
    if "certfile" in files and "keyfile" in files:
        # The client's own comes first, those that vouch for it follow.
        yield from _expiry_findings(
            "certfile", files["certfile"], min(ends_of(files["certfile"]), default=None), now
        )


def _key_pair_findings(tls: Tls) -> Iterator[Finding]:
    # fedora-messaging takes both, or neither, without a word.
    if bool(tls.certfile) != bool(tls.keyfile):
        there, missing = ("certfile", "keyfile") if tls.certfile else ("keyfile", "certfile")
        what = f"has no effect without {missing}: the broker sees no client certificate"
        yield warning(f"tls.{there}", what, f"add {missing}")


def _expiry_findings(
    key: str, path: Path, end: datetime | None, now: datetime
) -> Iterator[Finding]:
    if end is None or end - now > NOTICE:
        return
    day = f"{end:%Y-%m-%d}"
    if end <= now:
        what = f"the certificate in {path} ended on {day}"
        yield error(Problem(f"tls.{key}", what, "renew it"), ExitCode.CONNECTION)
    else:
        what = f"the certificate in {path} ends on {day}, in {(end - now).days} days"
        yield warning(f"tls.{key}", what, "renew it, and restart the instance")


# The kind of filesystem that a directory is on (proc_pid_mountinfo(5)).

_MOUNTS = Path("/proc/self/mountinfo")


def nearest(path: Path) -> Path:
    """Return *path*, or the nearest directory above it that exists."""
    found = path.absolute()
    # Path.exists raises where this user may not look; os.path.exists does not.
    while not os.path.exists(found) and found != found.parent:  # noqa: PTH110
        found = found.parent
    return found


def filesystem_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """Return the type of the filesystem that *path* is, or would be, on.

    Returns:
        ``ext4``, ``tmpfs`` and so on; "" if it cannot be found out.
    """
    try:
        real = nearest(path).resolve()
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    points = [
        (point, kind) for point, kind in map(_parse_mount, lines) if real.is_relative_to(point)
    ]
    # A filesystem hides another one that was mounted at the same place before.
    return max(reversed(points), key=lambda mount: len(mount[0].parts), default=(real, ""))[1]


def _parse_mount(line: str) -> tuple[Path, str]:
    before, _, after = line.partition(" - ")
    return Path(_unescaped(before.split()[4])), after.split()[0]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
