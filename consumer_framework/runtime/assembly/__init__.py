# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way from a configuration to a plan."""
