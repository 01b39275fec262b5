# SPDX-License-Identifier: GPL-2.0-or-later
"""What a delivery means and what becomes of it.

Nothing below this package does I/O: no reactor, no broker library, no systemd, no command line
(checked by import-linter). What the core needs from outside, it asks for in :mod:`.ports`.
"""
