# SPDX-License-Identifier: GPL-2.0-or-later
"""The modules that a consumer's own module imports."""
