# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapters: each module or folder deals with one thing outside of the framework.

The broker (``amqp``), the author's code (``executor``), message bodies (``codec``), the instance's
database (``store``) and flight file (``flight``), systemd (``systemd``), the configuration file
(``config``), certificates, logging and the machine's clock. An adapter translates between its
thing and the values of ``core`` and ``settings``; several implement a port of ``core.ports``.

Adapters never import each other, which import-linter checks: ``runtime`` connects them. The fate
of a message is decided in ``core``.
"""
