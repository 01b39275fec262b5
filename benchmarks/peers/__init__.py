# SPDX-License-Identifier: GPL-2.0-or-later
"""One small program or callback for each way to consume; `catalogue` starts them."""
