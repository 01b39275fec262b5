# SPDX-License-Identifier: GPL-2.0-or-later
"""The routes of a consumer's class, and the table that finds those of a message."""

import anitya_schema
import pytest
from fedora_messaging.message import Message

from consumer_framework import BatchConsumer, Consumer, on, on_message, on_topic
from consumer_framework.author.consumer import routes_of, table_of
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.runtime.assembly.loader import Target, checked, find_in_file


class Base(Consumer):
    @on_topic("a.#")
    def first(self, message): ...

    @on_topic("b.*", "c")
    async def second(self, message): ...


def names(kind):
    return [route.name for route in routes_of(kind)]


def found(kind, topic, message_class=Message, prefix=""):
    table = table_of(kind, prefix)
    assert table is not None
    return table.find(topic, message_class)


def test_a_class_has_its_routes_in_the_order_of_their_definition():
    assert names(Base) == ["first", "second"]
    assert found(Base, "a.b") == ("first",)
    assert found(Base, "c") == ("second",)
    assert found(Base, "d") == ()


def test_a_subclass_inherits_routes_and_adds_its_own():
    class More(Base):
        @on_topic("#")
        def third(self, message): ...

    assert names(More) == ["first", "second", "third"]
    assert names(Base) == ["first", "second"]
    assert found(More, "a") == ("first", "third")


def test_a_method_that_overrides_a_route_keeps_its_patterns_or_has_its_own():
    class Kept(Base):
        def first(self, message): ...

    class Other(Base):
        @on_topic("z")
        def first(self, message): ...

    assert found(Kept, "a.b") == ("first",)
    assert found(Other, "a.b") == ()
    assert found(Other, "z") == ("first",)
    assert names(Other) == ["first", "second"]


def test_a_subclass_removes_a_route_with_none():
    class Less(Base):
        first = None  # type: ignore[assignment]

    assert names(Less) == ["second"]


def test_a_class_beside_the_base_class_may_bring_routes():
    class Beside:
        @on_topic("z")
        def last(self, message): ...

    class Both(Beside, Base):
        pass

    assert sorted(names(Both)) == ["first", "last", "second"]


def test_a_route_may_have_other_decorators_on_either_side():
    class Translating(Consumer):
        @on(OSError, then="retry")
        @on_topic("inner")
        def inner(self, message): ...

        @on_topic("outer")
        @on(OSError, then="retry")
        def outer(self, message): ...

    assert found(Translating, "inner") == ("inner",)
    assert found(Translating, "outer") == ("outer",)


def test_topics_match_with_and_without_the_prefix_of_the_configuration():
    prefix = "org.fedoraproject.prod"

    class Builds(Consumer):
        @on_topic("buildsys.build")
        def short(self, message): ...

        @on_topic("org.fedoraproject.*.buildsys.build")
        def long(self, message): ...

    assert found(Builds, f"{prefix}.buildsys.build", prefix=prefix) == ("short", "long")
    assert found(Builds, "buildsys.build", prefix=prefix) == ("short",)
    assert found(Builds, f"{prefix}.buildsys.build") == ("long",)
    assert found(Builds, f"{prefix}.buildsys.build", prefix=f"{prefix}.") == ("short", "long")


def test_a_message_class_brings_its_subclasses():
    class Project(anitya_schema.ProjectVersionUpdated):
        pass

    class Watching(Consumer):
        @on_message(anitya_schema.ProjectVersionUpdated)
        def updated(self, message): ...

        @on_message(Message)
        def anything(self, message): ...

    assert found(Watching, "t", Project) == ("updated", "anything")
    assert found(Watching, "t", Message) == ("anything",)


def test_a_route_with_both_decorators_takes_messages_that_fit_both():
    class Narrow(Consumer):
        @on_topic("a.#")
        @on_message(anitya_schema.ProjectVersionUpdated)
        def updated(self, message): ...

    assert found(Narrow, "a.b", anitya_schema.ProjectVersionUpdated) == ("updated",)
    assert found(Narrow, "a.b", Message) == ()
    assert found(Narrow, "b", anitya_schema.ProjectVersionUpdated) == ()


