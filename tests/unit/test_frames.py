# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries read out of the stream of a connection, against those of pika alone."""

import calendar
import decimal
import math
import struct
from collections import deque
from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pika import frame, spec
from pika.channel import ContentFrameAssembler
from pika.compat import long

from consumer_framework.adapters.amqp.frames import Frames, restored
from consumer_framework.core.delivery import RAW_PROPERTIES

TAKEN = (1, 2)
CHANNELS = (*TAKEN, 3)
LARGE = 300_000
FRAME_MAX = 131_072


def within(examples):
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


class Pika:
    """Pika's reading of a stream: each delivery, and each other frame, when it is complete."""

    def __init__(self, seen):
        self._buffer = b""
        self._assemblers = {channel: ContentFrameAssembler() for channel in CHANNELS}
        self._seen = seen

    def feed(self, data):
        self._buffer += data
        while True:
            size, decoded = frame.decode_frame(self._buffer)
            if decoded is None:
                return
            self._buffer = self._buffer[size:]
            self._take(decoded)

    def _take(self, decoded):
        if isinstance(decoded, frame.Header | frame.Body) or (
            isinstance(decoded, frame.Method) and spec.has_content(decoded.method.INDEX)
        ):
            content = self._assemblers[decoded.channel_number].process(decoded)
            if content is not None:
                method, header, body = content
                self._seen(
                    method.channel_number,
                    method.method.delivery_tag,
                    method.method.redelivered,
                    method.method.exchange,
                    method.method.routing_key,
                    header.properties,
                    body,
                )
        else:
            self._seen(getattr(decoded, "channel_number", 0), repr(decoded))


class Seen(list[Any]):
    """Everything that came, in a form that tells 1 from True and an empty table from none."""

    def __call__(self, *what):
        self.append(repr([plain(part) for part in what]))


def plain(value):
    # A number that pika calls long is one like any other.
    if isinstance(value, pika.BasicProperties):
        return {name: plain(part) for name, part in sorted(vars(value).items())}
    if isinstance(value, dict):
        return [(plain(key), plain(part)) for key, part in value.items()]
    if isinstance(value, list):
        return [plain(part) for part in value]
    return int(value) if type(value) is long else value


def pika_alone(stream):
    seen = Seen()
    Pika(seen).feed(stream)
    return seen


def frames_with(seen):
    frames = Frames(Pika(seen).feed)
    for channel in TAKEN:
        frames.receivers[channel] = lambda *what, channel=channel: seen(channel, *what)
    return frames


def with_frames(pieces):
    seen = Seen()
    frames = frames_with(seen)
    for piece in pieces:
        frames.feed(piece)
    return seen


