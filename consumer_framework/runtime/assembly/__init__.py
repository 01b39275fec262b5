# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way from a configuration to a plan.

The daemon, ``fm-consumer check``, the replay of a stopped instance and the test harness all put an
instance together here, so that a configuration means the same to each of them::

    RunOptions ──▶ access ──▶ configuration.load ──▶ Settings
                                                        │
    callback ───▶ loader.target_of ──▶ Target ──────────┤
                                                        ▼
                                                 plan.make_plan ──▶ Plan

``access`` reads the file and the credentials that it names, from inside the service or from
outside. ``configuration`` loads and checks the file whole. ``loader`` imports the author's object
and prepares its handler. ``plan`` combines both into a frozen :class:`~.plan.Plan`: the factory of
the handler, the policy for its failures, slots, batches, order and prefetch.

Nothing here runs a handler, opens a store or a connection, or imports a reactor. The rest of the
runtime reads the plan and never the file.
"""
