# SPDX-License-Identifier: GPL-2.0-or-later
"""Let ``fedora_messaging.testing.mock_sends`` see the messages of :func:`.publish`, too.

It puts a mock in the place of the function that ``fedora_messaging.api.publish`` calls, and looks
at the mock's calls at its end. While the mock is there, an outbox calls it, and stores nothing.

A test may also refuse the messages that nothing records: :data:`refusal`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedora_messaging.message import Message

# Called with the name of the function and its message, before a message goes to the outbox that the
# configuration file describes. It raises to refuse the message. Only tests set it.
refusal: Callable[[str, Message], None] | None = None


def mocked_publish() -> Callable[[Message, str | None], Any] | None:
    """Return the mock in the place of fedora-messaging's publish; None if there is none.

    Nothing is imported for that: without the modules there is no mock.
    """
    api: Any = sys.modules.get("fedora_messaging.api")
    mock: Any = sys.modules.get("unittest.mock")
    if api is None or mock is None:
        return None
    publish: Any = api._twisted_publish_wrapper  # noqa: SLF001 -- as mock_sends replaces it
    return publish if isinstance(publish, mock.NonCallableMock) else None
