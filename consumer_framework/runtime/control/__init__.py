# SPDX-License-Identifier: GPL-2.0-or-later
"""The control API, by which operators' commands and programs talk to a running instance.

It is HTTP/1.1 on a Unix socket. ``schema`` has the typed requests, ``answers`` their answers;
``routes`` has the table of methods, paths and rights, and turns a call into a request. ``server``
serves it in an instance, with Twisted; ``threaded`` in a relay, with threads. ``requests`` carries
requests out on the store of the process, and ``replays`` runs messages again. ``client`` is the
other end, in a command.

A new request is a class in ``schema``, a row of the table in ``routes`` and a method that answers
it. A page that is no JSON, such as ``/metrics``, is a function that returns a
:class:`.routes.Page`.

All but ``server`` import no reactor: a command that only asks must be quick. Nothing here knows the
runner or the dispatcher; the runner passes their methods in.
"""
