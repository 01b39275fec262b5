# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of an instance before it starts: ``fm-consumer check``.

A check looks at one subject, starts and changes nothing, and yields :class:`~.findings.Finding`
values: an error keeps the instance from its work, a warning names a message that may be lost.
``all_checks`` runs every check in order. ``start`` does the steps of a start before it connects,
``files`` looks at the files of the host, ``queues`` at the declared queues and bindings,
``fedora`` at the rules of Fedora's broker, ``outbox`` at the outbox and its database,
``consumer`` asks the author's class about its configuration, and ``broker`` asks the broker. No
check imports a reactor.
"""
