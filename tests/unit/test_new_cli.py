# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer new``: a project in every combination of answers, and its update."""

from __future__ import annotations

import configparser
import contextlib
import itertools
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from consumer_framework.adapters import config
from consumer_framework.cli import main
from consumer_framework.kit import project, project_template
from consumer_framework.kit.project_template import ANSWERS, RENDERED, TEMPLATE
from consumer_framework.settings import parse

ROOT = Path(__file__).parents[2]
CHOICES = ("async", "schema", "database", "publishing")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    (tmp_path / "gitconfig").write_text("[user]\nname = Jane Doe\nemail = jane@example.org\n")
    return tmp_path


@pytest.fixture
def run():
    def invoke(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["new", *map(str, words)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def options(chosen: tuple[bool, ...]) -> list[str]:
    return [f"--{key}" for key, yes in zip(CHOICES, chosen, strict=True) if yes]


def files_of(directory: Path) -> dict[str, Path]:
    return {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("chosen", list(itertools.product((False, True), repeat=len(CHOICES))))
def test_every_combination_of_answers_makes_a_whole_project(run, chosen, place):
    run("two-words", *options(chosen), "--no-input", "--license", "GPL-2.0-or-later")
    files = files_of(place / "two-words")
    for name, file in files.items():
        if name != RENDERED:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<!\$)\{\{|\{%|%\}|\{#", text), (
                f"{name} has marks of the template"
            )
            assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), name
            assert " \n" not in text, name
        if file.suffix == ".py":
            compile(file.read_bytes(), name, "exec")
        if name.endswith("pyproject.toml"):
            tomllib.loads(file.read_text())
    parsed = parse(config.read(files["two-words.toml"]))
    assert parsed.callback == "two_words.consumer:TwoWords"
    unit = configparser.ConfigParser(strict=False)
    unit.read(files["systemd/30-two-words.conf"])
    assert unit["Service"]["MemoryMax"] == "768M"
    assert yaml.safe_load(files[".github/workflows/ci.yml"].read_text())["jobs"]
    assert os.access(files["ci"], os.X_OK)
    assert "GNU GENERAL PUBLIC LICENSE" in files["LICENSE"].read_text()
    asynchronous, schema, database, publishing = chosen
    assert ("messages/two_words_messages/__init__.py" in files) is schema
    assert ("two_words/migrations/versions/r0001_seen.py" in files) is database
    handler = files["two_words/consumer.py"].read_text()
    assert ("async def handle" in handler) is asynchronous
    assert ("publishing.publish" in handler) is publishing


def test_a_project_has_the_author_of_git_and_says_which_commands_are_next(run, place):
    said = run("sample-one")
    assert "cd sample-one" in said
    assert "pip install -e '.[test]'" in said
    metadata = tomllib.loads((place / "sample-one/pyproject.toml").read_text())["project"]
    assert metadata["authors"] == [{"name": "Jane Doe", "email": "jane@example.org"}]
    assert "Jane Doe" in (place / "sample-one/LICENSE").read_text()


def test_json_has_the_files_and_the_next_commands(run):
    made = json.loads(run("sample-one", "--directory", "else where", "--json"))
    assert made["directory"] == "else where"
    assert made["next"][0] == "cd 'else where'"
    assert {"sample_one/consumer.py", "sample-one.toml", ANSWERS} <= set(made["files"])


def test_odd_texts_are_quoted_in_every_file(run, place):
    summary = "100 %{dist} isn't `all` ünïcode"
    url = "https://example.com/a%20b"
    run(
        *(
            "odd",
            "--schema",
            "--database",
            "--summary",
            summary.replace("{", "(").replace("}", ")"),
        ),
        *("--author", "Zoë O'Brien", "--url", url, "--topic", "a.ü", "--topic", "b.#"),
    )
    directory = place / "odd"
    metadata = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["authors"][0]["name"] == "Zoë O'Brien"
    assert "URL:            https://example.com/a%%20b\n" in (directory / "odd.spec").read_text()
    parsed = config.read(directory / "odd.toml")
    assert parsed["bindings"][0]["routing_keys"] == ["a.ü", "b.#"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Bad_Name"], "write bad-name"),
        (["sample", "--topic", "a.b c"], "give --topic once for each"),
        (["sample", "--topic", "a..b"], "an empty word"),
        (["sample", "--topic", "#", "--publishing"], "which it publishes"),
        (["sample", "--email", "nobody"], "--email: write an address"),
        (["sample", "--license", "none"], "is not one of"),
        ([], "fm-consumer new NAME"),
        (["sample", "--update"], "a project keeps its name"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_made(run, place, words, said):
    assert said in run(*words, "--no-input", code=2)
    assert [path.name for path in place.iterdir()] == ["gitconfig"]


def test_a_directory_with_files_is_refused_unless_forced(run, place):
    target = place / "sample-one"
    target.mkdir()
    (target / "notes").write_text("mine")
    (target / "README.md").write_text("mine")
    assert "has files already (README.md, notes)" in run("sample-one", code=2)
    assert sorted(files_of(target)) == ["README.md", "notes"]
    run("sample-one", "--force")
    assert (target / "notes").read_text() == "mine"
    assert "# sample-one" in (target / "README.md").read_text()


def test_a_new_git_repository_counts_as_empty(run, place):
    subprocess.run(["git", "init", "-q", "sample-one"], check=True)
    run("sample-one")
    assert (place / "sample-one/pyproject.toml").exists()


def test_a_file_in_place_of_the_directory_is_refused(run, place):
    (place / "sample-one").write_text("mine")
    assert "choose another with --directory" in run("sample-one", code=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_named(run, place):
    (place / "closed").mkdir(mode=0o500)
    assert "cannot be written" in run("sample-one", "--directory", "closed/x", code=1)


def test_a_project_that_cannot_be_written_leaves_nothing(run, place, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left on device" in run("sample-one", code=1)
    assert [path.name for path in place.iterdir()] == ["gitconfig"]


def test_without_copier_the_command_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "copier", None)
    assert "pip install 'consumer-framework[new]'" in run("sample-one", code=78)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_the_page_on_new_projects_shows_the_output_and_the_handler(run, place):
    page = (ROOT / "docs/howto/start-a-project.md").read_text(encoding="utf-8")
    assert f"```text\n{run('build-watcher')}```" in page
    handler = (place / "build-watcher/build_watcher/consumer.py").read_text()
    assert handler[handler.index("class ") :] in page
    questions = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
    for key in ("summary", "handler", "schema", "database", "publishing", "topics", "license"):
        assert f"\n{questions[key]['help'].removesuffix('?')} " in page


def talk(answers: list[str]) -> tuple[int, str]:
    """Run the command on a terminal of its own, and type *answers*, each at its question."""
    ours, its = pty.openpty()
    program = str(Path(sys.executable).parent / "fm-consumer")
    command = [program, "new", "--database", "--topic", "a.b"]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    said = ""
    with contextlib.suppress(OSError):  # Linux: EIO at the end.
        while select.select([ours], [], [], 60)[0] and (shown := os.read(ours, 65536)):
            said += shown.decode()
            if answers and said.rstrip(" ").endswith((":", "?")):
                os.write(ours, f"{answers.pop(0)}\n".encode())
    os.close(ours)
    return process.wait(), said


def test_on_a_terminal_the_command_asks_until_each_answer_is_good(place):
    answers = ["No Name", "good-name", "", "threads", "async", "y", "", "", "", "", ""]
    code, said = talk(answers)
    assert code == 0, said
    assert "write no-name" in said
    assert "'threads' is not one of" in said
    assert "Topics" not in said
    assert "database" not in said.lower().partition("made good-name")[0]
    made = yaml.safe_load((place / "good-name" / ANSWERS).read_text())
    assert made["handler"] == "async"
    assert (made["schema"], made["database"], made["publishing"]) == (True, True, False)
    assert made["topics"] == "a.b"


# The update of a project.


@pytest.fixture
def newer(place: Path, monkeypatch) -> Path:
    """Let the command use a copy of the template, which a test may change."""
    copy = place / "newer template"
    shutil.copytree(TEMPLATE, copy)
    monkeypatch.setattr(project_template, "TEMPLATE", copy)
    return copy


@pytest.fixture
def made(run, place: Path) -> Path:
    run("sample-one", "--database")
    return place / "sample-one"


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_an_update_without_a_newer_template_changes_nothing(run, made):
    change(made / "README.md", "# sample-one", "# My sample")
    before = {name: path.read_bytes() for name, path in files_of(made).items()}
    assert run("--update", "--directory", made) == "the project is up to date\n"
    assert {name: path.read_bytes() for name, path in files_of(made).items()} == before


def test_an_update_brings_the_changes_of_the_template_and_keeps_those_of_the_author(
    run, made, newer
):
    change(made / "sample_one/consumer.py", "import logging", "import logging\nimport math")
    (made / "sample_one/own.py").write_text("mine = 1\n")
    (made / "alembic.ini").unlink()
    template = newer / "project"
    change(
        template / "package/consumer.py.jinja", '"""Handle one message.', '"""Treat one message.'
    )
    change(template / "instance.conf.jinja", "MemoryMax=768M", "MemoryMax=1G")
    (template / "instance.conf.jinja").chmod(0o644)
    (template / "NEWS.md.jinja").write_text("News of {{ name }}\n")
    (template / "tests/test_database.py.jinja").unlink()
    change(template / "alembic.ini.jinja", "development", "other")
    said = run("--update", "--directory", made)
    assert {tuple(line.split(None, 1)) for line in said.splitlines()} == {
        ("NEWS.md", "added"),
        ("alembic.ini", "not added, because you removed it"),
        ("sample_one/consumer.py", "merged"),
        ("systemd/30-sample-one.conf", "updated"),
        ("tests/test_database.py", "removed"),
    }
    consumer = (made / "sample_one/consumer.py").read_text()
    assert "import logging\nimport math\n" in consumer
    assert '"""Treat one message.' in consumer
    assert (made / "NEWS.md").read_text() == "News of sample-one\n"
    assert (made / "sample_one/own.py").read_text() == "mine = 1\n"
    assert not (made / "alembic.ini").exists()
    assert run("--update", "--directory", made) == "the project is up to date\n"


def test_a_second_update_compares_with_the_first(run, made, newer):
    file = newer / "project/instance.conf.jinja"
    change(file, "MemoryMax=768M", "MemoryMax=1G")
    run("--update", "--directory", made)
    change(made / "systemd/30-sample-one.conf", "MemoryMax=1G", "MemoryMax=3G")
    change(newer / "project/README.md.jinja", "## Change it", "## Its files")
    assert run("--update", "--directory", made).split() == ["README.md", "updated"]
    assert "MemoryMax=3G" in (made / "systemd/30-sample-one.conf").read_text()


def test_where_both_changed_the_same_lines_both_texts_are_kept_and_the_exit_code_is_1(
    run, made, newer
):
    change(made / "systemd/30-sample-one.conf", "MemoryMax=768M", "MemoryMax=3G")
    change(newer / "project/instance.conf.jinja", "MemoryMax=768M", "MemoryMax=1G")
    said = run("--update", "--directory", made, code=1)
    assert "systemd/30-sample-one.conf  conflict" in said
    text = (made / "systemd/30-sample-one.conf").read_text()
    assert "<<<<<<< yours\nMemoryMax=3G\n" in text
    assert "MemoryMax=1G\n>>>>>>> the new template" in text
    effects = json.loads(run("--update", "--directory", made, "--json"))
    assert effects == {"effects": {}, "conflicts": []}


def test_an_update_may_change_the_answers(run, made, place):
    said = run("--update", "--directory", made, "--publishing", "--no-database")
    assert re.search(r"^  sample_one/consumer.py +updated$", said, re.MULTILINE)
    assert re.search(r"^  sample_one/database.py +removed$", said, re.MULTILINE)
    assert not (made / "sample_one/migrations").exists()
    fresh = place / "fresh"
    run("sample-one", "--publishing", "--directory", fresh)
    assert {name: path.read_bytes() for name, path in files_of(made).items()} == {
        name: path.read_bytes() for name, path in files_of(fresh).items()
    }


def test_an_update_that_died_half_way_is_completed_by_the_next(run, made, newer, monkeypatch):
    change(made / "README.md", "# sample-one", "# My sample")
    change(newer / "project/README.md.jinja", "## Change it", "## Its files")
    change(newer / "project/instance.conf.jinja", "MemoryMax=768M", "MemoryMax=1G")
    replace = Path.replace
    done: list[Path] = []

    def dies(self, target):
        if done:
            raise OSError(28, "No space left on device", str(target))
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    assert "No space left on device" in run("--update", "--directory", made, code=1)
    monkeypatch.undo()
    monkeypatch.setattr(project_template, "TEMPLATE", newer)
    run("--update", "--directory", made)
    readme = (made / "README.md").read_text()
    assert ("# My sample" in readme, "## Its files" in readme) == (True, True)
    assert "MemoryMax=1G" in (made / "systemd/30-sample-one.conf").read_text()
    assert not [name for name in files_of(made) if name.startswith(".README")]


def test_an_update_is_refused_while_git_has_changes_that_are_not_committed(run, made, newer):
    change(newer / "project/README.md.jinja", "## Change it", "## Its files")
    git = ("git", "-C", str(made))
    subprocess.run([*git, "init", "-q"], check=True)
    assert "commit them first" in run("--update", "--directory", made, code=2)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "New"], check=True)
    assert run("--update", "--directory", made).split() == ["README.md", "updated"]
    run("--update", "--directory", made, "--force")


def test_a_file_that_git_cannot_merge_is_named_and_nothing_is_written(run, made, newer):
    (made / "README.md").write_bytes(b"\0mine")
    change(newer / "project/README.md.jinja", "## Change it", "## Its files")
    change(newer / "project/instance.conf.jinja", "MemoryMax=768M", "MemoryMax=1G")
    assert "README.md: git cannot merge it" in run("--update", "--directory", made, code=78)
    assert "MemoryMax=768M" in (made / "systemd/30-sample-one.conf").read_text()


def test_without_git_a_project_is_made_and_not_updated(run, made, place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    run("sample-two")
    assert "Your Name" in (place / "sample-two/LICENSE").read_text()
    assert "git is missing" in run("--update", "--directory", made, code=78)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (ANSWERS, None, "is no project of 'fm-consumer new'"),
        (ANSWERS, b"[", "cannot be read"),
        (ANSWERS, b"schema: true\n", "has no name"),
        (ANSWERS, b"name: good\nhandler: threads\n", "handler: 'threads' is none of sync, async"),
        (RENDERED, None, "is missing; restore it"),
        (RENDERED, b"PK", "cannot be read"),
    ],
)
def test_broken_records_are_named_with_the_cure(run, made, name, content, said):
    if content is None:
        (made / name).unlink()
    else:
        (made / name).write_bytes(content)
    before = {path: file.read_bytes() for path, file in files_of(made).items()}
    output = run("--update", "--directory", made, code=78)
    assert said in output
    assert name in output
    assert {path: file.read_bytes() for path, file in files_of(made).items()} == before


def test_an_archive_with_paths_outside_of_the_project_removes_nothing_there(run, made, place):
    (place / "outside").write_bytes(b"x")
    old = project_template.Rendering({}, {"../outside": project.File(b"x")})
    (made / RENDERED).write_bytes(old.records()[RENDERED].data)
    run("--update", "--directory", made)
    assert (place / "outside").exists()


def test_the_same_answers_give_the_same_bytes(run, place):
    run("sample-one", "--directory", "a", "--schema")
    run("sample-one", "--directory", "b", "--schema")
    assert {name: path.read_bytes() for name, path in files_of(place / "a").items()} == {
        name: path.read_bytes() for name, path in files_of(place / "b").items()
    }
