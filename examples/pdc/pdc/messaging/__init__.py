# SPDX-License-Identifier: GPL-2.0-or-later
"""The app of messaging: its configuration has the messenger, its middleware sends."""
