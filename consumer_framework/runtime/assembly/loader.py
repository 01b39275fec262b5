# SPDX-License-Identifier: GPL-2.0-or-later
"""From ``module:object`` or ``file.py:object`` to a handler.

Says what is wrong where a callback cannot be imported, and where.

A module that is missing and a file that is no Python need an edit. Whatever else code raises while
it is imported may be over at the next start: a network that is not there yet, a full disk.

Checks that the author's functions can be called as the host calls them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer_framework.author.consumer import BatchConsumer, Consumer, handler_of
from consumer_framework.author.handler import Handler
from consumer_framework.core.errors import ConfigurationError, Problem, TemporaryProblem
from consumer_framework.settings import Recovery, is_config_type, parse_consumer_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType


def import_error(spec: str, source: str, error: BaseException, module: str) -> ConfigurationError:
    """Explain why the callback *spec* cannot be imported.

    Args:
        spec: What the configuration says.
        source: Where it says so.
        error: What the import raised.
        module: The module that was to be imported; "" for a file.
    """
    if isinstance(error, SyntaxError) and _is_file(error.filename):
        problem = _syntax_problem(spec, error)
    elif isinstance(error, ModuleNotFoundError) and error.name:
        problem = _missing_problem(spec, error, module)
    elif isinstance(error, TypeError | ValueError) and not _frames(error):
        # importlib refuses the name itself.
        what = f"{spec!r} cannot be imported: {type(error).__name__}: {error}"
        cure = "write it as module:object" if module else "mend the file"
        problem = Problem("callback", what, cure)
    else:
        text = f": {error}" if str(error) else ""
        what = f"{spec!r} raised {type(error).__name__} while it was imported{text}"
        cure = "see the line named; the next start tries again"
        problem = TemporaryProblem("callback", f"{what}{_where(error)}", cure)
    return ConfigurationError(problem, source=source)


def _syntax_problem(spec: str, error: SyntaxError) -> Problem:
    what = f"{spec!r} is no valid Python: {error.msg} ({error.filename}, line {error.lineno})"
    return Problem("callback", what, "mend the file")


def _missing_problem(spec: str, error: ModuleNotFoundError, module: str) -> Problem:
    missing = error.name or ""
    if module == missing or module.startswith(f"{missing}."):
        what = f"{spec!r} cannot be imported: there is no module {missing!r}"
        return Problem("callback", what, _cure(spec))
    what = f"{spec!r} imports {missing!r}, which is not installed{_where(error)}"
    cure = f"install what provides {missing!r} where fm-consumer runs, or mend the import"
    return Problem("callback", what, cure)


def _cure(spec: str) -> str:
    module, _, attribute = spec.strip().rpartition(":")
    file = module.replace(".", "/") + ".py"
    if Path(file).is_file():
        return f"use --callback-file {file}:{attribute}, or put this directory on PYTHONPATH"
    return "is the package installed where fm-consumer runs?"


def _where(error: BaseException) -> str:
    """Name the last line of the traceback that is not in Python's own library."""
    frames = _frames(error)
    authors = [frame for frame in frames if not _is_pythons(frame.filename)]
    last = (authors or frames)[-1:]
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in last)


def _is_pythons(file: str) -> bool:
    is_installed = "site-packages" in file or "dist-packages" in file
    return file.startswith(("<frozen ", _LIBRARY)) and not is_installed


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    # Those of this package come first, and importlib's stand between any two.
    own = (str(Path(__file__).parents[2]), "<frozen importlib", _IMPORTLIB)
    return [frame for frame in frames if not frame.filename.startswith(own)]


_LIBRARY = sysconfig.get_path("stdlib") + "/"
_IMPORTLIB = str(Path(traceback.__file__).parent / "importlib")


def _is_file(name: str | None) -> bool:
    return name is not None and Path(name).is_file()


# A problem, and its cure.
Found = tuple[str, str]

_NEVER_RUNS = "contains yield: calling it makes a generator, and its code never runs"


def callback_problem(value: Any) -> Found | None:
    """Say why *value*, a function or a callable object, cannot handle a message, if it cannot."""
    cure = "give it one parameter, the message"
    return _problem(value, "it", cure) or _generator_problem(type(value), "__call__")


def class_problem(value: type) -> Found | None:
    """Say why an instance of *value*, a plain class, cannot handle a message, if it cannot."""
    return _method_problem(value, "__call__", "(self, message)")


