# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery path: the file to read first.

::

    Delivery -> decode -> handler -> Outcome -> recovery.decide -> Disposition -> settle -> record

Nothing flows back. Deciding never acts, settling never decides. A process that dies before the
settle leaves the message with the broker, which delivers it again: at least once, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .delivery import Failed, Undecodable
from .disposition import Ack, Halt, Reject, Requeue
from .recovery import decide

if TYPE_CHECKING:
    from .delivery import Delivery, Outcome
    from .disposition import Disposition
    from .ports import Acknowledger, Decoder, HandlerRunner, Recorder
    from .recovery import Policy
    from .redelivery import Unsettled


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What one delivery goes through, and what it goes through it with."""

    decode: Decoder
    handler: HandlerRunner
    policy: Policy
    acknowledger: Acknowledger
    recorder: Recorder
    unsettled: Unsettled

    async def process(self, delivery: Delivery) -> Disposition:
        """Take *delivery* from its arrival to its settle.

        A redelivery of a message that this process has run, or runs now, is settled with the
        outcome of that run.

        Returns:
            What became of it; the caller stops the instance for a :class:`.Halt`.
        """
        run = self.unsettled.claim(delivery) if delivery.redelivered else None
        if run is None:
            run = self.unsettled.begin(delivery)
            run.outcome.set_result(await self._handle(delivery))
        outcome = await run.outcome
        disposition = decide(outcome, self.policy)
        settled = self._settle(delivery, disposition)
        self.unsettled.end(run, settled=settled)
        self.recorder.settled(delivery, outcome, disposition, void=not settled)
        return disposition

    async def _handle(self, delivery: Delivery) -> Outcome:
        self.recorder.started(delivery)
        try:
            message = self.decode(delivery)
        except Exception as error:  # noqa: BLE001 -- a schema class is somebody's code too
            return Failed(error)
        if isinstance(message, Undecodable):
            return message
        return await self.handler.run(message)

    def _settle(self, delivery: Delivery, disposition: Disposition) -> bool:
        match disposition:
            case Ack() | Halt(requeue=False):
                return self.acknowledger.ack(delivery)
            case Requeue() | Halt():
                return self.acknowledger.give_back(delivery)
            case Reject():
                return self.acknowledger.reject(delivery)
