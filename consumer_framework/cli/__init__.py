# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``fm-consumer``: argument parsing, and one call each."""

from .main import main

__all__ = ["main"]
