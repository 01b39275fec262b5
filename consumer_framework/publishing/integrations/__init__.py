# SPDX-License-Identifier: GPL-2.0-or-later
"""Bindings of the outbox to the frameworks of web applications, one file each."""
