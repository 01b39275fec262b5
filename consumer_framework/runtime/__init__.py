# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts the pieces together: finds the handler, runs the instance, executes its lifecycle."""
