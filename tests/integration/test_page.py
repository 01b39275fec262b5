# SPDX-License-Identifier: GPL-2.0-or-later
"""Operators work with the page in a real browser, in Cockpit and from ``fm-consumer web``."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from .instance import publish, until
from .page_world import CHROMIUM, COCKPIT_WS, World
from .private_root import missing, skip_unless_in_ci

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
expect = sync_api.expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

# Milliseconds for one step of a browser, on a machine that does much besides.
PATIENCE = 20_000
KEY_ERROR = "KeyError in fedora-messaging/page_handlers.py:handle"
VALUE_ERROR = "ValueError in fedora-messaging/page_handlers.py:handle"
NO_VERSION, UNKNOWN_TAG = {"n": 1}, {"n": 2, "version": "1", "tag": "unknown"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, broker) -> Iterator[World]:
    skip_unless_in_ci(missing())
    if not (COCKPIT_WS and CHROMIUM and shutil.which("cockpit-bridge")):
        skip_unless_in_ci("Cockpit or Chromium is missing: packaging/system-packages page")
    with World(tmp_path_factory.mktemp("page"), broker, "builds", "mails") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def cookies(world, browser) -> Any:
    """Let a browser in with the address that ``fm-consumer web`` printed."""
    context = browser.new_context()
    context.new_page().goto(world.web)
    found = context.storage_state()
    context.close()
    return found


class View:
    """The page in a tab of a browser."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self._address = address.partition("#")[0]
        self.complaints: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def open(self, route: str = "") -> View:
        """Open a view, and wait for its first answer."""
        self.page.goto(f"{self._address}#/{route}")
        # Only the part after # changes: the page is the same, and shows another view.
        name = self.page.locator("main[data-view]")
        expect(name).to_have_attribute("aria-busy", "false")
        return self

    def name(self) -> str | None:
        return self.page.locator("main").get_attribute("data-view")

    def row(self, kind: str, value: str) -> Locator:
        return self.page.locator(f'tr[data-{kind}="{value}"]')

    def button(self, name: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def order(self, verb: str, within: Locator | None = None, **fields: str) -> Locator:
        """Give an order, fill its fields in, confirm it; return its result."""
        self.button(verb, within).click()
        dialog = self.page.get_by_role("dialog")
        for label, value in fields.items():
            field = dialog.get_by_label(label.replace("_", " "), exact=True)
            if field.evaluate("element => element.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        self.button(verb, dialog).click()
        return self.result()

    def result(self) -> Locator:
        result = self.page.locator("[data-result]")
        expect(result).to_be_visible()
        return result

    def close(self) -> None:
        self.button("Close", self.page.get_by_role("dialog")).click()
        expect(self.page.get_by_role("dialog")).to_have_count(0)


def viewed(browser: Browser, address: str, **context: Any) -> Iterator[View]:
    opened = browser.new_context(**context)
    opened.set_default_timeout(PATIENCE)
    sync_api.expect.set_options(timeout=PATIENCE)
    view = View(opened.new_page(), address)
    yield view
    opened.close()
    # Also a part that the Content-Security-Policy blocks is an error here.
    assert view.complaints == []


@pytest.fixture(scope="module")
def session(world, browser) -> Iterator[str]:
    """Keep a tab open in Cockpit: its local session ends with the last tab."""
    context = browser.new_context()
    # This view asks the host once only.
    context.new_page().goto(f"{world.cockpit}#/builds/quarantine/1")
    yield world.cockpit
    context.close()


@pytest.fixture
def cockpit(session, browser) -> Iterator[View]:
    """A browser in Cockpit."""
    yield from viewed(browser, session)


@pytest.fixture
def web(world, browser, cookies) -> Iterator[View]:
    """A browser at ``fm-consumer web``."""
    address = world.web.replace("/login", "/fm-consumers/").partition("?")[0]
    yield from viewed(browser, address, storage_state=cookies)


@pytest.fixture(params=["cockpit", "web"])
def view(request) -> View:
    """Each of the two."""
    found: View = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def broken(world) -> Iterator[None]:
    """Let the handlers fail; leave an empty quarantine behind."""
    world.mark("mended", there=False)
    world.mark("released", there=False)
    yield
    world.mark("released")
    world.mark("mended")
    if world.rows("builds"):
        world.command("quarantine", "replay", "builds", "--all", "--yes")
    world.mark("mended", there=False)


@pytest.fixture
def running(world) -> None:
    """Start the instance that a test before may have left stopped."""
    world.systemctl("start", "fm-consumer@mails.service")


def test_the_instances_of_the_host_are_shown_with_their_conditions(world, view):
    view.open()
    for name in ("builds", "mails"):
        condition = view.row("instance", name).locator("[data-condition]")
        expect(condition).to_have_text(re.compile("consuming|idle"))
    expect(view.row("instance", "stopped").locator("[data-condition]")).to_have_text("stopped")
    expect(view.page.locator("tr[data-instance]")).to_have_count(4)
    view.page.get_by_label("Name").fill("mai")
    expect(view.page.locator("tr[data-instance]")).to_have_count(1)
    view.row("instance", "mails").get_by_role("link", name="mails").click()
    expect(view.page.get_by_role("heading", level=1)).to_have_text("mails")


@pytest.mark.usefixtures("running")
def test_a_reload_tells_what_it_changed_and_a_wrong_file_is_refused(world, cockpit):
    file = world.file("mails.toml")
    before = file.read_text()
    view = cockpit.open("mails")
    expect(view.order("Reload")).to_have_attribute("data-result", "done")
    view.close()
    file.write_text(before.replace("immediate = 0", "immediate = 1"))
    expect(view.order("Reload")).to_contain_text("1 change read")
    view.close()
    file.write_text(before.replace("immediate = 0", "immediate = true"))
    refused = view.order("Reload")
    expect(refused).to_have_attribute("data-result", "failed")
    expect(refused).to_contain_text("recovery.immediate")
    view.close()
    file.write_text(before)
    expect(view.order("Reload")).to_have_attribute("data-result", "done")


@pytest.mark.usefixtures("running")
def test_an_instance_is_restarted_stopped_and_started(world, cockpit):
    view = cockpit.open("mails")
    pid = world.status("mails")["report"]["pid"]
    expect(view.order("Restart")).to_have_attribute("data-result", "done")
    view.close()
    assert world.status("mails")["report"]["pid"] != pid
    expect(view.order("Stop")).to_have_attribute("data-result", "done")
    view.close()
    assert not world.status("mails")["active"]
    expect(view.page.locator("h1 + [data-condition]")).to_have_text("stopped")
    expect(view.button("Stop")).to_have_count(0)
    expect(view.order("Start")).to_have_attribute("data-result", "done")
    assert world.status("mails")["active"]


@pytest.mark.usefixtures("running")
def test_a_cancelled_order_changes_nothing(world, cockpit):
    view = cockpit.open("mails")
    pid = world.status("mails")["report"]["pid"]
    view.button("Stop").click()
    view.button("Cancel", view.page.get_by_role("dialog")).click()
    expect(view.page.get_by_role("dialog")).to_have_count(0)
    view.button("Stop").click()
    view.page.keyboard.press("Escape")
    expect(view.page.get_by_role("dialog")).to_have_count(0)
    assert world.status("mails")["report"]["pid"] == pid


@pytest.mark.usefixtures("broken")
def test_one_message_of_a_cause_is_tried_before_the_others_are(world, cockpit):
    world.fail("builds", *[NO_VERSION] * 3, UNKNOWN_TAG)
    view = cockpit.open("builds/quarantine")
    cause = view.row("cause", KEY_ERROR)
    expect(cause).to_contain_text("KeyError: 'version'")
    expect(cause.locator("td").first).to_have_text("3")
    expect(view.row("cause", VALUE_ERROR).locator("td").first).to_have_text("1")
    failed = view.order("Replay one", cause)
    expect(failed).to_have_attribute("data-result", "failed")
    expect(failed).to_contain_text("version")
    view.close()
    world.mark("mended")
    expect(view.order("Replay one", cause)).to_have_attribute("data-result", "done")
    view.close()
    expect(cause.locator("td").first).to_have_text("2")
    expect(view.order("Replay all", cause, How="all")).to_contain_text("2 of 2")
    view.close()
    expect(cause).to_have_count(0)
    assert len(world.rows("builds")) == 1


@pytest.mark.usefixtures("broken")
def test_all_messages_of_a_cause_are_dropped_once_their_number_is_typed(world, cockpit):
    world.fail("builds", NO_VERSION, NO_VERSION, UNKNOWN_TAG)
    view = cockpit.open("builds/quarantine")
    view.button("Drop all", view.row("cause", KEY_ERROR)).click()
    dialog = view.page.get_by_role("dialog")
    drop = view.button("Drop all", dialog)
    expect(drop).to_be_disabled()
    dialog.get_by_role("textbox").fill("3")
    expect(drop).to_be_disabled()
    dialog.get_by_role("textbox").fill("2")
    drop.click()
    expect(view.result()).to_contain_text("2 messages dropped")
    view.close()
    assert [row.fingerprint for row in world.rows("builds")] == [VALUE_ERROR]


@pytest.mark.usefixtures("broken")
def test_chosen_messages_are_replayed_and_dropped(world, cockpit):
    first, second, third = world.fail("builds", *[NO_VERSION] * 3)
    view = cockpit.open("builds/quarantine/rows")
    view.page.get_by_label(f"Choose row {second}").check()
    view.page.get_by_label(f"Choose row {third}").check()
    world.mark("mended")
    view.button("Replay chosen").click()
    view.button("Replay", view.page.get_by_role("dialog")).click()
    expect(view.result()).to_contain_text("2 of 2")
    view.close()
    expect(view.row("row", second)).to_have_count(0)
    view.page.get_by_label(f"Choose row {first}").check()
    view.button("Drop chosen").click()
    view.button("Drop", view.page.get_by_role("dialog")).click()
    expect(view.result()).to_contain_text("1 message dropped")
    view.close()
    assert world.rows("builds") == []


@pytest.mark.usefixtures("broken")
def test_a_message_is_edited_and_runs_as_edited(world, view):
    [row] = world.fail("builds", {"n": 12345678901234567890, "owner": "Zoë"})
    view.open("builds/quarantine")
    view.row("cause", KEY_ERROR).get_by_role("link").click()
    view.page.get_by_role("link", name=f"Row {row}").click()
    expect(view.page.locator("main")).to_have_attribute("data-view", "message")
    expect(view.page.get_by_label("Traceback of attempt 1")).to_contain_text(
        'message.body["version"]'
    )
    view.button("Edit").click()
    body = view.page.get_by_label("Edited body")
    text = body.input_value()
    assert json.loads(text) == {"n": 12345678901234567890, "owner": "Zoë"}
    replay = view.button("Replay as edited")
    expect(replay).to_be_disabled()
    body.fill(text[:-1])
    expect(view.page.locator("#fm-body-problem")).to_contain_text("no JSON")
    expect(replay).to_be_disabled()
    body.fill(text.replace("{", '{ "version": "7",', 1))
    expect(view.page.get_by_label("Changed lines")).to_contain_text('+ { "version": "7"')
    replay.click()
    view.button("Replay", view.page.get_by_role("dialog")).click()
    expect(view.result()).to_have_attribute("data-result", "done")
    view.close()
    assert world.rows("builds") == []


@pytest.mark.usefixtures("broken")
def test_a_message_is_replayed_and_dropped_from_its_own_view(world, cockpit):
    first, second = world.fail("builds", NO_VERSION, NO_VERSION)
    view = cockpit.open(f"builds/quarantine/{first}")
    expect(view.order("Drop")).to_have_attribute("data-result", "done")
    view.close()
    assert [str(row.id) for row in world.rows("builds")] == [second]
    view.open(f"builds/quarantine/{second}")
    expect(view.order("Replay")).to_have_attribute("data-result", "failed")
    view.close()
    world.mark("mended")
    expect(view.order("Replay")).to_have_attribute("data-result", "done")


@pytest.mark.usefixtures("broken")
def test_a_cause_is_replayed_in_stages(world, cockpit):
    world.fail("builds", *[NO_VERSION] * 10)
    world.mark("mended")
    view = cockpit.open("builds/quarantine")
    cause = view.row("cause", KEY_ERROR)
    done = view.order("Replay all", cause, How="stages", Stages="10,50,100", At_most="100/s")
    expect(done).to_contain_text("10 of 10")
    view.close()
    assert world.rows("builds") == []


@pytest.mark.usefixtures("broken")
def test_a_replay_is_stopped_after_its_message(world, view):
    world.fail("builds", *[{"slow": True}] * 3)
    world.mark("mended")
    view.open("builds/quarantine")
    view.button("Replay all", view.row("cause", KEY_ERROR)).click()
    dialog = view.page.get_by_role("dialog")
    dialog.get_by_label("How").select_option("all")
    view.button("Replay all", dialog).click()
    expect(dialog.get_by_role("progressbar")).to_be_visible()
    until(lambda: in_flight(world, "builds"), "a message runs")
    view.button("Stop after this message", dialog).click()
    expect(view.result()).to_have_attribute("data-result", "stopped")
    view.close()
    world.mark("released")
    until(lambda: len(world.rows("builds")) == 2, "the message that ran has succeeded")


def in_flight(world: World, name: str) -> list[Any]:
    messages: list[Any] = json.loads(world.command("in-flight", name, "--json"))["messages"]
    return messages


@pytest.mark.usefixtures("running")
def test_an_instance_is_paused_with_a_reason_and_resumed(world, cockpit):
    view = cockpit.open("mails")
    expect(view.order("Pause", Reason="the database moves")).to_have_attribute(
        "data-result", "done"
    )
    view.close()
    expect(view.page.locator("h1 + [data-condition]")).to_have_text("paused")
    expect(view.page.get_by_text("the database moves").first).to_be_visible()
    assert "the database moves" in json.dumps(world.status("mails"))
    expect(view.order("Resume")).to_have_attribute("data-result", "done")
    view.close()
    expect(view.button("Resume")).to_have_count(0)


@pytest.mark.usefixtures("broken")
def test_events_and_messages_in_flight_are_shown_as_they_happen(world, view):
    view.open("builds/events")
    settled = view.page.locator('tr[data-event="settled"]')

    def is_told() -> bool:
        # Events before the command has begun are not shown.
        world.fail("builds", NO_VERSION)
        view.page.wait_for_timeout(200)
        return bool(settled.count())

    until(is_told, "an event is shown")
    expect(settled.first).to_contain_text("quarantine")
    world.mark("mended")
    publish(world.broker.url, "org.example.builds.slow", [b'{"slow": true}'])
    view.open("builds/in-flight")
    expect(view.page.get_by_role("table")).to_contain_text("org.example.builds.slow")


def test_the_settings_in_force_are_shown(cockpit):
    view = cockpit.open("builds/settings")
    name = "consumer_config.framework.recovery"
    expect(view.row("setting", name)).to_contain_text('"immediate": 0')
    view.page.get_by_label("Only those that differ").check()
    expect(view.row("setting", name)).to_have_count(1)


def test_the_lines_of_the_journal_are_shown(world, view):
    if not world.has_journal:
        skip_unless_in_ci("systemd-journal-remote is missing: packaging/system-packages journal")
    view.open("builds/log")
    lines = view.page.get_by_role("table").locator("tbody tr")
    expect(lines).to_have_count(2)
    expect(lines.first).to_contain_text("the second line")
    view.page.get_by_label("Text").fill("first")
    view.button("Search").click()
    expect(lines).to_have_count(1)


def test_messages_of_an_outbox_are_sent_again_and_discarded(world, cockpit):
    for number in ("1", "2"):
        world.command("publish", "--instance", "web", "--topic", f"org.example.{number}")
    view = cockpit.open("web/outbox")
    expect(view.page.get_by_text("No relay runs")).to_be_visible()
    rows = view.page.locator("tr[data-row]")
    expect(rows).to_have_count(2)
    for verb, left in (("Send again", 2), ("Discard", 1)):
        rows.first.get_by_role("link").click()
        expect(view.page.get_by_role("heading", level=1)).to_contain_text("Outbox row")
        expect(view.order(verb)).to_have_attribute("data-result", "done")
        view.close()
        expect(rows).to_have_count(left)


@pytest.mark.usefixtures("broken")
def test_eighty_instances_with_ten_thousand_messages_each_are_shown_in_portions(world, cockpit):
    world.fail("builds", NO_VERSION)
    made = world.multiply(10_000, 80)
    try:
        view = cockpit.open()
        expect(view.page.locator("tr[data-instance]")).to_have_count(84)
        last = view.row("instance", made[-1])
        expect(last).to_contain_text("10,000")
        last.get_by_role("link", name="quarantined messages").click()
        cause = view.row("cause", KEY_ERROR)
        expect(cause.locator("td").first).to_have_text("10,000")
        cause.get_by_role("link").click()
        rows = view.page.locator("tr[data-row]")
        expect(rows).to_have_count(50)
        first = rows.first.get_attribute("data-row")
        view.page.get_by_role("link", name="Next page").click()
        expect(view.row("row", str(first))).to_have_count(0)
        expect(rows).to_have_count(50)
        view.row("row", str(int(str(first)) + 50)).get_by_role("link").click()
        expect(view.page.get_by_label("Traceback of attempt 1")).to_contain_text("KeyError")
    finally:
        world.forget(made)


@pytest.mark.parametrize(
    ("program", "problem", "cure"),
    [
        (None, "fm-consumer is not installed on this host", "Install the package"),
        ('echo "Error: No such option: --json" >&2; exit 2', "is older than this page", "Update"),
        ("echo '{'", "The answer is not understood", "Update"),
    ],
)
def test_a_problem_of_the_command_is_shown_with_its_cure(world, cockpit, program, problem, cure):
    file = "/usr/local/bin/fm-consumer"
    world.root.run("mv", file, f"{file}.good")
    try:
        if program:
            world.root.run("tee", file, input=f"#!/bin/sh\n{program}\n")
            world.root.run("chmod", "+x", file)
        alert = cockpit.open().page.get_by_role("alert")
        expect(alert).to_contain_text(problem)
        expect(alert).to_contain_text(cure)
    finally:
        world.root.run("mv", f"{file}.good", file)


def test_an_instance_that_does_not_exist_is_an_error_with_a_way_back(cockpit):
    view = cockpit.open("nobody")
    expect(view.page.get_by_role("alert")).to_contain_text("There is no instance 'nobody'")
    view.open("nobody/quarantine")
    expect(view.page.get_by_role("alert")).to_contain_text("/etc/fedora-messaging/nobody.toml")


@pytest.mark.usefixtures("broken")
def test_the_page_is_used_with_the_keyboard_alone(world, cockpit):
    world.fail("builds", NO_VERSION, NO_VERSION)
    page = cockpit.open().page

    def press_at(role: str, name: str) -> None:
        """Go to an element by Tab, and press Enter there."""
        wanted = page.get_by_role(role, name=name, exact=True).first
        expect(wanted).to_be_visible()
        for _ in range(40):
            page.keyboard.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                break
        else:
            pytest.fail(f"Tab does not reach {name}")
        page.keyboard.press("Enter")

    press_at("link", "builds")
    expect(page.locator("main")).to_have_attribute("data-view", "instance")
    press_at("link", "Quarantine")
    expect(page.locator("tr[data-cause]")).to_have_count(1)
    press_at("button", "Drop all")
    page.keyboard.press("Tab")
    page.get_by_role("dialog").get_by_role("textbox").press_sequentially("2")
    page.keyboard.press("Enter")
    expect(page.locator("[data-result]")).to_contain_text("2 messages dropped")
    press_at("button", "Close")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert world.rows("builds") == []


VIEWS = {
    "instances": "",
    "instance": "builds",
    "in-flight": "builds/in-flight",
    "events": "builds/events",
    "log": "builds/log",
    "settings": "builds/settings",
    "causes": "builds/quarantine",
    "rows": "builds/quarantine/rows",
    "outbox": "builds/outbox",
}


@pytest.mark.usefixtures("broken")
def test_axe_finds_nothing_that_keeps_people_out(world, cockpit):
    [row, _] = world.fail("builds", NO_VERSION, UNKNOWN_TAG)
    checker, view = axe.Axe(), cockpit
    found = {}
    for name, route in {**VIEWS, "message": f"builds/quarantine/{row}"}.items():
        view.open(route)
        assert view.name() == name
        found[name] = violations(checker, view)
    view.button("Edit").click()
    found["editor"] = violations(checker, view)
    view.button("Drop").click()
    found["dialog"] = violations(checker, view)
    assert {name: texts for name, texts in found.items() if texts} == {}


def violations(checker: Any, view: View) -> list[str]:
    found = []
    for scheme in ("light", "dark"):
        view.page.emulate_media(color_scheme=scheme)
        found += [
            f"{scheme}: {one['id']}: {node['target']}: {node['failureSummary']}"
            for one in checker.run(view.page).response["violations"]
            for node in one["nodes"]
        ]
    return found
