# SPDX-License-Identifier: GPL-2.0-or-later
"""The loader turns the operator's setting into a handler, or into a problem with its cure."""

import json
import sys
import textwrap
import uuid

import pytest

from consumer_framework.core.errors import ConfigurationError, ExitCode, Problem, TemporaryProblem
from consumer_framework.runtime.assembly import loader

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


# Objects that can be loaded.


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


def test_a_class_whose_signature_python_does_not_know_is_accepted(module, monkeypatch):
    # Which classes of C these are differs between the versions of Python.
    def signature(_value):
        raise ValueError("no signature found")

    monkeypatch.setattr("inspect.signature", signature)
    name = module("class Handle:\n    def __call__(self, message): return 1")
    assert made(loader.find(f"{name}:Handle", "x")).call(None) == 1


def test_an_error_of_the_authors_init_comes_out_of_the_factory(module):
    name = module("""
        class Handle:
            def __init__(self):
                raise OSError("no database")
            def __call__(self, message): ...
    """)
    make = loader.factory(loader.find(f"{name}:Handle", "x"), {})
    with pytest.raises(OSError, match="no database"):
        make()


# Objects that cannot be loaded.


@pytest.mark.parametrize("spec", ["", "module", "module:", ":object", "  "])
def test_a_path_that_names_no_object_is_refused(spec):
    assert refused(loader.find, spec, "the file") == (
        f"{spec!r} names no object; write it as module:object"
    )
    assert refused(loader.find_in_file, spec, "--callback-file") == (
        f"{spec!r} names no object; write it as path/to/file.py:object"
    )


def test_the_problem_of_a_missing_module_suggests_to_install_it():
    assert refused(loader.find, "no.such:object", "x") == (
        "'no.such:object' cannot be imported: there is no module 'no'; "
        "is the package installed where fm-consumer runs?"
    )


def test_the_problem_of_a_module_in_the_working_directory_suggests_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lying_here.py").write_text("def handle(message): ...")
    assert refused(loader.find, "lying_here:handle", "x") == (
        "'lying_here:handle' cannot be imported: there is no module 'lying_here'; "
        "use --callback-file lying_here.py:handle, or put this directory on PYTHONPATH"
    )


