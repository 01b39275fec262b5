# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuse a message that a test publishes and nothing records.

Without a refusal the code under test would wait for a broker, or fill the outbox of the machine.
:func:`no_unmocked_publish` is for a test without pytest. The plugin of pytest uses the parts:
:func:`install` once, and :func:`watched` for each test.

``fedora_messaging.api`` is watched by wrappers of its functions. They are put there when the module
is imported, so that ``from fedora_messaging.api import publish`` gets a wrapper. The functions of
:mod:`consumer_framework.publishing` ask :data:`.mocks.refusal`.

Nothing heavy is imported here: pytest loads this module in every project of its environment.
"""

from __future__ import annotations

import functools
import inspect
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from consumer_framework.publishing import mocks
from consumer_framework.publishing.late_imports import when_imported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedora_messaging.message import Message

__all__ = ["UnmockedPublishError", "no_unmocked_publish"]

_API = "fedora_messaging.api"
# The modules between the code under test and this one.
_NOT_UNDER_TEST = (
    "consumer_framework.publishing",
    "consumer_framework.testing",
    "fedora_messaging.",
    "twisted.",
)
_CURES = """\
In a test it would wait for a broker. Choose one of these:
- Run the handler in the fixture `consumer`, or in consumer_framework.testing.Harness.
- Take the fixture `capture_outbox`, which records the messages that any code publishes.
- Publish in the block `with fedora_messaging.testing.mock_sends(...):`.
- To send the message to a broker of yours, mark the test with @pytest.mark.unmocked_publish."""


class UnmockedPublishError(BaseException):
    """The code under test published a message that nothing records.

    It is no ``Exception``, so that code that goes on after a failed publish, or tries again, does
    not hide it.
    """


# The refusals of the test that runs now; None outside a test.
_refused: list[str] | None = None


@contextmanager
def no_unmocked_publish() -> Iterator[None]:
    """Let the block fail if it publishes a message that nothing records.

    For a test without pytest, whose plugin does the same::

        class SampleTest(unittest.TestCase):
            def setUp(self):
                self.enterContext(no_unmocked_publish())

    Raises:
        UnmockedPublishError: The block published such a message. The call itself raises it, and so
            does the end of the block, in case that the code under test caught it.
    """
    uninstall = install()
    try:
        with watched() as refused:
            yield
    finally:
        uninstall()
    if refused:
        raise UnmockedPublishError(explained(refused))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Refuse unmocked messages while the block runs.

    Yields:
        A line for each message that was refused so far.
    """
    global _refused  # noqa: PLW0603 -- one test runs at a time
    before, _refused = _refused, []
    try:
        yield _refused
    finally:
        _refused = before


def explained(refused: list[str]) -> str:
    """Return the text for a person who did not expect that a message is refused."""
    return "\n".join(["The test published a message that nothing records:", *refused, _CURES])


def install() -> Callable[[], None]:
    """Watch the functions that publish; return a function that ends it."""
    before, mocks.refusal = mocks.refusal, refuse
    give_up = when_imported(_API, _wrap)

    def uninstall() -> None:
        mocks.refusal = before
        give_up()
        if before is None and _API in sys.modules:
            _unwrap(sys.modules[_API])

    return uninstall


def refuse(function: str, message: Message) -> None:
    """Refuse *message* of the function with that name, if a test runs that is watched.

    Raises:
        UnmockedPublishError: The message is refused.
    """
    __tracebackhide__ = True
    if _refused is None:
        return
    line = f"  topic {message.topic!r}, by {function}, at {_place()}"
    _refused.append(line)
    raise UnmockedPublishError(explained([line]))


def _place() -> str:
    """Name the line of the code under test."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_NOT_UNDER_TEST):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def _wrap(module: Any) -> None:
    """Put wrappers in the place of the functions of ``fedora_messaging.api`` that publish."""
    if hasattr(module.publish, "_is_watched"):
        return
    real_wrapper = module._twisted_publish_wrapper  # noqa: SLF001 -- mock_sends replaces it
    real_service = module.service.FedoraMessagingServiceV2
    publish, twisted_publish = module.publish, module.twisted_publish

    @functools.wraps(publish)
    def watched_publish(message: Message, *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if module._twisted_publish_wrapper is real_wrapper:  # noqa: SLF001
            refuse("fedora_messaging.api.publish", message)
        return publish(message, *args, **options)

    @functools.wraps(twisted_publish)
    def watched_twisted_publish(message: Message, *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        service = module._twisted_service  # noqa: SLF001 -- the function sends by it
        if service is None or isinstance(service, real_service):
            refuse("fedora_messaging.api.twisted_publish", message)
        return twisted_publish(message, *args, **options)

    watched_publish._is_watched = True  # type: ignore[attr-defined]  # noqa: SLF001
    module.publish, module.twisted_publish = watched_publish, watched_twisted_publish


def _unwrap(module: Any) -> None:
    if hasattr(module.publish, "_is_watched"):
        module.publish = module.publish.__wrapped__
        module.twisted_publish = module.twisted_publish.__wrapped__
