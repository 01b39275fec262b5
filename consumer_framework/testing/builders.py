# SPDX-License-Identifier: GPL-2.0-or-later
"""Build valid messages of any message class, from its JSON schemas.

:func:`message_of` builds one plain message, and needs no further package::

    message = message_of(BuildStateChangeV1, name="kernel", new=1)

:func:`messages` is a strategy of hypothesis, the extra ``testing``::

    @given(messages(BuildStateChangeV1, name=st.sampled_from(["kernel", "bash"])))
    def test_a_build_of_any_form_is_handled(message): ...
"""

from __future__ import annotations

import math
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from fedora_messaging import message as upstream
from fedora_messaging.message import Message
from jsonschema import ValidationError

from consumer_framework.schemas import validate

from .pattern_texts import matching_texts
from .schema_values import Choices, NoValueError, SchemaValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from .schema_values import Schema

__all__ = ["message_of", "messages"]

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_NOTHING: Mapping[str, Any] = {}
# Objects within objects that get optional properties. A schema may contain itself.
_DEEPEST = 5
_LONGEST_ARRAY = 3
_SEVERITIES = (upstream.INFO, upstream.DEBUG, upstream.WARNING, upstream.ERROR)

# A text for each format of JSON Schema (validation, section 7.3).
FORMATS = {
    "date": "2024-02-29",
    "date-time": "2024-02-29T12:00:00Z",
    "duration": "P1D",
    "email": "somebody@example.org",
    "hostname": "host.example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "iri": "https://example.org/",
    "json-pointer": "/name",
    "regex": "^a$",
    "time": "12:00:00Z",
    "uri": "https://example.org/",
    "uri-reference": "/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def message_of(  # noqa: PLR0913 -- the parts of a message, each with a default
    schema: type[M],
    /,
    *,
    topic: str | None = None,
    severity: int | None = None,
    headers: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | None = None,
    complete: bool = False,
    **parts: Any,
) -> M:
    """Build a valid message of the class *schema*: the same each time, but for its id and its time.

    The parts that you name are in the body as they are. Objects within them get the properties that
    they lack. All else is the least that the schema of the body asks for: a text is the name of its
    property, a number is 0, an array is empty.

    >>> message_of(Message, package="kernel").body
    {'package': 'kernel'}

    Args:
        schema: A message class, such as ``bodhi.messages.schemas.update.UpdateEditV2``.
        topic: The topic; None for the one of the class, or one that is made of its schema's name.
        severity: The severity, as a number of :mod:`logging`; None for the one of the class.
        headers: Further headers.
        body: Parts of the body whose names are no Python names, or are arguments here.
        complete: Fill in the optional properties, too, and put one item into each array.
        parts: Parts of the body by their names.

    Raises:
        ValueError: With these parts no message is valid; the text names the place and the reason.
    """
    given = {**(body or _NOTHING), **parts}
    choices = PlainChoices(complete=complete)
    return _build(schema, choices, topic or topic_of(schema), severity, headers or {}, given)


def messages(
    schema: type[M],
    /,
    *,
    topic: str | SearchStrategy[str] | None = None,
    severity: int | SearchStrategy[int] | None = None,
    headers: Mapping[str, Any] | SearchStrategy[Mapping[str, Any]] | None = None,
    body: Mapping[str, Any] | None = None,
    **parts: Any,
) -> SearchStrategy[M]:
    """Return a strategy of hypothesis for valid messages of the class *schema*.

    The arguments are those of :func:`message_of`. Each may be a strategy, and so may each value
    within *body* and *parts*. Without *severity* a message has any severity. A class without a
    topic gets topics of any words.

    Raises:
        ImportError: hypothesis is not installed.
    """
    st = _strategies()
    given = {**(body or _NOTHING), **parts}
    # Parts that fit no message are an error of the test, and no unlucky example.
    _body(schema, PlainChoices(), topic if isinstance(topic, str) else "", _fixed(given))
    words = st.lists(_words(st), min_size=1, max_size=6)
    topics = topic if topic is not None else schema.topic or words.map(".".join)
    severities = st.sampled_from(_SEVERITIES) if severity is None else severity
    further = {} if headers is None else headers

    def built(draw: DrawFn) -> M:
        drawn = (_drawn(draw, part) for part in (topics, severities, further, given))
        try:
            return _build(schema, DrawnChoices(draw), *drawn)
        except ValueError:
            # These choices do not go together; the parts that are no strategies are possible.
            raise import_module("hypothesis.errors").UnsatisfiedAssumption from None

    made: SearchStrategy[M] = st.composite(built)()
    return made


