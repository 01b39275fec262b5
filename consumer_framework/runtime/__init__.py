# SPDX-License-Identifier: GPL-2.0-or-later
"""One process that runs one instance, from its configuration to its exit code.

:mod:`.app` builds the :class:`.Instance` with all its parts, and the :class:`.Runner`, which starts
it and ends it. From then on the table in :mod:`consumer_framework.core.lifecycle` decides: parts
report events, the table names the next state and the effects, and instance and runner carry the
effects out::

    BUILDING ──▶ CONNECTING ──▶ SUBSCRIBING ──▶ CONSUMING    a lost connection: CONNECTING again
                      │              │              │
                      └──────────────┼──────────────┘
                                     ▼
                                  PAUSED                     then SUBSCRIBING or CONNECTING again
    all of these ──▶ DRAINING (told to stop) or FAILING (cannot go on) ──▶ STOPPED

The steps of a life, and the files that take them:

======= ================ =====================================================================
start   app, startup     Load the configuration, open the store, set up the author's handler.
connect runner           Start the session (``adapters/amqp``) and the control socket.
consume dispatcher       Take deliveries from the broker, and from the store by the scheduler,
                         through the slots to their settle; lanes and suspects order them.
pause   pauses           Suspend the gate while a dependency or the store is broken.
reload  reload           Read the configuration again, and bring it into force.
drain   drain            Finish running deliveries, give back the others, close everything.
exit    process_exit     End the process, whatever the author's code has left running.
======= ================ =====================================================================

One :class:`consumer_framework.core.gate.Gate` says whether work is taken, and every part that takes
work reads it. ``watchdog`` watches that the instance is not stuck; ``health`` collects the facts
from which its condition, its lag and its next loss follow; ``memory_relief`` and
``read_ahead`` bound its memory, ``deadline`` its start and its drain; ``signals`` and ``control``
bring orders; ``observe`` counts, logs and describes, and ``monitoring_port`` serves its pages.

Code that acts while an instance runs belongs here. Decisions about a message belong to ``core``,
each outside thing to an adapter, and commands of another process to ``operate``, which imports
nothing of this package but ``assembly``, ``control`` and ``state_files``.
"""