def delivery(channel=1, tag=1, properties=None, body=b"body", *, pieces=1, **more):
    """The frames of a delivery, encoded by pika; the body in some pieces."""
    method = spec.Basic.Deliver(
        "consumer", tag, more.get("redelivered", False), more.get("exchange", "amq.topic"),
        more.get("key", "a.topic"),
    )  # fmt: skip
    header = frame.Header(channel, len(body), properties or pika.BasicProperties())
    step = max(1, -(-len(body) // pieces))
    bodies = [body[at : at + step] for at in range(0, len(body), step)]
    return [
        frame.Method(channel, method).marshal(),
        header.marshal(),
        *(frame.Body(channel, piece).marshal() for piece in bodies),
    ]


class Encoded:
    """Properties that are encoded already."""

    INDEX = pika.BasicProperties.INDEX

    def __init__(self, encoded):
        self._encoded = encoded

    def encode(self):
        return [self._encoded]


# Encoded by hand, for pika writes only some of the kinds that it reads.


def field(kind, form, *values):
    return kind + struct.pack(form, *values)


def long_string(text):
    return struct.pack(">I", len(text)) + text


def table(fields):
    return long_string(b"".join(bytes([len(key)]) + key + value for key, value in fields))


SHORT = st.one_of(st.text(max_size=8).map(str.encode), st.binary(max_size=8))
EPOCH = calendar.timegm((9999, 12, 31, 0, 0, 0))
FLAT = st.one_of(
    st.booleans().map(lambda v: field(b"t", ">B", v)),
    st.integers(2, 255).map(lambda v: field(b"t", ">B", v)),
    st.integers(-(2**7), 2**7 - 1).map(lambda v: field(b"b", ">b", v)),
    st.integers(0, 2**8 - 1).map(lambda v: field(b"B", ">B", v)),
    st.integers(-(2**15), 2**15 - 1).map(lambda v: field(b"U", ">h", v)),
    st.integers(-(2**15), 2**15 - 1).map(lambda v: field(b"s", ">h", v)),
    st.integers(0, 2**16 - 1).map(lambda v: field(b"u", ">H", v)),
    st.integers(-(2**31), 2**31 - 1).map(lambda v: field(b"I", ">i", v)),
    st.integers(0, 2**32 - 1).map(lambda v: field(b"i", ">I", v)),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: field(b"L", ">q", v)),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: field(b"l", ">q", v)),
    st.floats(-(2.0**99), 2.0**99, width=32).map(lambda v: field(b"f", ">f", v)),
    st.floats(-1e300, 1e300).map(lambda v: field(b"d", ">d", v)),
    st.tuples(st.integers(0, 20), st.integers(-(2**31), 2**31 - 1)).map(
        lambda v: field(b"D", ">Bi", *v)
    ),
    st.integers(0, EPOCH).map(lambda v: field(b"T", ">Q", v)),
    SHORT.map(lambda v: b"S" + long_string(v)),
    SHORT.map(lambda v: b"x" + long_string(v)),
    st.just(b"V"),
)
VALUES = st.recursive(
    FLAT,
    lambda values: st.one_of(
        st.lists(values, max_size=3).map(lambda v: b"A" + long_string(b"".join(v))),
        st.lists(st.tuples(SHORT, values), max_size=3).map(lambda v: b"F" + table(v)),
    ),
    max_leaves=6,
)
# The kinds that fedora-messaging sets.
QUICK = st.one_of(
    SHORT.map(lambda v: b"S" + long_string(v)),
    st.integers(-(2**31), 2**31 - 1).map(lambda v: field(b"I", ">i", v)),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: field(b"l", ">q", v)),
    st.integers(0, 255).map(lambda v: field(b"t", ">B", v)),
)
TABLES = st.one_of(
    [st.lists(st.tuples(SHORT, values), max_size=4).map(table) for values in (QUICK, VALUES)]
)

# In the order, and with the flags, of AMQP 0-9-1, section 1.8.1.
PROPERTIES = [
    (1 << 15, SHORT.map(lambda v: bytes([len(v)]) + v)),  # content-type
    (1 << 14, SHORT.map(lambda v: bytes([len(v)]) + v)),  # content-encoding
    (1 << 13, TABLES),  # headers
    (1 << 12, st.binary(min_size=1, max_size=1)),  # delivery-mode
    (1 << 11, st.binary(min_size=1, max_size=1)),  # priority
    *((1 << bit, SHORT.map(lambda v: bytes([len(v)]) + v)) for bit in (10, 9, 8, 7)),
    (1 << 6, st.binary(min_size=8, max_size=8)),  # timestamp
    *((1 << bit, SHORT.map(lambda v: bytes([len(v)]) + v)) for bit in (5, 4, 3, 2)),
]
# The properties that fedora-messaging sets, which are decoded quickly.
USUAL = 0xF8C0


@st.composite
def properties(draw):
    flags = draw(st.one_of(st.just(USUAL & 0xF0C0), st.integers(0, 0x3FFF).map(lambda v: v << 2)))
    if draw(st.booleans()):
        flags &= USUAL
    values = [draw(value) for flag, value in PROPERTIES if flags & flag]
    return Encoded(struct.pack(">H", flags) + b"".join(values))


BODIES = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    # Whatever a body contains, it is no frame.
    st.just(b"".join(delivery(1))),
    st.just(b"\xce" * 9),
)


@st.composite
def deliveries(draw):
    body = draw(BODIES)
    return delivery(
        draw(st.sampled_from(CHANNELS)),
        draw(st.integers(0, 2**64 - 1)),
        draw(properties()),
        body,
        pieces=draw(st.sampled_from([1, 1, 1, 2, 3])),
        redelivered=draw(st.booleans()),
        exchange=draw(SHORT),
        key=draw(SHORT),
    )


