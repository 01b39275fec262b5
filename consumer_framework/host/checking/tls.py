# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the files of ``[tls]`` can be used, and until when."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.adapters.certificates import ends_of
from consumer_framework.core.errors import ExitCode, Problem
from consumer_framework.core.findings import error, info, warning

from .files import closed_findings

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from datetime import datetime

    from consumer_framework.adapters.accounts import Account
    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Settings, Tls

# How long before its end a certificate is warned of.
NOTICE = timedelta(days=30)


def tls_findings(
    settings: Settings, account: Account | None, now: datetime, handed: Container[str] = ()
) -> Iterator[Finding]:
    """Say what is wrong with certificates and keys, or soon will be.

    Args:
        settings: The file; that its PEM files fit together was checked when it was loaded.
        account: What the service runs as; None where it is none.
        now: Aware.
        handed: The TOML paths of files that are credentials: the service can read them.
    """
    files = {key: Path(name) for key, name in settings.tls.model_dump().items() if name}
    if files and not settings.amqp_url.startswith("amqps:"):
        yield info("tls", "has no effect on an amqp:// URL", "write amqps:// in amqp_url")
        return
    closed = {key: path for key, path in files.items() if f"tls.{key}" not in handed}
    for key, path in closed.items() if account else ():
        yield from closed_findings(f"tls.{key}", path, account)  # type: ignore[arg-type]
    yield from _pair(settings.tls)
    if "ca_cert" in files:
        # A bundle has many, and one that is valid may do.
        yield from _end(
            "ca_cert", files["ca_cert"], max(ends_of(files["ca_cert"]), default=None), now
        )
    if "certfile" in files and "keyfile" in files:
        # The client's own comes first, those that vouch for it follow.
        yield from _end(
            "certfile", files["certfile"], min(ends_of(files["certfile"]), default=None), now
        )


def _pair(tls: Tls) -> Iterator[Finding]:
    """Upstream takes both, or neither, without a word."""
    if bool(tls.certfile) != bool(tls.keyfile):
        there, missing = ("certfile", "keyfile") if tls.certfile else ("keyfile", "certfile")
        what = f"has no effect without {missing}: the broker sees no client certificate"
        yield warning(f"tls.{there}", what, f"add {missing}")


def _end(key: str, path: Path, end: datetime | None, now: datetime) -> Iterator[Finding]:
    if end is None or end - now > NOTICE:
        return
    day = f"{end:%Y-%m-%d}"
    if end <= now:
        what = f"the certificate in {path} ended on {day}"
        yield error(Problem(f"tls.{key}", what, "renew it"), ExitCode.CONNECTION)
    else:
        what = f"the certificate in {path} ends on {day}, in {(end - now).days} days"
        yield warning(f"tls.{key}", what, "renew it, and restart the instance")