IMPORTS = [
    (
        "\n\nraise RuntimeError('no configuration')\n",
        (
            "raised RuntimeError while it was imported: no configuration ({file}, line 3); "
            "see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "import sys\nsys.exit('not today')\n",
        (
            "raised SystemExit while it was imported: not today ({file}, line 2); "
            "see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "import sys\nsys.exit()\n",
        (
            "raised SystemExit while it was imported ({file}, line 2); "
            "see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "import json\n\njson.loads('')\n",
        (
            "raised JSONDecodeError while it was imported: Expecting value: line 1 column 1 (char 0) "  # noqa: E501
            "({file}, line 3); see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "import os\nos.environ['NO_SUCH_VARIABLE']\n",
        (
            "raised KeyError while it was imported: 'NO_SUCH_VARIABLE' "
            "({file}, line 2); see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "from json import dump_it\n",
        (
            "raised ImportError while it was imported: cannot import name 'dump_it' from 'json' "
            f"({json.__file__}) ({{file}}, line 1); see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "eval('1 +')\n",
        (
            "raised SyntaxError while it was imported: invalid syntax (<string>, line 1) "
            "({file}, line 1); see the line named; the next start tries again"
        ),
        ExitCode.TEMPORARY,
    ),
    (
        "\0",
        "is no valid Python: source code string cannot contain null bytes; mend the file",
        ExitCode.CONFIGURATION,
    ),
    (
        "\n\ndef handle(message:\n",
        "is no valid Python: '(' was never closed ({file}, line 3); mend the file",
        ExitCode.CONFIGURATION,
    ),
    (
        "import json\n\nimport no_such_module_at_all.inner\n",
        (
            "imports 'no_such_module_at_all', which is not installed ({file}, line 3); install what "  # noqa: E501
            "provides 'no_such_module_at_all' where fm-consumer runs, or mend the import"
        ),
        ExitCode.CONFIGURATION,
    ),
]


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize(("source", "words", "exit_code"), IMPORTS)
def test_a_failed_import_names_its_line_and_its_own_cure(
    module, file, tmp_path, source, words, exit_code, is_module
):
    if is_module:
        name = module(source)
        path, spec, find = tmp_path / f"{name}.py", f"{name}:handle", loader.find
    else:
        path = file(source)
        spec, find = f"{path}:handle", loader.find_in_file
    assert refused(find, spec, "x") == f"{spec!r} {words.format(file=path)}"
    with pytest.raises(ConfigurationError) as caught:
        find(spec, "x")
    assert caught.value.exit_code == exit_code


def test_a_temporary_problem_beside_a_lasting_one_takes_an_edit():
    problems = TemporaryProblem("callback", "no network"), Problem("qos", "no number")
    assert ConfigurationError(*problems).exit_code == ExitCode.CONFIGURATION


@pytest.mark.parametrize("spec", [".relative:object", "a b:c", "a:b:c", "1:2"])
def test_an_impossible_module_name_is_refused(spec):
    assert f"{spec!r} cannot be imported: " in refused(loader.find, spec, "x")


def test_a_missing_object_is_named_with_its_file(module, tmp_path):
    name = module("def handle(message): ...")
    assert refused(loader.find, f"{name}:handel", "x") == (
        f"'{name}:handel': {tmp_path}/{name}.py defines no 'handel'; correct it"
    )
    assert refused(loader.find, "sys:handel", "x") == (
        "'sys:handel': sys defines no 'handel'; correct it"
    )


CLASS = "from consumer_framework import BatchConsumer, Consumer\nclass handle(Consumer):\n"
KINDS = [
    (
        "def handle(): ...",
        "takes other arguments than one message: it is (); give it one parameter, the message",
    ),
    (
        "def handle(message, queue): ...",
        (
            "takes other arguments than one message: it is (message, queue); "
            "give it one parameter, the message"
        ),
    ),
    (
        "def handle(message):\n    yield",
        "contains yield: calling it makes a generator, and its code never runs; remove the yield",
    ),
    (
        "async def handle(message):\n    yield",
        "contains yield: calling it makes a generator, and its code never runs; remove the yield",
    ),
    (
        "class Handle:\n    def __call__(self, message):\n        yield\nhandle = Handle()",
        (
            "has a __call__() that contains yield: calling it makes a generator, and its code never "  # noqa: E501
            "runs; remove the yield"
        ),
    ),
    (
        "class handle:\n    def __call__(self): ...",
        "has a __call__(self) that cannot be called; write __call__(self, message)",
    ),
    (
        "class handle:\n    def __call__(message): ...",
        "has a __call__(message) that cannot be called; write __call__(self, message)",
    ),
    (
        CLASS + "    def handle(self): ...",
        "has a handle(self) that cannot be called; write handle(self, message)",
    ),
    (
        CLASS + "    def handle(self, message, *, queue): ...",
        "has a handle(self, message, *, queue) that cannot be called; write handle(self, message)",
    ),
    (
        CLASS + "    def handle(self, message):\n        yield",
        (
            "has a handle() that contains yield: calling it makes a generator, and its code never "
            "runs; remove the yield"
        ),
    ),
    (
        CLASS + "    def handle(self, message): ...\n    setup = 3",
        "has a setup that is no method; write setup(self)",
    ),
    (
        CLASS + "    def handle(self, message): ...\n    def teardown(self, reason): ...",
        "has a teardown(self, reason) that cannot be called; write teardown(self)",
    ),
    (
        CLASS + "    def handle(self, message): ...\n    def ordering_key(self): ...",
        "has a ordering_key(self) that cannot be called; write ordering_key(self, message)",
    ),
    (
        CLASS.replace("(Consumer)", "(BatchConsumer)") + "    def handle_batch(self): ...",
        "has a handle_batch(self) that cannot be called; write handle_batch(self, messages)",
    ),
    (
        CLASS + "    def __init__(self): ...\n    def handle(self, message): ...",
        (
            "has an __init__ that cannot be called with the config alone; "
            "write __init__(self, config), and call super().__init__(config) in it"
        ),
    ),
    (
        CLASS + "    def __init__(self, config, db): ...\n    def handle(self, message): ...",
        (
            "has an __init__ that cannot be called with the config alone; "
            "write __init__(self, config), and call super().__init__(config) in it"
        ),
    ),
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
        (
            "does not implement handle(); add it to the class, or decorate methods with @on_topic "
            "or @on_message"
        ),
    ),
    (
        "from consumer_framework import Consumer\nhandle = Consumer",
        (
            "does not implement handle(); add it to the class, or decorate methods with @on_topic "
            "or @on_message"
        ),
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


FITTING = [
    "def handle(message, *more, optional=1): ...",
    "import functools\ndef f(a, b): ...\nhandle = functools.partial(f, 1)",
    "handle = print",
    "class handle:\n    @staticmethod\n    def __call__(message): ...",
    "class handle:\n    @classmethod\n    def __call__(cls, message): ...",
    "class handle:\n    def __init__(self): ...\n    async def __call__(self, msg): ...",
    "from unittest.mock import Mock\nhandle = Mock()",
    (
        "from twisted.internet.defer import inlineCallbacks\n@inlineCallbacks\n"
        "def handle(message):\n    yield"
    ),
    CLASS + "    def __init__(self, config, more=1): ...\n    def handle(self, message): ...",
]


@pytest.mark.parametrize("source", FITTING)
def test_an_object_that_takes_a_message_is_taken(module, source):
    assert loader.find(f"{module(source)}:handle", "x").value is not None


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


@pytest.mark.parametrize("name", ["handler", "handler.txt", "a-b.c"])
def test_a_callback_file_may_have_any_name(file, name):
    path = file("def handle(message): return __file__", name)
    assert made(loader.find_in_file(f"{path}:handle", "x")).call(None) == str(path)


def test_a_file_without_the_object_is_refused(file):
    path = file("")
    assert refused(loader.find_in_file, f"{path}:handle", "x") == (
        f"'{path}:handle': {path} defines no 'handle'; correct it"
    )