OTHERS = st.one_of(
    st.just([frame.Heartbeat().marshal()]),
    st.tuples(st.sampled_from(CHANNELS), st.integers(1, 9)).map(
        lambda v: [frame.Method(v[0], spec.Basic.Ack(v[1])).marshal()]
    ),
    st.sampled_from(CHANNELS).map(
        lambda v: [frame.Method(v, spec.Basic.Cancel("consumer")).marshal()]
    ),
)


@st.composite
def streams(draw):
    """Frames of all channels; those of one channel in order, of several mixed now and then."""
    units = draw(st.lists(st.one_of(deliveries(), deliveries(), OTHERS), max_size=8))
    stream: list[bytes] = []
    while units:
        unit = units.pop(0)
        mixed = draw(st.integers(0, 4)) == 0
        if mixed and units and channels_of(unit).isdisjoint(channels_of(units[0])):
            # Copies: strategies give the same list again.
            unit, other = list(unit), list(units.pop(0))
            while unit and other:
                stream.append((unit if draw(st.booleans()) else other).pop(0))
            unit = unit + other
        stream += unit
    return stream


def channels_of(unit):
    return {struct.unpack_from(">H", encoded, 1)[0] for encoded in unit}


@st.composite
def pieces_of(draw, stream):
    size = len(stream)
    if size < 2000 and draw(st.integers(0, 5)) == 0:
        return [stream[at : at + 1] for at in range(size)]
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=12)))
    return [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, size], strict=True)]


@within(200)
@given(st.data())
def test_any_stream_in_any_pieces_gives_the_same_messages_as_pika_alone(data):
    stream = b"".join(data.draw(streams()))
    pieces = data.draw(pieces_of(stream))
    assert with_frames(pieces) == pika_alone(stream)


