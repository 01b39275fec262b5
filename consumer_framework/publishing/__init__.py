# SPDX-License-Identifier: GPL-2.0-or-later
"""Publishing: a message that was accepted is sent, once or more, whatever dies in between.

::

    publish(message, ordering_key=None)     from a handler, a coroutine, a web application, a script
       │ validate, serialise, check the size          errors are raised here: nothing is stored
       ▼
    outbox: one table in the database of the caller      in the caller's transaction, or an own file
       ▼ the relay claims rows in order, sends batches, marks rows
    messenger: amqp, fedora, kombu, proton, stomp, fedmsg, dummy, capture

- :mod:`.message` turns a message into bytes and finds its faults.
- ``store`` is the table of the outbox, in SQLite, PostgreSQL or MariaDB.
- ``outbox`` is the interface of applications: ``publish``, transactions.
- ``relay`` sends from the store through a messenger, and marks. Nothing else sends.
- :mod:`.messengers` are the ways to send.
- ``integrations`` bind the outbox to SQLAlchemy, Django, WSGI, ASGI, and to PDC's settings.

Nothing here imports the runtime: web applications and scripts use it without a reactor.
"""
