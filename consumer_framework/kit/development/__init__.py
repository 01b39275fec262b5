# SPDX-License-Identifier: GPL-2.0-or-later
"""The development loop of an author: ``fm-consumer dev``.

::

    a file of the project changes ──▶ the consumer is stopped, and started anew
    Enter, --rate, --once        ──▶ a valid message ──▶ private broker ──▶ the consumer
    one line about each message  ◀── events of the consumer's process ◀────────┘

- :mod:`.configuration` finds the project's file, and makes the private copy that the consumer gets.
- :mod:`.messages` makes valid messages of the schemas that the topics of the bindings have.
- :mod:`.private_broker` declares the queues on the private broker, and publishes.
- :mod:`.changes` waits for changed files.
- :mod:`.child` is the process of the consumer: the daemon itself, with one more observer, which
  writes :mod:`.events`; :mod:`.consumer` is the parent's view of it.
- :mod:`.session` is the loop.

The project is never changed. The broker, the directory with the copy and the state, and the process
of the consumer end with the command, in whatever way it ends: see
:class:`consumer_framework.testing.broker.place.Guard`.
"""
