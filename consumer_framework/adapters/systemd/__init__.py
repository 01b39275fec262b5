# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd: notifications, the journal, units, credentials, memory pressure."""
