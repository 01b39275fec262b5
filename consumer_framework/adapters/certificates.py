# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates in PEM files: the time when they end, and digests that show a change."""

from __future__ import annotations

import warnings
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from datetime import datetime

    from consumer_framework.settings import Tls


def ends_of(path: Path) -> list[datetime]:
    """Return the end of each certificate in a PEM file, in the file's order.

    Returns:
        An empty list if the file cannot be read, or holds something else.
    """
    try:
        with warnings.catch_warnings():
            # Systems' bundles have certificates with a serial number of 0.
            warnings.simplefilter("ignore")
            certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [certificate.not_valid_after_utc for certificate in certificates]


def digests(tls: Tls) -> dict[str, str]:
    """Return the digests of the files of ``[tls]``, by their keys; "" for none."""
    files = {"ca_cert": tls.ca_cert, "certfile": tls.certfile, "keyfile": tls.keyfile}
    return {key: _digest(Path(file)) if file else "" for key, file in files.items()}


def _digest(file: Path) -> str:
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
