# SPDX-License-Identifier: GPL-2.0-or-later
"""Observers of an instance: its log, its status, and its pages for monitoring systems."""
