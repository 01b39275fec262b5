# SPDX-License-Identifier: GPL-2.0-or-later
"""The page runs the commands of its list, and no others."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.operate.page.access import Access
from consumer_framework.operate.page.calls import CallError, Calls, directory_of_page

DOCUMENT = json.loads((directory_of_page() / "calls.json").read_text())
CALLS = Calls(DOCUMENT)
# A value of each kind that no command takes for an option.
VALUES = {
    "instance": "builds_2",
    "row": "41",
    "rows": ["41", "42"],
    "number": "50",
    "text": "KeyError in a/b.py:handle; $(reboot)",
    "ramp": "1,5,20",
    "rate": "10/s",
    "share": "5%",
    "age": "10m",
    "priority": "warning",
    "row_state": "any",
    "outbox_state": "dead",
    "level": "DEBUG",
}


def places(word: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", word)


def values_of(name: str) -> dict[str, object]:
    return {
        place: VALUES[place] for word in DOCUMENT["calls"][name]["argv"] for place in places(word)
    }


@pytest.mark.parametrize("name", DOCUMENT["calls"])
def test_each_call_becomes_a_command_line_without_open_places(name):
    options = DOCUMENT["calls"][name].get("options", {})
    wanted = {
        option: next((VALUES[place] for word in words for place in places(word)), True)
        for option, words in options.items()
    }
    words = CALLS.arguments(name, {**values_of(name), **wanted})
    assert words[0] in {"fm-consumer", "systemctl"}
    assert "{" not in "".join(words)
    assert len(words) >= len(DOCUMENT["calls"][name]["argv"]) + len(options)


def test_rows_become_one_argument_each():
    words = CALLS.arguments("replay-rows", {"instance": "builds", "rows": ["3", "7"]})
    assert words == ["fm-consumer", "quarantine", "replay", "builds", "3", "7", "--json"]


def test_the_value_of_an_option_fills_its_argument():
    values = {"instance": "builds", "number": "50", "after": "41"}
    assert CALLS.arguments("rows", values)[-1] == "--after=41"
    follow = CALLS.arguments("log", {"instance": "builds", "number": "9", "follow": True})
    assert follow[-1] == "--follow"


@pytest.mark.parametrize("nothing", [None, "", False])
def test_an_option_without_a_value_is_left_out(nothing):
    given_values = {"instance": "builds", "number": "9", "follow": nothing, "grep": nothing}
    assert CALLS.arguments("log", given_values)[-1] == "--lines=9"


@pytest.mark.parametrize(
    ("name", "values", "wrong"),
    [
        ("reboot", {}, "no call 'reboot'"),
        ("message", {"instance": "builds"}, "row: None"),
        ("message", {"instance": "builds", "row": "1", "x": "2"}, "no value 'x'"),
        ("message", {"instance": "builds", "row": 1}, "row: 1"),
        ("message", {"instance": "builds", "row": ["1"]}, "row: ['1']"),
        ("replay-rows", {"instance": "builds", "rows": []}, "1 to 1000 values"),
        ("replay-rows", {"instance": "builds", "rows": ["1"] * 1001}, "1 to 1000 values"),
        ("replay-rows", {"instance": "builds", "rows": ["1", "--all"]}, "'--all'"),
        ("instance", {"instance": "--conf=/etc/shadow"}, "'--conf=/etc/shadow'"),
        ("instance", {"instance": "a\n"}, r"'a\n'"),
        ("log", {"instance": "a", "number": "1", "follow": "yes"}, "it takes true"),
        ("log", {"instance": "a", "number": "1", "follow": 1}, "it takes true"),
        ("log", {"instance": "a", "number": "1", "priority": "loud"}, "'loud'"),
        ("pause", {"instance": "a", "reason": "\ud800"}, "text: it is no valid text"),
    ],
)
def test_a_value_of_another_form_is_refused(name, values, wrong):
    with pytest.raises(CallError, match=re.escape(wrong)):
        CALLS.arguments(name, values)


ANYTHING = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=3)


@given(
    name=st.sampled_from(sorted(DOCUMENT["calls"])) | st.text(),
    given_values=st.dictionaries(st.sampled_from(sorted(VALUES)) | st.text(), ANYTHING),
)
def test_no_value_adds_an_option_or_changes_the_program(name, given_values):
    try:
        words = CALLS.arguments(name, given_values)
    except CallError:
        return
    call = DOCUMENT["calls"][name]
    allowed = {word.partition("=")[0] for word in call["argv"]}
    allowed |= {
        part.partition("=")[0] for parts in call.get("options", {}).values() for part in parts
    }
    assert words[0] == call["argv"][0]
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= allowed


def test_an_argument_of_its_own_never_begins_with_a_hyphen():
    alone = {
        place
        for call in DOCUMENT["calls"].values()
        for word in call["argv"]
        for place in places(word)
        if word == f"{{{place}}}"
    }
    patterns = {name: re.compile(text) for name, text in DOCUMENT["values"].items()}
    assert alone
    for place in alone:
        for text in ("-", "--all", "-x", "--conf=/x", "-1"):
            assert patterns[place].fullmatch(text) is None, place


def entered(access: Access) -> str:
    """Return the cookie of a browser that opens the address."""
    return (access.enter(access.token) or "").partition(";")[0]


class TestAccess:
    def setup_method(self):
        self.access = Access()
        self.cookie = entered(self.access)

    def refused(self, method="GET", host="localhost:8080", origin=None, cookies=None):
        found = self.access.refusal(
            method, host, origin, self.cookie if cookies is None else cookies
        )
        return found and found.status

    def test_the_address_works_once(self):
        access = Access()
        token = access.token
        assert access.enter(token)
        assert access.enter(token) is None
        assert access.token == ""

    @pytest.mark.parametrize("wrong", ["", "x", "ä", "\0"])
    def test_a_wrong_address_lets_nobody_in(self, wrong):
        access = Access()
        assert access.enter(wrong) is None
        assert access.enter(access.token)

    def test_an_used_address_is_not_an_empty_one(self):
        assert self.access.enter("") is None

    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:9", "[::1]"]
    )
    def test_a_browser_of_this_machine_is_let_in(self, host):
        assert self.refused(host=host) is None
        assert self.refused("POST", host, f"http://{host}") is None

    @pytest.mark.parametrize(
        "host",
        ["", "evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "::1", ":1"],
    )
    def test_another_name_for_this_machine_is_refused(self, host):
        assert self.refused(host=host) == 403

    @pytest.mark.parametrize(
        "origin",
        [None, "null", "http://evil.example", "https://localhost:8080", "http://localhost:1"],
    )
    def test_only_the_page_itself_may_post(self, origin):
        assert self.refused("POST", origin=origin) == 403

    @pytest.mark.parametrize("cookies", ["", "x=y", "=;,", "fm-consumer-00000000=x", "\x00"])
    def test_a_browser_without_the_cookie_is_not_let_in(self, cookies):
        assert self.refused(cookies=cookies) == 401

    def test_the_cookie_of_another_server_lets_nobody_in(self):
        assert self.refused(cookies=entered(Access())) == 401
        assert self.refused(cookies=f"a=b; {self.cookie}; c=d") is None

    @pytest.mark.parametrize("other", ['{"a": [1]}=b', 'a={"b": "c, d"}', 'a="b', "a b", "ü=ü"])
    def test_a_strange_cookie_of_another_server_keeps_nobody_out(self, other):
        assert self.refused(cookies=f"{other}; {self.cookie}") is None

    def test_a_page_of_another_site_cannot_read_the_cookie_or_use_it(self):
        access = Access()
        assert "; HttpOnly; SameSite=Strict" in (access.enter(access.token) or "")
