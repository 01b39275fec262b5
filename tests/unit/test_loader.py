# SPDX-License-Identifier: GPL-2.0-or-later
"""From what the operator wrote to a handler, or to what is wrong with it."""

import sys
import textwrap
import uuid

import pytest

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.host import loader

FORMS = "name a function, a class with __call__, or a subclass of consumer_framework.Consumer"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(source, name=""):
        name = name or f"author_{uuid.uuid4().hex}"
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def file(tmp_path):
    """Writes a callback file and returns its path."""
    before = set(sys.modules)

    def write(source, name="author_file.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source))
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refused(find, *args):
    with pytest.raises(ConfigurationError) as caught:
        find(*args)
    (problem,) = caught.value.problems
    assert problem.path == "callback"
    assert caught.value.source == args[1]
    return f"{problem.message}; {problem.cure}"


def made(target, consumer_config=None):
    return loader.factory(target, consumer_config or {})()


# What can be loaded.


def test_a_function_is_its_own_handler(module):
    name = module("def handle(message): return message * 2")
    handler = made(loader.find(f" {name}:handle ", "the file"))
    assert handler.call(21) == 42
    assert handler.name == f" {name}:handle "
    assert (handler.setup, handler.teardown) == (None, None)


def test_an_object_of_a_package_is_found(module):
    package = f"package_{uuid.uuid4().hex}"
    module("", f"{package}.__init__")
    name = module(
        "class Handle:\n    def __call__(self, message): return 1\nhandle = Handle()",
        f"{package}.inner",
    )
    assert made(loader.find(f"{name}:handle", "x")).call(None) == 1


def test_a_class_is_made_only_when_the_host_asks_for_it(module):
    name = module("""
        made = []
        class Handle:
            def __init__(self, optional=3):
                made.append(self)
            def __call__(self, message):
                return "called"
    """)
    make = loader.factory(loader.find(f"{name}:Handle", "x"), {})
    assert sys.modules[name].made == []
    assert make().call(None) == "called"
    assert len(sys.modules[name].made) == 1


def test_a_consumer_gets_its_settings_parsed(module):
    name = module("""
        import dataclasses
        from consumer_framework import Consumer
        class Handle(Consumer):
            @dataclasses.dataclass
            class Config:
                limit: int
            def handle(self, message):
                return self.config.limit
    """)
    target = loader.find(f"{name}:Handle", "x")
    handler = made(target, {"limit": 3, "framework": {}})
    assert handler.call(None) == 3
    assert handler.setup is not None
    with pytest.raises(ConfigurationError, match=r"consumer_config.limit: this key is required"):
        loader.factory(target, {})


def test_a_consumer_without_a_config_gets_the_table(module):
    name = module("""
        from consumer_framework import Consumer
        class Handle(Consumer):
            def handle(self, message):
                return self.config
    """)
    target = loader.find(f"{name}:Handle", "x")
    assert made(target, {"a": 1, "framework": {}}).call(None) == {"a": 1}


def test_a_class_whose_signature_python_cannot_tell_is_left_to_itself(module, monkeypatch):
    # Which classes of C these are differs between the versions of Python.
    def signature(_value):
        raise ValueError("no signature found")

    monkeypatch.setattr("inspect.signature", signature)
    name = module("class Handle:\n    def __call__(self, message): return 1")
    assert made(loader.find(f"{name}:Handle", "x")).call(None) == 1


def test_what_the_authors_init_raises_comes_out_of_the_factory(module):
    name = module("""
        class Handle:
            def __init__(self):
                raise OSError("no database")
            def __call__(self, message): ...
    """)
    make = loader.factory(loader.find(f"{name}:Handle", "x"), {})
    with pytest.raises(OSError, match="no database"):
        make()


# What cannot.


@pytest.mark.parametrize("spec", ["", "module", "module:", ":object", "  "])
def test_a_path_that_names_no_object_is_refused(spec):
    assert refused(loader.find, spec, "the file") == (
        f"{spec!r} names no object; write it as module:object"
    )
    assert refused(loader.find_in_file, spec, "--callback-file") == (
        f"{spec!r} names no object; write it as path/to/file.py:object"
    )


def test_a_module_that_is_not_installed_asks_whether_it_is():
    assert refused(loader.find, "no.such:object", "x") == (
        "'no.such:object' cannot be imported: ModuleNotFoundError: No module named 'no'; "
        "is the package installed where fm-consumer runs?"
    )


def test_a_module_that_lies_in_the_working_directory_shows_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lying_here.py").write_text("def handle(message): ...")
    assert refused(loader.find, "lying_here:handle", "x") == (
        "'lying_here:handle' cannot be imported: ModuleNotFoundError: "
        "No module named 'lying_here'; "
        "use --callback-file lying_here.py:handle, or put this directory on PYTHONPATH"
    )


def test_a_module_that_fails_names_the_line(module, tmp_path):
    name = module("\n\nraise RuntimeError('no configuration')\n")
    assert refused(loader.find, f"{name}:handle", "x") == (
        f"'{name}:handle' cannot be imported: RuntimeError: no configuration "
        f"({tmp_path}/{name}.py, line 3); is the package installed where fm-consumer runs?"
    )


@pytest.mark.parametrize("spec", [".relative:object", "a b:c", "a:b:c", "1:2"])
def test_a_module_name_that_is_none_is_refused(spec):
    assert f"{spec!r} cannot be imported: " in refused(loader.find, spec, "x")


def test_a_missing_object_is_named_with_its_file(module, tmp_path):
    name = module("def handle(message): ...")
    assert refused(loader.find, f"{name}:handel", "x") == (
        f"'{name}:handel': {tmp_path}/{name}.py defines no 'handel'; correct it"
    )
    assert refused(loader.find, "sys:handel", "x") == (
        "'sys:handel': sys defines no 'handel'; correct it"
    )


KINDS = [
    ("handle = 3", f"cannot be called (its type is int); {FORMS}"),
    (
        "class handle:\n    def handle(self, message): ...",
        "is a class whose instances cannot be called; give it a __call__(self, message)",
    ),
    (
        "class handle:\n    def __init__(self, config): ...\n    def __call__(self, message): ...",
        (
            "has an __init__ that needs arguments; "
            "read config.conf['consumer_config'] in it, or subclass consumer_framework.Consumer"
        ),
    ),
    (
        "from consumer_framework import Consumer\nclass handle(Consumer):\n    pass",
        "does not implement handle(); add it to the class",
    ),
    (
        "from consumer_framework import Consumer\nhandle = Consumer",
        "does not implement handle(); add it to the class",
    ),
    (
        (
            "from consumer_framework import Consumer\nclass handle(Consumer):\n"
            "    Config = dict\n    def handle(self, message): ..."
        ),
        "has a Config of the wrong kind; use a pydantic model, dataclass or TypedDict",
    ),
]


@pytest.mark.parametrize(("source", "words"), KINDS)
def test_an_object_that_handles_no_messages_is_refused_with_a_cure(module, source, words):
    name = module(source)
    assert refused(loader.find, f"{name}:handle", "x") == f"'{name}:handle' {words}"


# Files.


def test_an_object_of_a_file_is_found(file):
    path = file("def handle(message): return message")
    assert made(loader.find_in_file(f"{path}:handle", "--callback-file")).call(5) == 5


def test_a_file_may_define_classes_that_look_their_module_up(file):
    path = file("""
        from __future__ import annotations
        import dataclasses
        from typing import ClassVar
        from consumer_framework import Consumer
        class Handle(Consumer):
            @dataclasses.dataclass
            class Config:
                kind: ClassVar[int] = 1
                limit: int = 3
            def handle(self, message):
                return self.config.limit
    """)
    assert made(loader.find_in_file(f"{path}:Handle", "x")).call(None) == 3


def test_a_file_with_the_name_of_an_imported_module_hides_nothing(file):
    path = file("import json\ndef handle(message): return json.dumps(message)", "json.py")
    json = sys.modules["json"]
    assert made(loader.find_in_file(f"{path}:handle", "x")).call([1]) == "[1]"
    assert sys.modules["json"] is json


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    assert refused(loader.find_in_file, f"{tmp_path}/none.py:handle", "--callback-file") == (
        f"{tmp_path}/none.py is not a file; name a Python file that exists"
    )
    assert "is not a file" in refused(loader.find_in_file, f"{tmp_path}:handle", "x")


def test_a_file_that_fails_names_the_line(file):
    path = file("\nimport no_such_module_at_all\n")
    assert refused(loader.find_in_file, f"{path}:handle", "x") == (
        f"'{path}:handle' cannot be imported: ModuleNotFoundError: "
        "No module named 'no_such_module_at_all'; mend the file"
    )
    path = file("\n1 / 0\n", "another.py")
    assert refused(loader.find_in_file, f"{path}:handle", "x") == (
        f"'{path}:handle' cannot be imported: ZeroDivisionError: division by zero "
        f"({path}, line 2); mend the file"
    )


def test_a_file_that_is_no_python_file_is_refused(file):
    path = file("def handle(message): ...", "handler.txt")
    assert "does not end in .py" in refused(loader.find_in_file, f"{path}:handle", "x")


def test_a_file_without_the_object_is_refused(file):
    path = file("")
    assert refused(loader.find_in_file, f"{path}:handle", "x") == (
        f"'{path}:handle': {path} defines no 'handle'; correct it"
    )
