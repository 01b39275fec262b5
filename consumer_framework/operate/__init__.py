# SPDX-License-Identifier: GPL-2.0-or-later
"""Act on instances from outside: status, scaling, checks, units, offline orders."""