def _build(  # noqa: PLR0913, PLR0917 -- the parts of a message
    schema: type[M],
    choices: Choices,
    topic: str,
    severity: int | None,
    headers: Mapping[str, Any],
    given: Mapping[str, Any],
) -> M:
    body = _body(schema, choices, topic, given)
    try:
        message = schema(body=body, topic=topic, severity=severity, headers=dict(headers))
        own = message._headers  # noqa: SLF001 -- upstream has no public name for them
        if schema.headers_schema is not Message.headers_schema:
            own.update(SchemaValues(schema.headers_schema, choices).value(own))
        validate(message)
    except ValidationError as error:
        raise _refusal(schema, f"{error.json_path}: {error.message}") from None
    except Warning:
        # As for any other use of a deprecated class.
        raise
    except Exception as error:
        # Some classes expect more of a body than their schemas ask for.
        raise _refusal(schema, f"{type(error).__name__}: {error}") from error
    return message


def _body(schema: type[Message], choices: Choices, topic: str, given: Mapping[str, Any]) -> Any:
    body_schema: Any = schema.body_schema
    try:
        if not isinstance(body_schema, dict):
            # A property, which may depend on the topic.
            body_schema = schema(topic=topic).body_schema
        return SchemaValues(body_schema, choices).value(dict(given))
    except (NoValueError, OSError) as error:
        raise _refusal(schema, str(error)) from None


def _refusal(schema: type[Message], reason: str) -> ValueError:
    # "$" is the root in a path of JSON.
    place = reason.replace("$", "the body", 1) if reason.startswith("$") else reason
    return ValueError(f"no valid {schema.__name__} can be built: {place}")


def topic_of(schema: type[Message]) -> str:
    """Return the topic of the class *schema*, or one that is made of its schema's name."""
    return schema.topic or upstream.get_name(schema)


# The choices of `message_of`.


class PlainChoices(Choices):
    """Makes the same value each time.

    Args:
        complete: Take every optional property, and an item for every array.
    """

    def __init__(self, *, complete: bool = False) -> None:
        self._complete = complete

    def ordered(self, options: Sequence[T]) -> Sequence[T]:
        """Keep the order, but take null last."""
        return sorted(options, key=lambda option: option in ("null", None, {"type": "null"}))

    def wants(self, name: str, depth: int) -> bool:  # noqa: ARG002 -- as its interface
        """Take all or none; a schema that contains itself has an end."""
        return self._complete and depth < _DEEPEST

    def size(self, low: int, high: int | None, depth: int) -> int:
        """Take the shortest."""
        wanted = 1 if self._complete and depth < _DEEPEST else 0
        return max(low, wanted if high is None else min(wanted, high))

    def multiplier(self, low: int | None, high: int | None, ordinal: int) -> int:
        """Take the number that is nearest to 0."""
        nearest = _clamped(0, low, high)
        up = nearest + ordinal
        return up if high is None or up <= high else nearest - ordinal

    def number(self, low: float | None, high: float | None) -> float:
        """Take a round number, if there is one."""
        rounded = (number for number in (0, 1, -1) if _clamped(number, low, high) == number)
        return next(rounded, _clamped(0, low, high))

    def text(self, hint: str, ordinal: int, schema: Schema) -> str:
        """Take the name of the property, if it fits."""
        fitting = (text for text in _texts(hint, ordinal, schema) if _fits(text, schema))
        text = next(fitting, None)
        if text is None:
            raise NoValueError(f"{hint}: give a text for the pattern {schema.get('pattern')!r}")
        return text

    def anything(self, hint: str) -> Any:
        """Take a text."""
        return hint


def _clamped(number: T, low: Any, high: Any) -> T:
    if low is not None and number < low:
        return low  # type: ignore[no-any-return]
    return high if high is not None and number > high else number


def _fits(text: str, schema: Schema) -> bool:
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    pattern = schema.get("pattern")
    return low <= len(text) <= high and (pattern is None or bool(re.search(pattern, text)))


def _texts(hint: str, ordinal: int, schema: Schema) -> Iterator[str]:
    """Return texts of which one may fit, the best first."""
    name = FORMATS.get(schema.get("format", ""), hint)
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    yield f"{name}{ordinal + 1}" if ordinal else name
    yield ((name or "a") * (low + 1))[: max(low, 1)]
    yield name[:high]
    if "pattern" in schema:
        yield from matching_texts(schema["pattern"], range(ordinal, ordinal + low + 2))


