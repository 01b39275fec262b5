# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker: one connection, one channel for each queue, and what the channels are told.

- :mod:`.connection` connects, by way of fedora-messaging's service, and connects again;
- :mod:`.session` is what the host has of all this, over all connections;
- :mod:`.upkeep` keeps every queue subscribed on whatever connection there is;
- :mod:`.consumers` has the consumer of each queue;
- :mod:`.confirmation` asks whether the broker still has every consumer;
- :mod:`.channels` is the :class:`.Acknowledger`;
- :mod:`.inspection` looks at the broker for ``fm-consumer check``, and changes nothing;
- :mod:`.faults` says in one line what the broker refused.
"""

from .channels import Channels
from .presence import Confirmation
from .session import Listener, Session

__all__ = ["Channels", "Confirmation", "Listener", "Session"]
