# SPDX-License-Identifier: GPL-2.0-or-later
"""Take the pictures of the page, from real instances in a real browser.

``python docs/page_pictures.py`` writes ``howto/page-*.png``. It takes root, RabbitMQ, Cockpit and
Chromium, as the tests of the page do: ``packaging/system-packages broker page``.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from consumer_framework.testing.broker import Broker

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.integration.instance import publish
from tests.integration.page_world import CHROMIUM, World

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = Path(__file__).parent / "howto"
WIDTH = 1200
GOOD = {"version": "42-1", "package": "kernel", "tag": "f42-updates"}
NO_VERSION = {"package": "kernel", "tag": "f42-updates", "owner": "hazel"}
UNKNOWN_TAG = {"version": "6.9-2", "package": "bash", "tag": "unknown"}
# Messages of each moment: a quiet time, a burst, and its end.
TRAFFIC = (2, 4, 3, 8, 14, 30, 45, 38, 20, 9, 5, 3, 6, 4)
SECONDS_BETWEEN = 3


def traffic(world: World, end: threading.Event) -> None:
    """Publish messages to two instances, now many and now few, until *end*."""
    for place in range(1000):
        for name, count in (("builds", TRAFFIC[place % 14]), ("mails", TRAFFIC[(place + 5) % 14])):
            world.publish(name, *[GOOD] * count)
        if end.wait(SECONDS_BETWEEN):
            return


def take(page: Page, address: str) -> None:
    """Take all pictures."""

    def open_view(route: str) -> None:
        page.goto(f"{address}#/{route}")
        page.wait_for_selector("main[aria-busy=false]")

    def picture(name: str, height: int) -> None:
        page.set_viewport_size({"width": WIDTH, "height": height})
        page.mouse.move(0, 0)
        # Colours change slowly.
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURES / f"page-{name}.png")

    open_view("")
    # The page keeps the past of the rates itself.
    page.wait_for_timeout(SECONDS_BETWEEN * len(TRAFFIC) * 1000)
    picture("instances", 480)
    open_view("builds/quarantine")
    picture("causes", 420)
    page.get_by_role("button", name="Replay all").first.click()
    page.get_by_role("dialog").wait_for()
    picture("stages", 640)
    page.keyboard.press("Escape")
    page.locator("tr[data-cause] a").first.click()
    page.locator("tr[data-row] a").first.click()
    page.get_by_role("button", name="Edit").click()
    body = page.get_by_label("Edited body")
    body.fill(body.input_value().replace("{", '{\n  "version": "42-1",', 1))
    picture("edit", 640)


def main() -> None:
    """Take the pictures, with all that they need."""
    with (
        tempfile.TemporaryDirectory() as place,
        Broker() as broker,
        World(Path(place), broker, "builds", "mails", "koji") as world,
        sync_playwright() as playwright,
    ):
        world.fail("builds", *[NO_VERSION] * 12, *[UNKNOWN_TAG] * 5)
        world.command("pause", "koji", "--reason", "the database moves")
        publish(broker.url, "org.example.koji.done", [b'{"version": "1"}'] * 40)
        end = threading.Event()
        busy = threading.Thread(target=traffic, args=(world, end))
        busy.start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        take(page, world.cockpit)
        browser.close()
        end.set()
        busy.join(60)


if __name__ == "__main__":
    main()
