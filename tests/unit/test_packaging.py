# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages agree with the project."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import click
import pytest

from consumer_framework.cli import main

ROOT = Path(__file__).resolve().parents[2]
SPEC = (ROOT / "packaging/rpm/consumer-framework.spec").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The extras for work on the framework itself, and `new`, which the RPMs do not have.
DEVELOPMENT_EXTRAS = {"new", "demo", "schemas", "test", "lint", "rpm", "docs", "bench", "dev"}


def script(name: str) -> Any:
    """Return a script of packaging/ as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / f"packaging/{name}.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


licences = script("licences")


def test_the_spec_has_the_projects_version():
    [version] = re.findall(r"^Version:\s+(\S+)$", SPEC, re.MULTILINE)
    assert version == PROJECT["version"]


def test_the_spec_has_a_package_for_each_extra_that_is_for_use():
    [named] = re.findall(r"^%global run_time_extras (.+)$", SPEC, re.MULTILINE)
    packaged = set() if named == "%{nil}" else set(named.split(","))
    assert packaged == set(PROJECT["optional-dependencies"]) - DEVELOPMENT_EXTRAS


def test_the_spec_names_each_library_of_the_page_with_its_licence():
    vendor = json.loads((ROOT / "packaging/cockpit/vendor.json").read_text(encoding="utf-8"))
    [licence] = re.findall(r"^License: +(.+ AND .+)$", SPEC, re.MULTILINE)
    for name, library in vendor.items():
        assert f"Provides:       bundled(npm({name})) = {library['version']}\n" in SPEC
        assert set(library["licence"].split(" AND ")) <= set(licence.split(" AND "))


def test_the_spec_names_each_unit():
    for unit in (ROOT / "units").glob("*.*"):
        if unit.is_file() and "@" not in unit.name:
            assert f"%{{_unitdir}}/{unit.name}\n" in SPEC


def test_the_page_on_packages_shows_the_template_filled_in():
    page = (ROOT / "docs/howto/package-a-consumer.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```spec\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    filled = (ROOT / "packaging/rpm/consumer.spec.in").read_text(encoding="utf-8")
    words = {
        "VERSION": "1.0",
        "SUMMARY": "Prints messages about packages",
        "LICENSE": "GPL-2.0-or-later",
        "URL": "https://example.com/",
        "DATE": "Mon Jan 05 2026",
        "PACKAGER": "Jane Doe <jane@example.com>",
        **dict.fromkeys(("PROJECT", "SDIST", "MODULE", "NAME"), "sample"),
    }
    for word, value in words.items():
        filled = filled.replace(f"@{word}@", value)
    assert shown == filled


def test_the_page_on_packages_has_every_macro():
    page = (ROOT / "docs/howto/package-a-consumer.md").read_text(encoding="utf-8")
    text = (ROOT / "packaging/rpm/macros.consumer-framework").read_text(encoding="utf-8")
    macros = re.findall(r"^%(fm_\w+)", text, re.MULTILINE)
    assert macros
    assert [
        name for name in macros if not re.search(rf"^\| `%{{?\??{name}\b", page, re.MULTILINE)
    ] == []


def names(command: click.Command | None, name: str) -> list[str]:
    found = [name]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            found += names(command.get_command(context, word), f"{name}-{word}")
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    directory: Path = tmp_path_factory.mktemp("man")
    subprocess.run(
        [sys.executable, ROOT / "packaging/man_pages.py", directory],
        env={**os.environ, "SOURCE_DATE_EPOCH": "86400"},
        check=True,
    )
    return directory


def test_each_command_has_a_man_page_of_the_given_date(pages):
    assert {path.name for path in pages.iterdir()} == {
        f"{name}.1" for name in names(main, "fm-consumer")
    }
    for page in pages.iterdir():
        assert ' "1" "1970-01-02" "consumer_framework ' in page.read_text()


def test_a_man_page_has_the_text_of_help(pages):
    page = (pages / "fm-consumer-run.1").read_text()
    assert "\\fB\\-\\-callback\\-file FILE.py:OBJECT\\fR\n" in page
    assert "\n.SH EXIT STATUS\n" in page
    assert "  78  the configuration can never work" in page
    assert "fm\\-consumer\\-run" in (pages / "fm-consumer.1").read_text()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_finds_nothing_wrong_with_the_man_pages(pages):
    groff = ("groff", "-man", "-Tutf8", "-ww", "-z")
    done = subprocess.run([*groff, *pages.iterdir()], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_licence_of_every_run_time_dependency_is_allowed(capsys):
    assert licences.main("consumer-framework") == 0
    said = capsys.readouterr().out
    assert re.search(r"^fedora_messaging +GPL-2.0-or-later$", said, re.MULTILINE)
    assert re.search(r"^zope.interface ", said, re.MULTILINE), "what Twisted needs"
    assert "pytest" not in said


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-3-Clause", True),
        ("AGPL-3.0-only OR MIT", True),
        ("(MIT AND BSD-3-Clause) OR ISC", True),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", True),
        ("MIT AND SSPL-1.0", False),
        ("GPL-2.0-only AND MIT", False),
        ("UNKNOWN", False),
        ("", False),
    ],
)
def test_a_licence_is_judged_by_its_spdx_expression(said, allowed):
    assert licences.judge("package", said).allowed is allowed


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("License-Expression: MIT-0\nLicense: something else", "MIT-0"),
        ("License: Apache License, Version 2.0", "Apache-2.0"),
        (
            "License: BSD-3-Clause\nClassifier: License :: OSI Approved :: BSD License",
            "BSD-3-Clause",
        ),
        ("Classifier: License :: OSI Approved :: MIT License", "MIT"),
        ("Classifier: License :: OSI Approved", ""),
        ("License: Copyright 2014\n        Permission is hereby granted", ""),
        ("License: Beerware", "Beerware"),
    ],
)
def test_a_licence_is_read_from_the_metadata_of_the_package(tmp_path, metadata, said):
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{metadata}\n")
    assert licences.spoken(PathDistribution(tmp_path)) == said


def install(directory: Path, name: str, *lines: str) -> None:
    metadata = directory / f"{name}-1.dist-info/METADATA"
    metadata.parent.mkdir()
    head = ("Metadata-Version: 2.4", f"Name: {name}", "Version: 1")
    metadata.write_text("\n".join([*head, *lines, ""]))


def test_a_refused_licence_is_named_with_its_package_however_deep_it_is(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "top", "Requires-Dist: middle[more]", 'Requires-Dist: gone; extra == "test"')
    install(
        tmp_path,
        "middle",
        "License-Expression: MIT",
        "Provides-Extra: more",
        'Requires-Dist: bottom; extra == "more"',
        'Requires-Dist: winonly; sys_platform == "win32"',
        "Requires-Dist: top",
    )
    install(tmp_path, "bottom", "License-Expression: SSPL-1.0")
    assert licences.main("top") == 1
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()] == [
        ["bottom", "SSPL-1.0"],
        ["middle", "MIT"],
    ]
    assert "licences: bottom: SSPL-1.0: not in ALLOWED" in said.err
    assert "middle" not in said.err


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "top", "Requires-Dist: nowhere-to-be-found")
    assert licences.main("top") == 1
    assert "nowhere-to-be-found is not installed" in capsys.readouterr().err
