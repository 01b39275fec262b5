# SPDX-License-Identifier: GPL-2.0-or-later
"""The store returns all properties that a broker can deliver."""

import json
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer_framework.adapters.store.properties import pack, unpack
from consumer_framework.core.delivery import PROPERTIES
from consumer_framework.testing import FakeProperties

# Bytes on the wire, by AMQP 0-9-1 section 4.2.5 and RabbitMQ's errata: brokers deliver values that
# pika cannot encode.


def sized(kind, form="I"):
    return lambda octets: kind + struct.pack(f">{form}", len(octets)) + octets


def number(kind, form, values):
    return values.map(lambda value: kind + struct.pack(f">{form}", value))


def integers(kind, form, bits, *, signed=True):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return number(kind, form, st.integers(low, high))


octets = st.binary(max_size=20) | st.text(max_size=10).map(str.encode)
short_strings = octets.map(sized(b"", "B"))
seconds = st.integers(0, 253402300799)  # the last one that Python's datetime has
floats = st.floats(allow_nan=False, allow_infinity=False)

scalars = st.one_of(
    st.just(b"V"),
    number(b"t", "B", st.integers(0, 1)),
    integers(b"b", "b", 8),
    integers(b"B", "B", 8, signed=False),
    integers(b"U", "h", 16),
    integers(b"u", "H", 16, signed=False),
    integers(b"s", "h", 16),
    integers(b"I", "i", 32),
    integers(b"i", "I", 32, signed=False),
    integers(b"L", "q", 64),
    integers(b"l", "q", 64),
    number(b"f", "f", st.floats(width=32, allow_nan=False, allow_infinity=False)),
    number(b"d", "d", floats),
    st.builds(
        lambda decimals, raw: b"D" + struct.pack(">Bi", decimals, raw),
        st.integers(0, 255),
        st.integers(-(2**31), 2**31 - 1),
    ),
    number(b"T", "Q", seconds),
    octets.map(sized(b"S")),
    octets.map(sized(b"x")),
)


def tables(values):
    items = st.lists(st.tuples(short_strings, values).map(b"".join), max_size=4)
    return items.map(b"".join).map(sized(b""))


fields = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(b"".join).map(sized(b"A"))
        | tables(inner).map(lambda table: b"F" + table)
    ),
    max_leaves=15,
)

ON_THE_WIRE = dict.fromkeys(PROPERTIES, short_strings) | {
    "headers": tables(fields),
    "delivery_mode": integers(b"", "B", 8, signed=False),
    "priority": integers(b"", "B", 8, signed=False),
    "timestamp": integers(b"", "Q", 64, signed=False),
}


@st.composite
def received_properties(draw):
    """Return properties as pika decodes them from the bytes of a broker."""
    flags, encoded = 0, b""
    for bit, name in enumerate(PROPERTIES):
        if draw(st.booleans()):
            flags |= 1 << (15 - bit)
            encoded += draw(ON_THE_WIRE[name])
    return pika.BasicProperties().decode(struct.pack(">H", flags) + encoded)


def types_of(value):
    """Return a text that differs for 1, True, 1.0 and Decimal(1)."""
    if isinstance(value, dict):
        return {key: types_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [types_of(inner) for inner in value]
    return next(kind for kind in (bool, int, object) if isinstance(value, kind)), (
        None if isinstance(value, int) else type(value)
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(received_properties())
def test_all_properties_that_pika_can_decode_come_back_equal(properties):
    back = unpack(pack(properties))
    assert back == properties
    assert types_of(vars(back)) == types_of(vars(properties))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(received_properties())
def test_the_text_is_one_line_of_ascii_json(properties):
    text = pack(properties)
    assert text.isascii()
    assert "\n" not in text
    json.loads(text)


def test_no_headers_and_an_empty_headers_table_stay_apart():
    assert unpack(pack(pika.BasicProperties())).headers is None
    assert unpack(pack(pika.BasicProperties(headers={}))).headers == {}


def test_a_decimal_keeps_its_zeros_and_a_time_its_zone():
    headers = {"price": Decimal("1.20"), "at": datetime(2024, 2, 29, 12, tzinfo=UTC)}
    back = unpack(pack(pika.BasicProperties(headers=headers))).headers
    assert str(back["price"]) == "1.20"
    assert back["at"].tzinfo is not None
    assert back == headers


def test_tables_and_arrays_nested_deeper_than_python_recurses_come_back():
    headers: dict[str, Any] = {}
    inner = headers
    for _ in range(50_000):
        inner["a"] = [{}]
        inner = inner["a"][0]
    inner["bottom"] = 1
    back = unpack(pack(pika.BasicProperties(headers=headers))).headers
    depth = 0
    while "a" in back:
        (back,) = back["a"]
        depth += 1
    assert (depth, back) == (50_000, {"bottom": 1})


def test_an_integer_that_pika_cannot_encode_comes_back():
    wire = struct.pack(">H", pika.BasicProperties.FLAG_HEADERS)
    wire += sized(b"")(sized(b"", "B")(b"a") + b"d" + struct.pack(">d", 1e300))
    properties = pika.BasicProperties().decode(wire)
    with pytest.raises(struct.error):
        properties.encode()
    assert unpack(pack(properties)) == properties


def test_a_value_that_amqp_does_not_have_is_stored_as_its_repr():
    assert unpack(pack(FakeProperties("1", {"a": {1}}))).headers == {"a": "{1}"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_have_comes_back_from_valid_json(number):
    text = pack(FakeProperties(headers={"n": number}))
    json.loads(text, parse_constant=pytest.fail)
    assert str(unpack(text).headers["n"]) == str(number)
