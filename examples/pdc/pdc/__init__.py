# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Product Definition Center: composes, and a message for each change of one."""
