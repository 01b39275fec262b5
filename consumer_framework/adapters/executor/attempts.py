# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the author's code, from the bytes to its outcome.

Decoding is part of it: the flight recorder knows of the message from the first byte on. Runs where
the handler does: in a thread of a slot, or on the event loop, but for the decoding of large bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from fedora_messaging import exceptions as upstream

from consumer_framework.core.batch import Batch
from consumer_framework.core.delivery import Failed, Outcome, Skipped, Succeeded, Undecodable
from consumer_framework.core.errors import Drop, Halt, Retry, Skip

from .returns import Returns, is_later

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.ports import Decoder, FlightRecorder

SUCCEEDED = Succeeded()

# Bytes. A larger body is not decoded on the event loop; a smaller one takes less than a thread.
INLINE = 1 << 14


@dataclass(frozen=True, slots=True)
class Later:
    """What a plain function returned is to be awaited on the event loop."""

    result: Coroutine[Any, Any, Result]


T = TypeVar("T")

# One outcome for each delivery; SUCCEEDED alone where all of them are.
Result: TypeAlias = "Succeeded | list[Outcome] | Later"


def signal_of(error: BaseException) -> BaseException:
    """Return the framework's signal for one of fedora-messaging's; any other error unchanged."""
    match error:
        case upstream.Nack():
            return Retry(str(error))
        case upstream.Drop():
            return Drop(str(error))
        case upstream.HaltConsumer():
            return Halt(error.exit_code, error.reason or "", requeue=error.requeue)
    return error


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a handler that raised *error*; sys.exit() is a failure like any other."""
    if isinstance(error, Skip):
        return Skipped(error.reason)
    return Failed(signal_of(error))


@dataclass(frozen=True, slots=True)
class Attempts:
    """Runs a handler on deliveries.

    Attributes:
        call: Takes one message, or a :class:`.Batch` of them.
        decode: Makes a message of a delivery.
        flight: Told when the handler starts, and when it is done.
        returns: Judges what *call* returns.
        is_batch: What *call* takes.
    """

    call: Callable[[Any], Any]
    decode: Decoder
    flight: FlightRecorder
    returns: Returns
    is_batch: bool = False

    def run(self, deliveries: Sequence[Delivery]) -> Result:
        """Run a plain handler."""
        if self.is_batch:
            return self._run_batch(deliveries)
        (delivery,) = deliveries
        place = self.flight.took_off(delivery)
        try:
            message = self.decode(delivery)
        except Exception as error:  # noqa: BLE001 -- whatever a publisher or a schema class did
            self.flight.landed(place)
            return [Undecodable(error)]
        try:
            returned = self.call(message)
            if returned is not None:
                if is_later(returned):
                    return Later(self._finish_later(returned, place))
                self.returns.check(returned)
        except BaseException as error:  # noqa: BLE001 -- the author's code
            self.flight.landed(place)
            return [outcome_of(error)]
        self.flight.landed(place)
        return SUCCEEDED

    async def run_coroutine(self, deliveries: Sequence[Delivery]) -> Result:
        """Run a coroutine handler, in a task of its own: one that cancels it cancels no slot."""
        if self.is_batch:
            return await self._run_batch_coroutine(deliveries)
        (delivery,) = deliveries
        place = self.flight.took_off(delivery)
        try:
            if len(delivery.body) > INLINE:
                message = await in_thread(lambda: self.decode(delivery))
            else:
                message = self.decode(delivery)
        except Exception as error:  # noqa: BLE001 -- as above
            self.flight.landed(place)
            return [Undecodable(error)]
        try:
            returned = await self.call(message)
            if returned is not None:
                await self.returns.finish(returned)
        except BaseException as error:  # noqa: BLE001 -- as above; SystemExit would end the loop
            return [outcome_of(error)]
        finally:
            self.flight.landed(place)
        return SUCCEEDED

    async def _finish_later(self, returned: Any, place: int) -> Result:
        try:
            await self.returns.finish(returned)
        except BaseException as error:  # noqa: BLE001 -- as above
            return [outcome_of(error)]
        finally:
            self.flight.landed(place)
        return SUCCEEDED

    def _run_batch(self, deliveries: Sequence[Delivery]) -> Result:
        flying = _Flying(self, deliveries)
        try:
            returned = self.call(flying.batch) if flying.batch else None
            if is_later(returned):
                return Later(self._land_later(flying, returned))
            self.returns.check(returned)
        except BaseException as error:  # noqa: BLE001 -- as above
            return flying.land(error)
        return flying.land(None)

    async def _run_batch_coroutine(self, deliveries: Sequence[Delivery]) -> Result:
        if sum(len(delivery.body) for delivery in deliveries) > INLINE:
            flying = await in_thread(lambda: _Flying(self, deliveries))
        else:
            flying = _Flying(self, deliveries)
        try:
            if flying.batch:
                await self.returns.finish(await self.call(flying.batch))
        except BaseException as error:  # noqa: BLE001 -- as above
            return flying.land(error)
        return flying.land(None)

    async def _land_later(self, flying: _Flying, returned: Any) -> Result:
        try:
            await self.returns.finish(returned)
        except BaseException as error:  # noqa: BLE001 -- as above
            return flying.land(error)
        return flying.land(None)


class _Flying:
    """A batch that is in the handler."""

    def __init__(self, attempts: Attempts, deliveries: Sequence[Delivery]) -> None:
        self._flight = attempts.flight
        self._outcomes: list[Outcome] = [SUCCEEDED] * len(deliveries)
        self._numbers: list[int] = []
        self._places: list[int] = []
        messages = []
        for number, delivery in enumerate(deliveries):
            place = self._flight.took_off(delivery)
            try:
                messages.append(attempts.decode(delivery))
            except Exception as error:  # noqa: BLE001 -- as above
                self._flight.landed(place)
                self._outcomes[number] = Undecodable(error)
            else:
                self._numbers.append(number)
                self._places.append(place)
        self.batch = Batch(messages)

    def land(self, error: BaseException | None) -> Result:
        """Note that the handler is done, or has raised *error*."""
        for place in self._places:
            self._flight.landed(place)
        for index, number in enumerate(self._numbers):
            own = self.batch.error_of(index) or error
            if own is not None:
                self._outcomes[number] = outcome_of(own)
        is_plain = all(outcome is SUCCEEDED for outcome in self._outcomes)
        return SUCCEEDED if is_plain else self._outcomes


async def in_thread(function: Callable[[], T]) -> T:
    """Run *function* in a thread of its own, to its end.

    A caller that is cancelled meanwhile is so at its next ``await``. Nobody waits for the thread
    when the process ends.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        answer = returned(function)
        # The loop may be closed by now, where the drain was cut short.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set_result, answer)

    try:
        threading.Thread(target=run, name="decoding", daemon=True).start()
    except RuntimeError:
        # There are as many threads as there may be.
        return function()
    was_cancelled = False
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            was_cancelled = True
    value, error = done.result()
    task = asyncio.current_task()
    if was_cancelled and task is not None:
        task.cancel()
    if error is not None:
        raise error
    result: T = value
    return result


async def caught(outcome: Awaitable[Any]) -> BaseException | None:
    """Return what *outcome* raises: a SystemExit that leaves a task ends the event loop."""
    try:
        await outcome
    except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
        return error
    return None


def returned(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what *function* returns, or what it raises."""
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 -- as above
        return None, error
