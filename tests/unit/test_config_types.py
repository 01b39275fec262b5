# SPDX-License-Identifier: GPL-2.0-or-later
"""A consumer's type argument is the type of its configuration when it runs, too."""

from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar

import pytest
from fedora_messaging.message import Message
from pydantic import BaseModel

from consumer_framework import BatchConsumer, Consumer
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.testing import Harness, message_of

ConfigT = TypeVar("ConfigT")
OtherT = TypeVar("OtherT")


class Model(BaseModel):
    number: int = 3


@dataclass
class Data:
    number: int = 3


class Table(TypedDict, total=False):
    number: int


class Handles:
    config: Any

    def handle(self, _message):
        self.seen.append(self.config)

    @property
    def seen(self):
        return SEEN


SEEN: list[Any] = []


class OfModel(Handles, Consumer[Model]):
    pass


class OfData(Handles, Consumer[Data]):
    pass


class OfBatch(BatchConsumer[Model]):
    def handle_batch(self, _messages):
        SEEN.append(self.config)


class OfString(Handles, Consumer["Later"]):
    pass


class OfNested(Handles, Consumer["OfNested.Config"]):
    class Config(BaseModel):
        number: int = 3


class OfOwnName(Handles, Consumer["OfOwnName.Settings"]):
    class Settings(BaseModel):
        number: int = 3


class Later(BaseModel):
    number: int = 3


class Shared(Handles, Consumer[ConfigT]):
    pass


class OfShared(Shared[Model]):
    pass


class Below(OfShared):
    pass


class TwoArguments(Handles, Consumer[ConfigT], Generic[OtherT, ConfigT]):
    pass


class OfTwoArguments(TwoArguments[int, Model]):
    pass


class Middle(Shared[ConfigT], Generic[ConfigT]):
    pass


class OfMiddle(Middle[Data]):
    pass


class Replaced(OfModel):
    class Config(BaseModel):
        number: int = 4
        more: bool = True


class OfTable(Handles, Consumer[Table]):
    pass


@pytest.mark.parametrize(
    ("consumer", "config"),
    [
        (OfModel, Model(number=5)),
        (OfData, Data(number=5)),
        (OfBatch, Model(number=5)),
        (OfString, Later(number=5)),
        (OfNested, OfNested.Config(number=5)),
        (OfOwnName, OfOwnName.Settings(number=5)),
        (OfShared, Model(number=5)),
        (Below, Model(number=5)),
        (OfTwoArguments, Model(number=5)),
        (OfMiddle, Data(number=5)),
        (Replaced, Replaced.Config(number=5)),
        (OfTable, {"number": 5}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_configuration_is_parsed_as_its_type(consumer, config):
    SEEN.clear()
    with Harness(consumer, config={"number": "5" if consumer is OfModel else 5}) as harness:
        harness.deliver(message_of(Message))
        # A batch waits for more.
        harness.advance("10s")
        assert len(harness.acked) == 1
    [seen] = SEEN
    assert seen == config
    assert type(seen) is type(config)


@pytest.mark.parametrize("argument", [dict[str, Any], Any, dict, None, ConfigT])
def test_a_type_argument_that_is_no_type_of_a_configuration_leaves_a_dict(argument):
    class Free(Handles, Consumer[argument]):  # type: ignore[valid-type]
        pass

    SEEN.clear()
    with Harness(Free, config={"any": "thing"}) as harness:
        harness.deliver(message_of(Message))
    assert SEEN == [{"any": "thing"}]


def test_a_consumer_without_a_type_argument_has_a_dict():
    class Free(Handles, Consumer):
        pass

    assert Free.Config is None
    SEEN.clear()
    with Harness(Free, config={"any": "thing"}) as harness:
        harness.deliver(message_of(Message))
    assert SEEN == [{"any": "thing"}]


def test_the_type_is_the_attribute_config():
    assert OfModel.Config is OfShared.Config is Below.Config is Model


@pytest.mark.parametrize("consumer", [OfModel, OfBatch, OfString, OfShared])
def test_a_configuration_that_does_not_fit_is_refused(consumer):
    with pytest.raises(ConfigurationError, match=r"consumer_config\.nubmer: unknown key"):
        Harness(consumer, config={"nubmer": 5})


def test_a_type_argument_of_a_wrong_kind_is_refused():
    class Wrong(Handles, Consumer[int]):
        pass

    with pytest.raises(ConfigurationError, match="has a Config of the wrong kind"):
        Harness(Wrong)


def test_a_name_that_is_nowhere_is_refused_with_its_cure():
    class Lost(Handles, Consumer["Nowhere"]):  # type: ignore[name-defined]
        pass

    with pytest.raises(
        ConfigurationError, match='is a Consumer\\["Nowhere"\\], and name'
    ) as raised:
        Harness(Lost)
    assert "define that class in the same module" in str(raised.value)
