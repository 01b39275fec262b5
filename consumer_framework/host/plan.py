# SPDX-License-Identifier: GPL-2.0-or-later
"""What an instance is going to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.handler import Handler
    from consumer_framework.core.recovery import Policy
    from consumer_framework.core.settings import Recovery


@dataclass(frozen=True, slots=True)
class Plan:
    """A handler to be made, and how its failures are answered.

    Attributes:
        name: How logs call the handler.
        factory: Makes it, on the event loop's thread; raises what the author's code raises.
        policy: Decides.
        recovery: The settings that the policy came from.
    """

    name: str
    factory: Callable[[], Handler]
    policy: Policy
    recovery: Recovery
