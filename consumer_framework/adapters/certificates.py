# SPDX-License-Identifier: GPL-2.0-or-later
"""Until when the certificates in a PEM file are valid."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


def ends_of(path: Path) -> list[datetime]:
    """Return the end of each certificate in a PEM file, in the file's order.

    Returns:
        Nothing where the file cannot be read, or holds what is no certificate.
    """
    try:
        with warnings.catch_warnings():
            # Systems' bundles have certificates with a serial number of 0.
            warnings.simplefilter("ignore")
            certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [certificate.not_valid_after_utc for certificate in certificates]
