# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket, by which operators' commands talk to a running instance.

``schema`` has the typed requests and answers, and their lines of JSON; ``server`` reads and writes
those lines in the instance; ``requests`` carries requests out on its store; ``client`` is the other
end, in the command. A new request is a class in ``schema`` and a method that answers it.

``schema``, ``requests`` and ``client`` import no reactor: a command that only asks must be quick.
Nothing here knows the runner or the dispatcher; the runner passes their methods in.
"""
