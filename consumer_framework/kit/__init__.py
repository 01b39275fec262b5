# SPDX-License-Identifier: GPL-2.0-or-later
"""Ready-made consumers: a configuration file names one, and nobody writes Python.

::

    callback = "consumer_framework.kit.command:RunCommand"

Each module has one consumer, with a nested ``Config`` that declares its keys. A consumer is written
as an author would write it, with :class:`.Consumer` or :class:`.BatchConsumer`, and has no part in
the runtime. Its failures are signals of :mod:`consumer_framework.core.errors`: a broken dependency
pauses the instance, and a message that can never succeed goes to quarantine.

- :mod:`.command` runs a program for each message; :mod:`.process` watches over the program.
- :mod:`.webhook` posts each message to a URL.
- :mod:`.json_lines` appends each message to a file.
- :mod:`.message_json` writes a message as JSON.
"""
