# SPDX-License-Identifier: GPL-2.0-or-later
"""One process that runs one instance, from its configuration to its exit code.

``app.run`` builds the :class:`.Instance` with all its parts, in one place, and the :class:`.Runner`,
which starts and ends it. Then the instance lives by the table in :mod:`consumer_framework.core.\
lifecycle`: parts report events, the table says which state and which effects follow, and instance
and runner carry them out::

    start      app         loads the configuration, plans, opens the store
               startup     makes the handler and sets it up, until its dependencies are there
    connect    session     dials the broker, opens channels, subscribes          (adapters/amqp)
    consume    dispatcher  takes deliveries from the broker, and from the store by the scheduler,
                           to the slots, and their dispositions to settle
    pause      pauses      suspends the gate while the dependency or the store is broken
    reload     reload      reads the configuration again, and brings it into force
    drain      drain       finishes running deliveries, gives back the others, closes everything
    exit       process_exit  ends the process, whatever the author's code has left running

              BUILT            CONNECTED           SUBSCRIBED
    BUILDING ───────▶ CONNECTING ───────▶ SUBSCRIBING ───────▶ CONSUMING
        │                 │  ▲    ◀── LOST ──  │                 │
        │                 ▼  │ RESUME          ▼      PAUSE      ▼
        │               PAUSED ◀────────────────────────────────┘
        │ STOP, FAULT     │ STOP, FAULT
        ▼                 ▼             DRAINED, DEADLINE
     DRAINING or FAILING ────────────────────────────────▶ STOPPED

Beside the lifecycle there is one :class:`consumer_framework.core.gate.Gate`. It says whether work
is taken, and every part that takes work reads it. ``PAUSED`` is the view of the broker's side: the
gate is suspended for a reason that stops consuming.

Meanwhile ``watchdog`` watches that the instance is not stuck, ``memory_relief`` and ``read_ahead``
bound the memory, ``deadline`` bounds start and drain, ``signals`` and ``control`` bring orders, and
``observe`` describes and logs it all.

Here belongs code that acts while an instance runs: it may use Twisted, asyncio and every adapter.
Decisions about a message belong to ``core``, each outside thing to an adapter, and commands that act
from another process to ``operate``, which may import ``assembly``, ``control`` and ``state_files``
only.
"""
