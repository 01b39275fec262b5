# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the page of ``packaging/cockpit`` to a browser on this machine, without Cockpit.

The page runs commands and shows their JSON. ``calls`` has the list of these commands, and fills in
the values that the page gives; ``programs`` runs one of them; ``site`` is the HTTP server.

Three walls keep others out. The server listens on loopback, or on a socket that only its user may
open. A browser gets in with an address that works once, and leaves a cookie. And a request must
name this machine (``Host``), and come from the page itself (``Origin``), so that no other site can
use the browser. The browser never sends a command line: it names a call and its values, and each
value must match its pattern.
"""
