# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of an instance: typed requests and answers, server, client."""
