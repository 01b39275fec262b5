# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of an instance before it starts: ``fm-consumer check``.

:func:`.all_checks.check` runs them in order. Each of the other files holds the checks of one
subject and returns findings. Importing this package imports no reactor.
"""
