# SPDX-License-Identifier: GPL-2.0-or-later
"""One outside thing each: the broker, the author's code, messages, files, systemd, logs.

Adapters never import each other (checked by import-linter); the host puts them together.
"""
