# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the routes of a message do and whatever dies meanwhile, each is done exactly once."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from fedora_messaging import api
from fedora_messaging.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer_framework import (
    Consumer,
    Defer,
    DependencyFault,
    Drop,
    Quarantine,
    Retry,
    on_topic,
)
from consumer_framework.testing import Harness

ROUTES = ("one", "two", "three")
FAULTS = ("error", "retry", "defer", "dependency", "quarantine", "kill")
acts = st.lists(st.sampled_from((*FAULTS, "drop")), max_size=4)
plans = st.fixed_dictionaries(dict.fromkeys(ROUTES, acts))
events = st.lists(st.sampled_from(["advance", "cut", "crash", "restart", "deliver"]), max_size=5)
configurations = st.sampled_from(
    [
        {},
        {"ordering": "key", "ordering_key": "topic", "slots": 2},
        {"ordering": "strict"},
        {"slots": 3},
        {"store": "memory"},
        {"recovery": {"hold_slots": 0}},
        {"recovery": {"immediate": 0, "delays": []}},
    ]
)


class Story:
    """Notes what the routes do, and lets them fail as planned."""

    def __init__(self, plan: dict[str, list[str]]) -> None:
        self.plan = {name: list(steps) for name, steps in plan.items()}
        self.done: Counter[tuple[str, int]] = Counter()
        self.harness: Harness

    def act(self, name: str, message: Message) -> None:
        step = self.plan[name].pop(0) if self.plan[name] else ""
        match step:
            case "error":
                raise ValueError(name)
            case "retry":
                raise Retry(name)
            case "defer":
                raise Defer(time.time() + 1000, name)
            case "dependency":
                raise DependencyFault(name)
            case "quarantine":
                raise Quarantine(name)
            case "kill":
                self.harness.kill_next(message)
                raise ValueError("the next run kills")
        if step == "drop":
            self.done[name, message.body["n"]] += 1
            raise Drop(name)
        api.publish(Message(topic=f"out.{name}", body=message.body))
        self.done[name, message.body["n"]] += 1


def consumer_of(story: Story) -> type[Consumer]:
    class Routed(Consumer):
        @on_topic("#")
        def one(self, message: Message) -> None:
            story.act("one", message)

        @on_topic("a.*")
        async def two(self, message: Message) -> None:
            story.act("two", message)

        @on_topic("*.b")
        def three(self, message: Message) -> None:
            story.act("three", message)

    return Routed


def end(harness: Harness, story: Story, given_messages: list[Message]) -> None:
    """Let everything work, and operators replay all that is quarantined."""
    for steps in story.plan.values():
        steps.clear()
    for _ in range(len(given_messages) * len(ROUTES) + 2):
        if not (harness.unsettled or harness.queued or harness.deferred or harness.quarantined):
            return
        harness.advance("20m")
        for each in harness.quarantined:
            try:
                harness.replay(each)
            except LookupError:
                continue  # behind another one with its key


@settings(max_examples=40)
@given(plan=plans, happens=events, configuration=configurations)
def test_each_route_of_each_message_is_done_once_and_no_message_is_lost(
    plan: dict[str, list[str]], happens: list[str], configuration: dict[str, Any]
) -> None:
    story = Story(plan)
    given_messages: list[Message] = []
    with Harness(consumer_of(story), settings=configuration) as story.harness:
        harness = story.harness

        def deliver() -> None:
            message = Message(topic="a.b", body={"n": len(given_messages)})
            given_messages.append(message)
            harness.deliver(message)

        deliver()
        for event in happens:
            match event:
                case "advance":
                    harness.advance("15s")
                case "deliver":
                    deliver()
                case _:
                    getattr(harness, event)()
        end(harness, story, given_messages)
        left = [m for m in given_messages if m not in [*harness.acked, *harness.rejected]]
        assert left == []
        numbers = range(len(given_messages))
        expected = {(name, number) for name in ROUTES for number in numbers}
        assert set(story.done) == expected
        if configuration.get("store") != "memory":
            assert set(story.done.values()) == {1}
            topics = Counter((each.topic, each.body["n"]) for each in harness.published)
            assert set(topics.values()) <= {1}
