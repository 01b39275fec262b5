# SPDX-License-Identifier: GPL-2.0-or-later
"""A compiler of JSON schemas. It imports nothing else of this project."""
