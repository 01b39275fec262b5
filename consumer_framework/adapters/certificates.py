# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates in PEM files: their ends, the name of a client, and digests that show a change."""

from __future__ import annotations

import warnings
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from datetime import datetime

    from consumer_framework.settings import Tls


def ends_of(path: Path) -> list[datetime]:
    """Return the end of each certificate in a PEM file, in the file's order.

    Returns:
        An empty list if the file cannot be read, or holds something else.
    """
    return [certificate.not_valid_after_utc for certificate in _certificates(path)]


def common_name(path: Path) -> str | None:
    """Return the common name in the first certificate of a PEM file, that of the client.

    Returns:
        None if the file cannot be read, or has none.
    """
    for certificate in _certificates(path)[:1]:
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
            return str(attribute.value)
    return None


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        with warnings.catch_warnings():
            # Systems' bundles have certificates with a serial number of 0.
            warnings.simplefilter("ignore")
            return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []


def digests(tls: Tls) -> dict[str, str]:
    """Return the digests of the files of ``[tls]``, by their keys; "" for none."""
    files = {"ca_cert": tls.ca_cert, "certfile": tls.certfile, "keyfile": tls.keyfile}
    return {key: _digest(Path(file)) if file else "" for key, file in files.items()}


def _digest(file: Path) -> str:
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
