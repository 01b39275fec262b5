# SPDX-License-Identifier: GPL-2.0-or-later
"""The page about steps: its handler fails its test as shown, and passes after the change."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "howto/do-an-effect-once.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run_pytest(directory):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_triage.py"]
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_the_page_about_steps_works_as_it_says(tmp_path):
    handler, test, change, _ = blocks("python")
    (tmp_path / "test_triage.py").write_text(test)
    (tmp_path / "triage.py").write_text(handler)
    code, output = run_pytest(tmp_path)
    assert code == 1
    for line in blocks("text")[0].splitlines():
        # Each message has another id.
        assert line.partition("(id ")[0].strip() in output
    before = handler[handler.index("    def handle") : handler.index("\n    def file_bug")]
    (tmp_path / "triage.py").write_text(handler.replace(before, textwrap.indent(change, "    ")))
    assert run_pytest(tmp_path)[0] == 0


def test_the_table_of_crashes_names_tests_that_exist():
    page = (DOCS / "explanation/recovery.md").read_text()
    named = re.findall(r"`(test_\w+)(?:\[[^]]+])?`", page.partition("### Steps after a crash")[2])
    tests = "".join(file.read_text() for file in (DOCS.parent / "tests").rglob("test_*.py"))
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []
