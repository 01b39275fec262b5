# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``fm-consumer``: one module for each subcommand.

A subcommand reads its arguments, calls ``operate`` or the client of the control socket, and prints
the result. :mod:`.terminal`, :mod:`.options` and :mod:`.selection` are shared. Decisions belong to
the rooms below. A subcommand imports them when it runs, so that --help and completion are quick.
"""

from .main import main

__all__ = ["main"]