# The choices of `messages`.


class DrawnChoices(Choices):
    """Lets hypothesis choose.

    Args:
        draw: Draws from a strategy.
    """

    def __init__(self, draw: DrawFn) -> None:
        self._draw = draw
        self._st = _strategies()

    def ordered(self, options: Sequence[T]) -> Sequence[T]:
        """Take any of them first."""
        if len(options) < 2:  # noqa: PLR2004 -- nothing to choose
            return options
        first = self._draw(self._st.integers(0, len(options) - 1))
        return [*options[first:], *options[:first]]

    def wants(self, name: str, depth: int) -> bool:  # noqa: ARG002 -- as its interface
        """Take it or not, but not too deep within other objects."""
        return depth < _DEEPEST and self._draw(self._st.booleans())

    def size(self, low: int, high: int | None, depth: int) -> int:
        """Take a short one."""
        most = low + (_LONGEST_ARRAY if depth < _DEEPEST else 0)
        sizes: SearchStrategy[int] = self._st.integers(
            low, min(most, most if high is None else high)
        )
        return self._draw(sizes)

    def multiplier(self, low: int | None, high: int | None, ordinal: int) -> int:  # noqa: ARG002
        """Take any."""
        numbers: SearchStrategy[int] = self._st.integers(low, high)
        return self._draw(numbers)

    def number(self, low: float | None, high: float | None) -> float:
        """Take any that JSON has."""
        numbers: SearchStrategy[float] = self._st.floats(
            low, high, allow_nan=False, allow_infinity=False
        )
        return self._draw(numbers)

    def text(self, hint: str, ordinal: int, schema: Schema) -> str:  # noqa: ARG002
        """Take any."""
        st = self._st
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        known = FORMATS.get(schema.get("format", ""))
        if "pattern" in schema:
            texts = st.from_regex(schema["pattern"])
        elif known is not None:
            texts = (
                _FORMATTED[schema["format"]](st)
                if schema["format"] in _FORMATTED
                else st.just(known)
            )
        else:
            texts = st.text(min_size=low, max_size=high)
        fitting: SearchStrategy[str] = texts.filter(lambda text: _fits(text, schema))
        return self._draw(fitting)

    def anything(self, hint: str) -> Any:  # noqa: ARG002 -- as its interface
        """Take any JSON value."""
        st = self._st
        leaves = st.none() | st.booleans() | st.integers() | st.text()
        nested = st.recursive(
            leaves,
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=5,
        )
        return self._draw(nested)


# More texts for some formats than one.
_FORMATTED: dict[str, Callable[[Any], SearchStrategy[str]]] = {
    "date": lambda st: st.dates().map(str),
    "date-time": lambda st: st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    "email": lambda st: _words(st).map(lambda word: f"{word}@example.org"),
    "hostname": lambda st: _words(st).map(lambda word: f"{word}.example.org"),
    "ipv4": lambda st: st.ip_addresses(v=4).map(str),
    "ipv6": lambda st: st.ip_addresses(v=6).map(str),
    "time": lambda st: st.times().map(lambda moment: f"{moment.isoformat()}Z"),
    "uri": lambda st: _words(st).map(lambda word: f"https://example.org/{word}"),
    "uuid": lambda st: st.uuids().map(str),
}


def _words(st: Any) -> SearchStrategy[str]:
    words: SearchStrategy[str] = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)
    return words


def _strategies() -> Any:
    try:
        return import_module("hypothesis.strategies")
    except ImportError as error:
        raise ImportError(
            "messages() needs hypothesis; install it with "
            "`pip install 'consumer-framework[testing]'`"
        ) from error


def _is_strategy(value: Any) -> bool:
    return isinstance(value, _strategies().SearchStrategy)


def _drawn(draw: DrawFn, value: Any) -> Any:
    """Draw the strategies in *value*."""
    if isinstance(value, dict):
        return {key: _drawn(draw, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_drawn(draw, inner) for inner in value]
    return draw(value) if _is_strategy(value) else value


def _fixed(value: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of *value* that hold no strategy."""
    return {key: inner for key, inner in value.items() if not _holds_strategy(inner)}


def _holds_strategy(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return _is_strategy(value) or any(map(_holds_strategy, inner))