def consumer_problem(value: type[Consumer]) -> Found | None:
    """Say why the host cannot call *value* or one of its methods, if it cannot."""
    if not _takes(value, 1):
        return (
            "has an __init__ that cannot be called with the config alone",
            "write __init__(self, config), and call super().__init__(config) in it",
        )
    methods = {"handle": "(self, message)", "setup": "(self)", "teardown": "(self)"}
    if issubclass(value, BatchConsumer):
        methods["handle_batch"] = "(self, messages)"
    if hasattr(value, "ordering_key"):
        methods["ordering_key"] = "(self, message)"
    found = (_method_problem(value, name, form) for name, form in methods.items())
    return next(filter(None, found), None)


def _method_problem(value: type, name: str, form: str) -> Found | None:
    method = getattr(value, name)
    if not callable(method):
        return f"has a {name} that is no method", f"write {name}{form}"
    # A static or class method is not given the instance.
    written = inspect.getattr_static(value, name)
    is_bound = isinstance(written, staticmethod | classmethod)
    count = form.count(",") + 1 - is_bound
    if not _takes(method, count):
        return f"has a {name}{_signature(method)} that cannot be called", f"write {name}{form}"
    return _generator_problem(value, name)


def _generator_problem(value: type, name: str) -> Found | None:
    method = getattr(value, name, None)
    if _is_generator(method):
        return f"has a {name}() that {_NEVER_RUNS}", "remove the yield"
    return None


def _problem(function: Callable[..., Any], what: str, cure: str) -> Found | None:
    if not _takes(function, 1):
        return f"takes other arguments than one message: {what} is {_signature(function)}", cure
    if _is_generator(function):
        return _NEVER_RUNS, "remove the yield"
    return None


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether *function* can be called with so many arguments, as far as Python can tell."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        pass  # some objects of C have no signature to look at
    return True


def _signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function))


# Seconds that the handler of a `Consumer` may take. Callbacks as fedora-messaging runs them have no
# limit there, and none here.
CONSUMER_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """An author's object, found but not yet used.

    Attributes:
        name: How the configuration calls it.
        source: Where that was said: a file, or an option of the command line.
        value: A function, a class, or another callable.
    """

    name: str
    source: str
    value: Any


def target_of(callback: str, callback_file: str, written: str | None, source: str) -> Target:
    """Find the object that handles messages.

    Args:
        callback: What ``--callback`` says; stands before the file.
        callback_file: What ``--callback-file`` says; stands before both.
        written: The ``callback`` of the configuration file.
        source: That file.

    Raises:
        ConfigurationError: It cannot be imported, is nothing that handles messages, or none of
            the three names one.
    """
    if callback_file:
        return find_in_file(callback_file, "--callback-file")
    if callback:
        return find(callback, "--callback")
    if written:
        return find(written, source)
    cure = 'set callback = "module:object", or give --callback or --callback-file'
    raise ConfigurationError(Problem("callback", "there is no callback", cure), source=source)


def find(spec: str, source: str) -> Target:
    """Import the object that ``module:object`` names.

    Args:
        spec: The Python path.
        source: Where it was said, for error messages.

    Raises:
        ConfigurationError: It cannot be imported, or is nothing that handles messages.
    """
    module_name, attribute = _split(spec, source, "module:object")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise import_error(spec, source, error, module_name) from error
    return checked(Target(spec, source, _attribute(module, attribute, spec, source)))


def find_in_file(spec: str, source: str) -> Target:
    """Run the file that ``path/to/file.py:object`` names, and return its object.

    Raises:
        ConfigurationError: As :func:`find` does.
    """
    path, attribute = _split(spec, source, "path/to/file.py:object")
    if not Path(path).is_file():
        problem = Problem("callback", f"{path} is not a file", "name a Python file that exists")
        raise ConfigurationError(problem, source=source)
    try:
        module = _run_file(Path(path))
    except (Exception, SystemExit) as error:
        raise import_error(spec, source, error, "") from error
    return checked(Target(spec, source, _attribute(module, attribute, spec, source)))


def factory(
    target: Target,
    consumer_config: Mapping[str, Any],
    absent: frozenset[str] = frozenset(),
    state_dir: Path | None = None,
) -> Callable[[], Handler]:
    """Prepare to make the handler.

    Args:
        target: From :func:`find`.
        consumer_config: The ``[consumer_config]`` table, for a :class:`.Consumer`.
        absent: The TOML paths of values that are not there; something stands for them.
        state_dir: Where a :class:`.Consumer` may keep files.

    Returns:
        What makes the handler, unless something is absent. To be called on the event loop's
        thread: before the loop runs for a plain class, while it runs for a :class:`.Consumer`.
        Raises what the author's ``__init__`` raises.

    Raises:
        ConfigurationError: *consumer_config* does not fit the consumer's ``Config``.
    """
    name, value = target.name, target.value
    if not inspect.isclass(value):
        return lambda: Handler(name, value)
    if issubclass(value, Consumer):
        config = _parsed(value.Config, consumer_config, absent)
        return lambda: handler_of(_made(value, config, state_dir), name)
    make: Callable[[], Any] = value
    return lambda: Handler(name, make())


