# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd's credentials: in the service they are files, elsewhere they are where systemd looks.

See systemd.exec(5), "Credentials". systemd decrypts; nothing here does.
"""

from .directory import CONFIGURATION, Directory
from .elsewhere import Elsewhere, Nowhere
from .unit import Handed, handed_over, unit_text

__all__ = [
    "CONFIGURATION",
    "Directory",
    "Elsewhere",
    "Handed",
    "Nowhere",
    "handed_over",
    "unit_text",
]
