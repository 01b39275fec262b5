# SPDX-License-Identifier: GPL-2.0-or-later
"""A callback that obeys the body, for `fedora-messaging consume` and `fm-consumer run`.

It appends `run ID` and `done ID` to the file that BENCH_NOTES names.
"""

import os
import signal
import time
from typing import Any

from fedora_messaging.exceptions import Nack

NOTES = os.open(os.environ["BENCH_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(event: str, message: Any) -> None:
    """Write a line at once: the process may be killed right after."""
    os.write(NOTES, f"{event} {message.id}\n".encode())


def callback(message: Any) -> None:
    """Handle a message."""
    note("run", message)
    match message.body.get("do"):
        case "nack":
            raise Nack
        case "raise":
            raise ValueError("poison")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            time.sleep(message.body["seconds"])
    note("done", message)