def _made(kind: type[Consumer], config: Any, state_dir: Path | None) -> Consumer:
    """Make a consumer that knows its directory in ``__init__`` already."""
    consumer = kind.__new__(kind)
    if state_dir is not None:
        consumer._state_dir = state_dir  # noqa: SLF001 -- the host's part of it
    consumer.__init__(config)  # type: ignore[misc]
    return consumer


def _parsed(config_type: Any, table: Mapping[str, Any], absent: frozenset[str]) -> Any:
    try:
        return parse_consumer_config(config_type, table)
    except ConfigurationError as error:
        problems = [problem for problem in error.problems if problem.path not in absent]
        if problems:
            raise ConfigurationError(*problems, source=error.source) from None
        return None


def recovery_of(target: Target) -> Recovery:
    """The recovery settings that the author's class has itself."""
    own = getattr(target.value, "recovery", None)
    return own if isinstance(own, Recovery) else Recovery()


def is_plain_class(target: Target) -> bool:
    """Whether it is a class as fedora-messaging makes it, with a no-argument ``__init__``."""
    return inspect.isclass(target.value) and not issubclass(target.value, Consumer)


def usual_timeout(target: Target) -> float:
    """Seconds that a run may take where the settings do not say; infinite for no limit."""
    is_ours = inspect.isclass(target.value) and not is_plain_class(target)
    return CONSUMER_TIMEOUT if is_ours else math.inf


def packages_of(target: Target) -> set[str]:
    """The packages that the author's code is in.

    The outermost one that has code, of the module that the configuration names and of the one
    that defines the object. A namespace, such as one that a company's packages share, has none.
    """
    module = getattr(inspect.unwrap(target.value), "__module__", None) or ""
    named = target.name.rpartition(":")[0]
    found = {_outermost(name) for name in (named, module) if name in sys.modules}
    return {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}


def _outermost(module: str) -> str:
    parts = module.split(".")
    for number in range(1, len(parts)):
        name = ".".join(parts[:number])
        if getattr(sys.modules.get(name), "__file__", None):
            return name
    return module


def _split(spec: str, source: str, form: str) -> tuple[str, str]:
    before, colon, attribute = spec.strip().rpartition(":")
    if not (before and colon and attribute):
        problem = Problem("callback", f"{spec!r} names no object", f"write it as {form}")
        raise ConfigurationError(problem, source=source)
    return before, attribute


def _run_file(path: Path) -> ModuleType:
    # A name that nothing else imports, not even the file; classes need theirs in sys.modules.
    name = f"callback_file.{path.stem}"
    # fedora-messaging runs a file with any name.
    loader = SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, name: str, spec: str, source: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        where = getattr(module, "__file__", None) or module.__name__
        what = f"{spec!r}: {where} defines no {name!r}"
        raise ConfigurationError(Problem("callback", what, "correct it"), source=source) from None


def checked(target: Target) -> Target:
    """Return *target*, whose object can handle messages.

    Raises:
        ConfigurationError: It cannot.
    """
    problem = _kind_problem(target.value)
    if problem:
        what = f"{target.name!r} {problem[0]}"
        raise ConfigurationError(Problem("callback", what, problem[1]), source=target.source)
    return target


_FORMS = "name a function, a class with __call__, or a subclass of consumer_framework.Consumer"


def _kind_problem(value: Any) -> tuple[str, str] | None:
    """What makes *value* unusable as a callback, and the cure."""
    if not callable(value):
        return f"cannot be called (its type is {type(value).__name__})", _FORMS
    if not inspect.isclass(value):
        return callback_problem(value)
    if not issubclass(value, Consumer):
        return _plain_class_problem(value)
    if inspect.isabstract(value):
        missing = ", ".join(f"{name}()" for name in sorted(value.__abstractmethods__))
        return f"does not implement {missing}", "add it to the class"
    if value.Config is not None and not is_config_type(value.Config):
        return "has a Config of the wrong kind", "use a pydantic model, dataclass or TypedDict"
    return consumer_problem(value)


def _plain_class_problem(value: type) -> tuple[str, str] | None:
    # A class is callable by itself; what counts is whether its instances are.
    if not any("__call__" in base.__dict__ for base in value.__mro__):
        return "is a class whose instances cannot be called", "give it a __call__(self, message)"
    try:
        inspect.signature(value).bind()
    except TypeError:
        cure = "read config.conf['consumer_config'] in it, or subclass consumer_framework.Consumer"
        return "has an __init__ that needs arguments", cure
    except ValueError:
        pass  # a class of C has no signature to look at
    return class_problem(value)
