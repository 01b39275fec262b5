# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixtures, and the hooks that fail a test whose messages nothing records."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest

from consumer_framework.testing import unmocked

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from consumer_framework.testing import CapturedMessages, ConsumerFactory, Harness
    from consumer_framework.testing.broker import Broker
    from consumer_framework.testing.broker.exchange import OwnExchange

_INI = "consumer_framework_unmocked_publish"
_MARKER = "unmocked_publish"
_FIXTURES = {"capture_outbox", "consumer", "rabbitmq", "rabbitmq_broker"}
# Modules that the plugin itself imports; a project that imports another one uses the package.
_OWN = {
    "consumer_framework",
    "consumer_framework.publishing",
    "consumer_framework.publishing.late_imports",
    "consumer_framework.publishing.mocks",
    "consumer_framework.pytest_plugin",
    "consumer_framework.pytest_plugin.fixtures",
    "consumer_framework.testing",
    "consumer_framework.testing.unmocked",
}
_watches = pytest.StashKey[bool]()


def _hides(failure: pytest.ExceptionInfo[BaseException]) -> bool:
    """Hide the frames of the hooks, but for a failure that is their own."""
    return not failure.errisinstance(pytest.fail.Exception)


@pytest.fixture
def consumer() -> Iterator[ConsumerFactory]:
    """Run a consumer as an instance would, without a broker and without waiting.

    ``consumer(Sample, config={...}, settings={...})`` returns a running ``Harness``:
    ``deliver(message)`` returns a disposition. It stops at the end of the test, and an error of the
    consumer's ``teardown`` is an error of the test.
    """
    from consumer_framework.testing import Harness  # noqa: PLC0415 -- late: see the package

    with ExitStack() as stack:

        def start(consumer: Any, **options: Any) -> Harness:
            return stack.enter_context(Harness(consumer, **options))

        yield cast("ConsumerFactory", start)


@pytest.fixture
def capture_outbox() -> Iterator[CapturedMessages]:
    """Record the messages that any code publishes, in place of storing or sending them."""
    from consumer_framework.testing import capture_outbox  # noqa: PLC0415 -- late: see the package

    with capture_outbox() as captured:
        yield captured


@pytest.fixture(scope="session")
def rabbitmq_broker() -> Iterator[Broker]:
    """Start a private RabbitMQ node for all tests of the session, and stop it at its end.

    Where the program is missing, the tests are skipped; with ``CI=true`` they fail.
    """
    from consumer_framework.testing.broker import Broker  # noqa: PLC0415 -- late: see the package

    if lacking := Broker.missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    with Broker() as broker:
        yield broker


@pytest.fixture
def rabbitmq(rabbitmq_broker: Broker) -> Iterator[OwnExchange]:
    """Give the test an exchange of its own on a real broker.

    It publishes, subscribes, and runs consumers in processes of their own: see ``OwnExchange``.
    """
    from consumer_framework.testing.broker.exchange import OwnExchange  # noqa: PLC0415 -- as above

    with OwnExchange(rabbitmq_broker) as exchange:
        yield exchange


# The guard.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the setting of the guard."""
    text = (
        "treatment of a message that a test publishes and nothing records: 'fail', or 'allow'. "
        "Without a setting, such a test fails in a project that imports consumer_framework."
    )
    parser.addini(_INI, text, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and begin to watch the functions that publish."""
    text = (
        f"{_MARKER}: the test may publish messages for real, which consumer_framework refuses else"
    )
    config.addinivalue_line("markers", text)
    setting = config.getini(_INI)
    if setting not in ("", "fail", "allow"):
        raise pytest.UsageError(f"{_INI} = {setting}: it is 'fail' or 'allow'")
    config.stash[_watches] = setting == "fail"
    if setting != "allow":
        config.add_cleanup(unmocked.install())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Watch the tests of a project that uses this package, and of no other."""
    if config.getini(_INI) == "":
        takes = any(_FIXTURES & set(getattr(item, "fixturenames", ())) for item in items)
        config.stash[_watches] = takes or _is_imported()


def _is_imported() -> bool:
    return any(name.startswith("consumer_framework.") and name not in _OWN for name in sys.modules)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the fixtures of a test."""
    __tracebackhide__ = _hides
    return (yield from _watching(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch a test."""
    __tracebackhide__ = _hides
    return (yield from _watching(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the end of the fixtures of a test."""
    __tracebackhide__ = _hides
    return (yield from _watching(item))


def _watching(item: pytest.Item) -> Generator[None, object, object]:
    __tracebackhide__ = _hides
    if item.get_closest_marker(_MARKER) or not item.config.stash[_watches]:
        return (yield)
    with unmocked.watched() as refused:
        try:
            result = yield
        except BaseException as error:
            if refused and not isinstance(error, unmocked.UnmockedPublishError):
                error.add_note(unmocked.explained(refused))
            raise
    if refused:
        pytest.fail(unmocked.explained(refused), pytrace=False)
    return result
