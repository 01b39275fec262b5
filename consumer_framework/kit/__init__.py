# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's kit: recorded messages, their selection, and the schemas that they fit.

Everything here decides about values that it is given. The commands read files and brokers.
"""
