# SPDX-License-Identifier: GPL-2.0-or-later
"""AMQP 0-9-1: the one connection of an instance, its consumers, and its acknowledgements.

An instance has one connection at a time. When it ends, :mod:`.connection` opens another one, at the
same broker or the next one of the list. :mod:`.session` outlives connections: on each it subscribes
to every queue, as the states in :mod:`.session_state` say. :mod:`.consumers` has a channel with a
consumer for each queue.

Channels are numbered upwards for the life of the process. This number is the *generation* of a
delivery. A delivery can be settled on the channel that it came from, and nowhere else (AMQP 0-9-1,
section 1.8.3.13). When that channel is gone, the broker delivers the message again, and a settle of
the older delivery is void. :mod:`.channels`, which is the :class:`.Acknowledger`, says so by
returning False; nobody has to watch connections in order to settle. A consumer can be canceled and
started again on its channel, so a pause makes no settle void.

:mod:`.frames` reads deliveries out of the stream of bytes; pika does everything else of the
protocol. :mod:`.presence` asks the broker whether it still has every consumer. :mod:`.faults` puts
refusals of the broker into words. :mod:`.inspection` looks at the broker for ``fm-consumer check``,
and changes nothing.

Nothing here chooses the disposition of a message, runs a handler, or knows the store. Events go to
a :class:`.Listener`, orders come as method calls. All of it runs on the reactor's thread.
"""

from .channels import Channels
from .presence import PresenceCheck
from .session import Listener, Session

__all__ = ["Channels", "Listener", "PresenceCheck", "Session"]
