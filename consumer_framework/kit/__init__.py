# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's kit: ready-made consumers, and decisions of an author's tools.

A configuration file names a ready-made consumer, and nobody writes Python::

    callback = "consumer_framework.kit.command:RunCommand"

Each module of these has one consumer, with a nested ``Config`` that declares its keys. A consumer
is written as an author would write it, with :class:`.Consumer` or :class:`.BatchConsumer`, and has
no part in the runtime. Its failures are signals of :mod:`consumer_framework.core.errors`: a broken
dependency pauses the instance, and a message that can never succeed goes to quarantine.

- :mod:`.command` runs a program for each message; :mod:`.process` watches over the program.
- :mod:`.webhook` posts each message to a URL.
- :mod:`.json_lines` appends each message to a file.
- :mod:`.forward` publishes a copy of each message elsewhere; :mod:`.topic_map` renames its topic.
- :mod:`.insert_row` inserts each message into a table; :mod:`.user_database` is the database.
- :mod:`.message_json` writes a message as JSON.

Besides, decisions of an author's tools about values that they are given:

- :mod:`.schema_packages` finds the installed schemas, and the package with those of a topic.
- :mod:`.schema_changes` compares two versions of a schema.
- :mod:`.recorded` reads recorded messages, and :mod:`.replay` runs a consumer on them, without a
  broker; :mod:`.handler_profile` measures it.
- :mod:`.failing_test` writes a test of a quarantined message, with the replacements of
  :mod:`.anonymous` for secrets and personal details.
- :mod:`.project` has the rules of a new consumer's project and of its update; with copier,
  :mod:`.project_template` renders the folder ``template``.

:mod:`.development` is the loop of ``fm-consumer dev``.
"""
