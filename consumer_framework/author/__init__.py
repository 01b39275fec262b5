# SPDX-License-Identifier: GPL-2.0-or-later
"""The classes and functions that the module of a consumer uses.

Authors import them from :mod:`consumer_framework`, which re-exports the public names; the modules
here may change.

================== ==========================================================================
:mod:`.consumer`   the base classes ``Consumer`` and ``BatchConsumer``
:mod:`.routing`    methods that take the messages of some topics, or of some classes
:mod:`.batch`      the messages of one call of a batch handler
:mod:`.steps`      steps of a handler that are done once for each message
:mod:`.heartbeat`  the current run of the handler, and how the handler restarts its time limit
:mod:`.translate`  other people's exceptions as signals
:mod:`.handler`    the author's callable as the host runs it, whatever form it has
================== ==========================================================================

The code here runs in the author's process and in the author's tests, also under
``fedora-messaging consume``. So it needs neither Twisted nor a running instance, and imports only
:mod:`consumer_framework.settings` and :mod:`consumer_framework.core`.
"""