@within(30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 100, FRAME_MAX - 8, FRAME_MAX, 1 << 18, LARGE, 1 << 20]),
            st.integers(1, 3),
            st.sampled_from([FRAME_MAX - 8, 65_536, 1 << 20]),
        ),
        max_size=5,
    ),
    st.sampled_from([1000, 4096, 65_536, 1 << 22]),
)
def test_large_bodies_and_those_in_several_frames_come_whole_and_in_order(bodies, step):
    stream = b""
    for tag, (size, channel, frame_size) in enumerate(bodies):
        body = bytes([tag % 251]) * size
        encoded = delivery(channel, tag, body=body, pieces=max(1, -(-size // frame_size)))
        stream += b"".join(encoded)
    step = max(step, len(stream) // 200)
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert with_frames(pieces) == pika_alone(stream)


def usual(body=b"{}"):
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}
    return pika.BasicProperties(
        "application/json", "utf-8", headers, 2, 0, message_id="7", timestamp=1
    )


def test_a_message_of_fedora_messaging_is_taken_without_pika():
    others: list[bytes] = []
    taken = []
    frames = Frames(others.append)
    frames.receivers[1] = lambda *what: taken.append(what)
    stream = b"".join(delivery(1, 5, usual(), b"{}", redelivered=True))
    frames.feed(stream * 3)
    assert others == []
    assert [what[:4] for what in taken] == [(5, True, "amq.topic", "a.topic")] * 3
    assert all(vars(what[4]) == vars(usual()) for what in taken)
    assert taken[0][5] == b"{}"
    assert frames.taken == 9


def test_a_message_on_a_channel_without_a_receiver_is_left_to_pika():
    others: list[bytes] = []
    frames = Frames(others.append)
    stream = delivery(1, 5, usual(), b"{}")
    frames.feed(b"".join(stream))
    assert others == stream
    assert frames.taken == 0


@pytest.mark.parametrize("size", range(14))
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_content_header_that_is_too_short_is_left_to_pika(size, pieces):
    stream = delivery(1, 1, usual(), b"{}", pieces=pieces)
    stream[1] = struct.pack(">BHL", 2, 1, size) + stream[1][7 : 7 + size] + b"\xce"
    seen = Seen()
    frames = frames_with(seen)
    with pytest.raises((struct.error, IndexError)):
        frames.feed(b"".join(stream))
    assert seen == []


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("step", [1, 10_000])
def test_a_broken_end_of_a_frame_is_pika_s_to_complain_about(index, step):
    good = delivery(1, 1, usual(), b"{}")
    bad = list(good)
    bad[index] = bad[index][:-1] + b"\xcf"
    stream = b"".join([*good, *bad, *good])
    seen = Seen()
    frames = frames_with(seen)
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    with pytest.raises(pika.exceptions.InvalidFrameError):
        deque(map(frames.feed, pieces), maxlen=0)
    assert len(seen) == 1, "what came before"


def test_a_protocol_header_is_left_to_pika():
    others: list[bytes] = []
    frames = Frames(others.append)
    frames.receivers[1] = lambda *_: pytest.fail("there was no delivery")
    frames.feed(b"AMQP\x00")
    frames.feed(b"\x00\x09\x01")
    assert b"".join(others) == b"AMQP\x00\x00\x09\x01"


@pytest.mark.parametrize("start", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400", b"\x04" + bytes(30)])
def test_all_bytes_after_an_invalid_frame_are_left_to_pika(start):
    others: list[bytes] = []
    frames = Frames(others.append)
    frames.receivers[1] = lambda *_: pytest.fail("there was no delivery")
    stream = start + b"".join(delivery(1))
    frames.feed(stream)
    frames.feed(b"".join(delivery(1)))
    assert b"".join(others) == stream + b"".join(delivery(1))


# Not to be decoded.


def broken_properties():
    no_such_kind = table([(b"what", b"?1234")])
    return {
        "a field of no known kind": struct.pack(">H", 1 << 13) + no_such_kind,
        "a short string without its length": struct.pack(">H", 1 << 15),
        "no delivery mode": struct.pack(">H", 1 << 12),
        "a timestamp that is cut off": struct.pack(">H", 1 << 6) + b"1234",
        "a table longer than the frame": struct.pack(">HI", 1 << 13, 99) + b"\x01k",
    }


BROKEN = pytest.mark.parametrize("encoded", broken_properties().values(), ids=broken_properties())


@BROKEN
@pytest.mark.parametrize(
    ("size", "pieces"), [(0, 1), (4, 1), (4, 2), (LARGE, 3)], ids=["empty", "one", "two", "large"]
)
@pytest.mark.parametrize("step", [1 << 14, 1 << 22])
def test_properties_that_cannot_be_decoded_are_kept_as_they_came(encoded, size, pieces, step):
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever pika raises
        pika.BasicProperties().decode(encoded)
    body = b"x" * size
    stream = b"".join(
        delivery(1, 1, Encoded(encoded), body, pieces=pieces) + delivery(1, 2, usual(), b"next")
    )
    taken = []
    frames = Frames(Pika(lambda *what: taken.append(what[1:])).feed)
    frames.receivers[1] = lambda *what: taken.append(what)
    for at in range(0, len(stream), step):
        frames.feed(stream[at : at + step])
    assert [what[0] for what in taken] == [1, 2]
    properties = pika.BasicProperties(headers={RAW_PROPERTIES: encoded})
    assert vars(taken[0][4]) == vars(properties)
    assert taken[0][5] == body


def test_frames_of_a_connection_s_own_channel_are_not_changed():
    encoded = broken_properties()["a field of no known kind"]
    others: list[bytes] = []
    frames = Frames(others.append)
    stream = delivery(1, 1, Encoded(encoded), b"body")
    frames.feed(b"".join(stream))
    assert others == stream


@given(st.binary(min_size=2, max_size=60))
@example(b"\xf8\xc0")
@within(300)
def test_a_message_with_any_bytes_as_properties_comes_as_pika_decodes_it(encoded):
    try:
        properties = pika.BasicProperties()
        properties.decode(encoded)
    except Exception:  # noqa: BLE001 -- whatever pika raises
        properties = None
    seen = Seen()
    frames = frames_with(seen)
    frames.feed(b"".join(delivery(1, 1, Encoded(encoded), b"body")))
    if properties is None:
        assert len(seen) == 1
        return
    expected = Seen()
    expected(1, 1, False, "amq.topic", "a.topic", properties, b"body")
    assert seen == expected


def readable_only_here():
    headers = [
        (b"before", field(b"T", ">q", -86400)),
        (b"in ms", field(b"T", ">Q", 1_700_000_000_000)),
        (b"never", field(b"T", ">Q", 2**63)),
        (b"double", field(b"d", ">d", math.inf)),
        (b"in", b"F" + table([(b"side", b"A" + struct.pack(">I", 9) + field(b"T", ">q", -1))])),
        (b"text", b"S" + struct.pack(">I", 2) + b"ok"),
    ]
    return struct.pack(">H", 1 << 13 | 1 << 7) + table(headers) + b"\x02id"


@pytest.mark.parametrize("size", [4, LARGE])
def test_values_that_only_pika_cannot_read_are_numbers_and_the_message_keeps_its_id(size):
    encoded = readable_only_here()
    taken = []
    frames = Frames(Pika(lambda *what: taken.append(what[1:])).feed)
    frames.receivers[1] = lambda *what: taken.append(what)
    frames.feed(b"".join(delivery(1, 1, Encoded(encoded), b"x" * size)))
    properties = restored(taken[0][4])
    assert properties.message_id == "id"
    assert properties.headers == {
        "before": -86400,
        "in ms": 1_700_000_000_000,
        "never": -(2**63),
        "double": math.inf,
        "in": {"side": [-1]},
        "text": "ok",
    }


@pytest.mark.parametrize(
    "headers",
    [
        table([(b"what", b"?1234")]),
        struct.pack(">I", 3) + b"\x09ab",
        table([(b"a", b"A" + struct.pack(">I", 2) + b"I1")]),
        table([(b"a", b"S" + struct.pack(">I", 99) + b"I1")]),
    ],
)
def test_a_message_whose_headers_are_no_table_keeps_its_id_and_all_its_bytes(headers):
    encoded = struct.pack(">H", 1 << 13 | 1 << 7) + headers + b"\x02id"
    properties = restored(pika.BasicProperties(headers={RAW_PROPERTIES: encoded}))
    assert properties.message_id == "id"
    assert properties.headers == {RAW_PROPERTIES: encoded}


def test_a_publisher_s_header_of_that_name_is_left_alone():
    properties = pika.BasicProperties(headers={RAW_PROPERTIES: 7})
    assert restored(properties) is properties


# Receivers.


def test_the_frames_after_the_end_of_a_receiver_are_left_to_pika():
    others: list[bytes] = []
    taken = []
    frames = Frames(others.append)

    def receive(tag, *_):
        taken.append(tag)
        del frames.receivers[1]

    frames.receivers[1] = receive
    stream = [delivery(1, tag, usual(), b"{}") for tag in (1, 2)]
    frames.feed(b"".join(stream[0] + stream[1]))
    assert taken == [1]
    assert others == stream[1]


@pytest.mark.parametrize("at", range(1, 260, 7))
def test_a_receiver_that_goes_away_within_a_delivery_leaves_all_of_it_to_pika(at):
    others: list[bytes] = []
    frames = Frames(others.append)
    frames.receivers[1] = lambda *_: pytest.fail("it is gone")
    stream = delivery(1, 1, usual(), b"{}" * 60)
    frames.feed(b"".join(stream)[:at])
    del frames.receivers[1]
    frames.feed(b"".join(stream)[at:])
    assert others == stream


def test_a_receiver_that_comes_within_a_delivery_gets_the_next_one():
    seen = Seen()
    frames = Frames(Pika(seen).feed)
    stream = delivery(1, 1, usual(), b"{}")
    frames.feed(stream[0])
    taken = []
    frames.receivers[1] = lambda tag, *_: taken.append(tag)
    frames.feed(b"".join([*stream[1:], *delivery(1, 2, usual(), b"{}")]))
    assert len(seen) == 1
    assert taken == [2]


def test_the_longest_value_of_each_kind_comes_whole():
    headers = {
        "k" * 255: "v" * 70_000,
        "decimal": decimal.Decimal("1.5"),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "deep": {"a": [1, {"b": [True, None]}]},
    }
    properties = pika.BasicProperties("t" * 255, headers=headers, message_id="m" * 255)
    stream = b"".join(
        delivery(1, 2**64 - 1, properties, b"b" * 60_000, key="k" * 255, exchange="e" * 255)
    )
    assert with_frames([stream]) == pika_alone(stream)
    assert with_frames([stream[:200], stream[200:70_000], stream[70_000:]]) == pika_alone(stream)


def test_a_void_header_is_decoded_at_any_place():
    for headers in ({"a": 1, "nothing": None}, {"nothing": None}, {"nothing": None, "a": 1}):
        taken: list[Any] = []
        frames = Frames(lambda _: None)
        frames.receivers[1] = lambda *what, taken=taken: taken.append(what)
        frames.feed(b"".join(delivery(1, 5, pika.BasicProperties(headers=headers))))
        assert taken[0][4].headers == headers