def test_the_handle_of_a_class_takes_the_messages_without_a_route():
    class Rest(Base):
        def handle(self, message): ...

    assert found(Rest, "a") == ("first",)
    assert found(Rest, "z") == ("",)


def test_a_consumer_without_routes_has_no_table():
    class Plain(Consumer):
        def handle(self, message): ...

    assert table_of(Plain, "") is None
    assert table_of(print, "") is None


def refusal(source: str, tmp_path) -> str:
    file = tmp_path / "consumer.py"
    head = "from consumer_framework import BatchConsumer, Consumer, on_message, on_topic\n"
    file.write_text(head + source)
    with pytest.raises(ConfigurationError) as raised:
        find_in_file(f"{file}:C", "the.toml")
    assert raised.value.exit_code == 78
    return str(raised.value)


@pytest.mark.parametrize("pattern", ["foo*", "a.b#", "a. b"])
def test_a_pattern_without_a_meaning_is_an_error_with_class_method_and_cure(tmp_path, pattern):
    source = f"class C(Consumer):\n    @on_topic('a', {pattern!r})\n    def built(self, m): ...\n"
    text = refusal(source, tmp_path)
    assert text.startswith(f"the.toml: callback: @on_topic of C.built: {pattern!r} ")
    assert "; " in text


@pytest.mark.parametrize(
    ("decorator", "problem"),
    [
        ("@on_topic()", "@on_topic of C.built names nothing"),
        ("@on_message()", "@on_message of C.built names nothing"),
        ("@on_message(int)", "<class 'int'> is no message class"),
        ("@on_message('Message')", "'Message' is no message class"),
        ("@on_topic(7)", "7 is a int, not text"),
    ],
)
def test_a_decorator_without_a_meaning_is_an_error(tmp_path, decorator, problem):
    source = f"class C(Consumer):\n    {decorator}\n    def built(self, m): ...\n"
    assert problem in refusal(source, tmp_path)


def test_a_method_with_a_purpose_of_its_own_is_no_route(tmp_path):
    source = "class C(Consumer):\n    @on_topic('a')\n    def handle(self, m): ...\n"
    assert "C.handle is decorated as a route" in refusal(source, tmp_path)


def test_all_faults_of_a_class_are_told_at_once(tmp_path):
    source = "class C(Consumer):\n    @on_topic('a*', 'b#')\n    def built(self, m): ...\n"
    assert len(refusal(source, tmp_path).splitlines()) == 2


def test_a_decorated_object_that_is_no_method_is_an_error():
    with pytest.raises(TypeError, match="decorates methods, and this is a staticmethod"):
        on_topic("a")(staticmethod(print))


def test_a_batch_consumer_has_no_routes(tmp_path):
    source = (
        "class C(BatchConsumer):\n    def handle_batch(self, messages): ...\n"
        "    @on_topic('a')\n    def built(self, m): ...\n"
    )
    text = refusal(source, tmp_path)
    assert "C takes batches, and has the routes built" in text
    assert "subclass Consumer" in text


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("def built(self): ...", "has a built(self) that cannot be called"),
        ("def built(self, m):\n        yield", "has a built() that contains yield"),
    ],
)
def test_a_route_that_cannot_take_a_message_is_refused(tmp_path, method, problem):
    source = f"class C(Consumer):\n    @on_topic('a')\n    {method}\n"
    assert problem in refusal(source, tmp_path)


def test_a_class_whose_last_route_is_removed_is_refused():
    class Nothing(Base):
        first = None  # type: ignore[assignment]
        second = None  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match=r"does not implement handle\(\).*@on_topic"):
        checked(Target("m:Nothing", "the.toml", Nothing))
    with pytest.raises(TypeError, match="neither a handle"):
        Nothing({})


def test_a_class_with_routes_alone_is_accepted():
    checked(Target("m:Base", "the.toml", Base))
    with pytest.raises(TypeError, match="no route for x"):
        Base({}).handle(Message(topic="x"))


def test_a_batch_consumer_without_routes_is_made_as_before():
    class Batches(BatchConsumer):
        def handle_batch(self, messages): ...

    assert routes_of(Batches) == ()
