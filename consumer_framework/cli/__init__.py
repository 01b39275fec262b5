# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``fm-consumer``: one file a command.

A command parses its arguments, calls one function of ``operate``, ``runtime.control`` or
``runtime.app``, and prints the result as text or JSON. It decides nothing about messages, and knows
neither SQL nor systemd. ``options`` and ``selection`` find the instance and the rows that a command
names, ``terminal`` prints.

Imports of the store, the assembly and the reactor are in the functions that use them: ``--help``
and shell completion must be quick.
"""

from .main import main

__all__ = ["main"]
