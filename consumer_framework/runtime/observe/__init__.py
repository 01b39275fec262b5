# SPDX-License-Identifier: GPL-2.0-or-later
"""Observers of an instance: its log and its status."""
