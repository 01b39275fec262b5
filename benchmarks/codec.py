# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the cost of making a message of a delivery, every check included.

    python benchmarks/codec.py [--json] [--runs N] [--size BYTES]  (needs the extra `demo`)

It compares fedora-messaging's own get_message, the same with jsonschema's validators made once for
each class, and ours. There is one message of each kind that the extra `demo` has schemas for. Its
body is made from the schema, with strings that are long enough for the size. The log is set up like
that of an instance.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import pika
from fedora_messaging import message as upstream
from jsonschema.validators import validator_for

from consumer_framework.adapters import codec
from consumer_framework.testing import make_delivery

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery

SCHEMAS = (
    "anitya.project.version.update.v2",
    "bodhi.update.status.testing.v3",
    "koji_fedoramessaging.build.BuildStateChangeV1",
    "pagure.pull-request.comment.added",
)
# Arrays below this depth are empty: koji's tasks have tasks.
DEPTH = 3
EXAMPLES: dict[str, Any] = {
    "array": [],
    "boolean": True,
    "integer": 123456,
    "null": None,
    "number": 1.5,
}


def example(schema: Any, root: Any, text: str, depth: int = 0) -> Any:
    """Make a value that satisfies *schema*, which is one of the schemas of real packages."""
    if reference := schema.get("$ref"):
        return example(referred(reference, root), root, text, depth)
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        return example(choices[-1], root, text, depth)
    if "enum" in schema:
        return schema["enum"][-1]
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    if kind == "object":
        properties = schema.get("properties", {}).items()
        return {name: example(each, root, text, depth + 1) for name, each in properties}
    if kind == "array" and "items" in schema and depth <= DEPTH:
        return [example(schema["items"], root, text, depth + 1) for _ in range(2)]
    return EXAMPLES.get(kind, text)


def referred(reference: str, root: Any) -> Any:
    """Return the schema that *reference* names within *root*, by path or by anchor."""
    if not reference.startswith("#/"):
        return next(each for each in root["$defs"].values() if each["$anchor"] == reference[1:])
    for part in reference.removeprefix("#/").split("/"):
        root = root[part]
    return root


def delivery_of(name: str, size: int) -> Delivery:
    """Make a delivery with a body of about *size* bytes, more where the schema needs them."""
    schema = upstream.get_class(name).body_schema
    bodies = (json.dumps(example(schema, schema, "x" * length)).encode() for length in range(size))
    body = next(each for each in bodies if len(each) >= size)
    headers = {
        "fedora_messaging_schema": name,
        "fedora_messaging_schema_package": "some_messages",
        "fedora_messaging_severity": 20,
        "fedora_messaging_user_somebody": True,
        "fedora_messaging_rpm_kernel": True,
        "priority": 0,
        "sent-at": "2026-01-01T00:00:00+00:00",
    }
    properties = pika.BasicProperties(
        message_id="b7a3a5a8-9cd0-4a3f-8a29-5b2a6a5f6e0c",
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        priority=0,
        headers=headers,
    )
    return make_delivery(body=body)._replace(routing_key=name, properties=properties)


def upstreams(delivery: Delivery) -> Any:
    """Decode as fedora-messaging does."""
    properties: Any = delivery.properties
    return upstream.get_message(delivery.routing_key, properties, delivery.body)


class Cached:
    """Decodes with jsonschema's validators, each made once."""

    def __init__(self, name: str) -> None:
        self._kind = upstream.get_class(name)
        kind, base = self._kind, upstream.Message
        self._headers = [self._made(base.headers_schema)]
        self._body = [self._made(kind.body_schema), self._made(base.body_schema)]

    @staticmethod
    def _made(schema: Any) -> Any:
        return validator_for(schema)(schema)

    def __call__(self, delivery: Delivery) -> Any:
        """Decode one delivery of the class."""
        properties: Any = delivery.properties
        body = json.loads(delivery.body.decode("utf-8"))
        message = self._kind(body=body, topic=delivery.routing_key, properties=properties)
        for validator in self._headers:
            validator.validate(message._headers)  # noqa: SLF001 -- there is no other way to them
        for validator in self._body:
            validator.validate(message.body)
        return message


def measure(decode: Callable[[Delivery], Any], delivery: Delivery, seconds: float = 0.1) -> float:
    """Return the mean microseconds of one call, over about *seconds*."""
    calls = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(20):
            decode(delivery)
        calls += 20
    return passed / calls * 1e6


def benchmark(name: str, runs: int, size: int) -> dict[str, Any]:
    """Return the medians of all ways for one schema; the ways take turns."""
    delivery = delivery_of(name, size)
    ways = {"get_message": upstreams, "jsonschema": Cached(name), "ours": codec.decode}
    for decode in ways.values():
        decode(delivery)
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, decode in ways.items():
            measured[way].append(measure(decode, delivery))
    medians = {way: round(statistics.median(values), 1) for way, values in measured.items()}
    json_only = measure(lambda delivery: json.loads(delivery.body.decode()), delivery)
    return {"bytes": len(delivery.body), "json": round(json_only, 1), **medians}


def main() -> None:
    """Print the results as a table, or as JSON."""
    parser = argparse.ArgumentParser(description="Measure the cost of decoding a message.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, default=1000, help="bytes of a body, at least")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("fedora_messaging.message").setLevel(logging.ERROR)
    codec.load_schemas()
    results = {name: benchmark(name, options.runs, options.size) for name in SCHEMAS}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"µs per message, median of {options.runs} runs")
    columns = ("bytes", "json", "get_message", "jsonschema", "ours")
    print(f"{'':<52}", *(f"{column:>12}" for column in columns))
    for name, result in results.items():
        print(f"{name:<52}", *(f"{result[column]:>12}" for column in columns))


if __name__ == "__main__":
    main()
