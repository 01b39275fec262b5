# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools that act on instances from outside of their process.

They show the status of a host's instances, change the number of workers, install units, check an
instance before its start, explain the fate of a failure, and carry out orders for an instance that
is stopped. They print nothing: ``cli`` does. Of ``runtime`` they use the assembly, the client of
the control socket and the state files, which import-linter checks, with the exceptions there.
"""
