# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader who follows the pages about moves from other frameworks sees the text of the pages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .pages import Reader

HOWTO = Path(__file__).resolve().parents[2] / "docs/howto"
PAGES = {"move-from-fedmsg.md": "builds.toml", "move-from-plugins.md": "chores.toml"}


@pytest.mark.parametrize("page", PAGES)
def test_a_move_goes_as_the_page_says(page, tmp_path):
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs}
    reader = Reader(tmp_path, PAGES[page], environment)
    reader.follow((HOWTO / page).read_text(encoding="utf-8"))
