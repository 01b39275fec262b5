# SPDX-License-Identifier: GPL-2.0-or-later
"""Side-by-side benchmarks; see README.md."""
