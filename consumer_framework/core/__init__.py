# SPDX-License-Identifier: GPL-2.0-or-later
r"""The meaning of a delivery, the decision about it, and the steps that settle it.

This package has no I/O: no reactor, no event loop, no clock, no random source, no broker library,
no systemd and no command line (import-linter checks it). Things of the outside world, time
included, come in through the Protocols of :mod:`.ports`. Begin to read at :mod:`.pipeline`.

The life of a delivery
----------------------

::

    basic.deliver
         │
         ▼            rate, order       a slot is free
    ┌─────────┐       ┌────────┐       ┌─────────┐
    │ arrived │ ────▶ │ waits  │ ────▶ │  runs   │ ──▶ outcome ──▶ decide() ──▶ disposition
    └─────────┘       └────────┘       └─────────┘                                  │
                        ▲    ▲                                                      │ settle
                        │    └── Hold: unacknowledged, in memory, until it is due ◀─┤
                        └─────── Defer: a row of the store, until it is due ◀───────┤
                                                                                    │
         ack  ◀── Ack, Halt                        GiveBack, Requeue ──▶ nack, reject(requeue)
         ack  ◀── Quarantine: a row of the store              Reject ──▶ reject

Each step has a file. :mod:`.delivery` has the values: a :class:`.Delivery` goes in, an outcome
comes out. :mod:`.intake` has the places where a delivery waits. :mod:`.recovery` decides, with the
:class:`.History` of :mod:`.attempt` and the limits of :mod:`.limits`. :mod:`.disposition` has the
dispositions, and one table that says how each is settled. :mod:`.settler` follows that table.
:mod:`.memory` recognises messages that come back.

A consumer may have several routes for one message: :mod:`.routed` runs them, and :mod:`.recovery`
makes one disposition of the decisions about each. :mod:`.topics` matches topics with patterns.

Besides, for operators: :mod:`.conditions` selects messages, and :mod:`.ramp` decides how far a
replay of many messages goes.

Nothing flows back. A handler cannot settle, a decision cannot act, and a settle cannot decide.

The crash points
----------------

A settle makes the durable effect first, and answers the broker afterwards. Between any two steps
the process may die, and the broker then delivers every unacknowledged message again:

==========================================  ====================================================
the process dies                            then
==========================================  ====================================================
before the handler begins                   the redelivery runs
in the handler                              the flight recorder counts a crash; the redelivery
                                            runs alone, and is quarantined before its next run
                                            after ``crash_attempts`` crashes
in the handler, after a step of it          the redelivery skips the step; it repeats one that was
                                            done and not committed
after the handler, before its settle        the redelivery runs a second time
while the store commits                     the commit is there or not, as a whole; then as in
                                            one of the two lines around this one
after the commit, before the ack            the redelivery finds the row, and is acknowledged
                                            without a run
after the ack was written, before the       the broker delivers the message again, to a process
broker read it                              that does not remember it: it runs a second time, or
                                            finds its row
after the broker read the ack               nothing comes back
while a delivery is held                    the redelivery runs, and its attempts begin anew
while a row of the store runs               the row is still there, and is due again
==========================================  ====================================================

So a message may run twice, and is never lost: at least once, always. A connection that is lost
without the process is milder: the process remembers its runs and its acknowledgements
(:mod:`.memory`), and settles redeliveries with the outcomes that it has.

The life of an instance
-----------------------

:mod:`.lifecycle` is the table of it. In short::

    BUILDING ──▶ CONNECTING ──▶ SUBSCRIBING ──▶ CONSUMING
                   ▲   ▲             ▲  │           │
                   │   └── lost ─────│──┴───────────┤
                   │                 │   pause      │
                   └─── resume ── PAUSED ◀──────────┘

    each of these ── a signal ──▶ DRAINING ──┬── drained, or its deadline ──▶ STOPPED
                └─── a fault ──▶ FAILING ────┘

:mod:`.gate` says whether an instance takes work at all, and why it does not. :mod:`.health` judges
whether it does its work, for the watchdog of the service manager, and how well, for operators:
with :mod:`.lag`, the age of the oldest message, and :mod:`.loss`, the forecast of the next loss.
"""
