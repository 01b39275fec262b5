# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports the author's object, checks it, and prepares to make its handler.

``module:object`` or ``file.py:object`` names a function, a class with ``__call__`` as
fedora-messaging takes it, or a subclass of :class:`.Consumer`. It is checked before it runs: the
host must be able to call it, and the author's settings must fit its ``Config``.

A missing module and a file that is no Python need an edit. Any other error of an import may be over
at the next start: a network that is not there yet, a full disk.
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
from typing import TYPE_CHECKING, Any, TypeAlias

from consumer_framework.author.config_type import config_type_of
from consumer_framework.author.consumer import (
    BatchConsumer,
    Consumer,
    handler_of,
    routes_of,
    takes_the_rest,
)
from consumer_framework.author.handler import Handler
from consumer_framework.core.errors import ConfigurationError, Problem, TemporaryProblem
from consumer_framework.settings import Recovery, is_config_type, parse_consumer_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from .configuration import RunOptions

    # A problem, and its cure.
    Refusal: TypeAlias = tuple[str, str]

# Seconds that the handler of a `Consumer` may take. Callbacks as fedora-messaging runs them have no
# limit there, and none here.
CONSUMER_TIMEOUT = 600.0

_FORMS = "name a function, a class with __call__, or a subclass of consumer_framework.Consumer"
_NEVER_RUNS = "contains yield: calling it makes a generator, and its code never runs"


@dataclass(frozen=True, slots=True)
class Target:
    """An author's object that was found, and not used yet.

    Attributes:
        name: Its name in the configuration.
        source: The file, or the option of the command line, that names it.
        value: A function, a class, or another callable.
    """

    name: str
    source: str
    value: Any


# Finding it.


def target_of(options: RunOptions, written: str | None) -> Target:
    """Import the object that handles messages.

    Args:
        options: ``--callback-file`` takes precedence over ``--callback``, and both over the file.
        written: The ``callback`` of the configuration file.

    Raises:
        ConfigurationError: It cannot be imported, cannot handle messages, or nothing names one.
    """
    if options.callback_file:
        return find_in_file(options.callback_file, "--callback-file")
    if options.callback:
        return find(options.callback, "--callback")
    if written:
        return find(written, options.source)
    cure = 'set callback = "module:object", or give --callback or --callback-file'
    problem = Problem("callback", "there is no callback", cure)
    raise ConfigurationError(problem, source=options.source)


def find(spec: str, source: str) -> Target:
    """Import the object that ``module:object`` names.

    Args:
        spec: The Python path.
        source: The place that names it, for error messages.

    Raises:
        ConfigurationError: It cannot be imported, or cannot handle messages.
    """
    module_name, attribute = _split(spec, source, "module:object")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _import_error(spec, source, error, module_name) from error
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
        raise _import_error(spec, source, error, "") from error
    return checked(Target(spec, source, _attribute(module, attribute, spec, source)))


def checked(target: Target) -> Target:
    """Return *target*, whose object can handle messages.

    Raises:
        ConfigurationError: It cannot.
    """
    refusal = _refusal(target.value)
    if refusal:
        what = f"{target.name!r} {refusal[0]}"
        raise ConfigurationError(Problem("callback", what, refusal[1]), source=target.source)
    return target


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


# Using it.


def factory(
    target: Target,
    consumer_config: Mapping[str, Any],
    absent: frozenset[str] = frozenset(),
    state_dir: Path | None = None,
) -> Callable[[], Handler]:
    """Prepare to make the handler.

    Args:
        target: The author's object.
        consumer_config: The ``[consumer_config]`` table, for a :class:`.Consumer`.
        absent: The TOML paths of values that are missing; then the handler is not made.
        state_dir: The directory in which a :class:`.Consumer` may keep files.

    Returns:
        A function that makes the handler. To be called on the event loop's thread: before the loop
        runs for a plain class, while it runs for a :class:`.Consumer`. The author's ``__init__``
        may raise in it.

    Raises:
        ConfigurationError: *consumer_config* does not fit the consumer's ``Config``.
    """
    name, value = target.name, target.value
    if not inspect.isclass(value):
        return lambda: Handler(name, value)
    if issubclass(value, Consumer):
        config_type = config_type_of(value, value.Config)
        config = _parsed(config_type, consumer_config, absent)
        return lambda: handler_of(_make_consumer(value, config, state_dir), name)
    make: Callable[[], Any] = value
    return lambda: Handler(name, make())


def config_of(target: Target, consumer_config: Mapping[str, Any]) -> Any:
    """Return the value that the ``__init__`` of the author's :class:`.Consumer` gets.

    Raises:
        ConfigurationError: As for :func:`factory`.
    """
    config_type = config_type_of(target.value, target.value.Config)
    return parse_consumer_config(config_type, consumer_config)


def _make_consumer(kind: type[Consumer], config: Any, state_dir: Path | None) -> Consumer:
    # It knows its directory in __init__ already.
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
    """Return the recovery settings of the author's class."""
    own = getattr(target.value, "recovery", None)
    return own if isinstance(own, Recovery) else Recovery()


def is_plain_class(target: Target) -> bool:
    """Tell whether it is a class as fedora-messaging makes it, with a no-argument ``__init__``."""
    return inspect.isclass(target.value) and not issubclass(target.value, Consumer)


def usual_timeout(target: Target) -> float:
    """Return the seconds that a run may take without a setting; infinite for no limit."""
    is_ours = inspect.isclass(target.value) and not is_plain_class(target)
    return CONSUMER_TIMEOUT if is_ours else math.inf


def packages_of(target: Target) -> set[str]:
    """Return the packages of the author's code.

    They are the outermost packages that have code: of the module that the configuration names, and
    of the module that defines the object. A namespace, such as one that a company's packages share,
    has no code. A ready-made consumer has none: its code is the framework's.
    """
    module = getattr(inspect.unwrap(target.value), "__module__", None) or ""
    named = target.name.rpartition(":")[0]
    found = {_outermost(name) for name in (named, module) if name in sys.modules}
    others = {*sys.stdlib_module_names, "consumer_framework"}
    return {name for name in found if name.partition(".")[0] not in others}


def _outermost(module: str) -> str:
    parts = module.split(".")
    for number in range(1, len(parts)):
        name = ".".join(parts[:number])
        if getattr(sys.modules.get(name), "__file__", None):
            return name
    return module


# Checks of its form: the host must be able to call it.


def _refusal(value: Any) -> Refusal | None:
    if not callable(value):
        return f"cannot be called (its type is {type(value).__name__})", _FORMS
    if not inspect.isclass(value):
        return _function_refusal(value)
    if not issubclass(value, Consumer):
        return _plain_class_refusal(value)
    if missing := _missing(value):
        return missing
    config_type = config_type_of(value, value.Config)
    if config_type is not None and not is_config_type(config_type):
        return "has a Config of the wrong kind", "use a pydantic model, dataclass or TypedDict"
    return _consumer_refusal(value)


def _missing(value: type[Consumer]) -> Refusal | None:
    if inspect.isabstract(value):
        missing = ", ".join(f"{name}()" for name in sorted(value.__abstractmethods__))
        return f"does not implement {missing}", "add it to the class"
    if takes_the_rest(value) or routes_of(value):
        return None
    cure = "add it to the class, or decorate methods with @on_topic or @on_message"
    return "does not implement handle()", cure


def _function_refusal(value: Any) -> Refusal | None:
    if not _takes(value, 1):
        what = f"takes other arguments than one message: it is {_signature(value)}"
        return what, "give it one parameter, the message"
    if _is_generator(value):
        return _NEVER_RUNS, "remove the yield"
    return _generator_refusal(type(value), "__call__")


def _plain_class_refusal(value: type) -> Refusal | None:
    # Every class is callable by itself; its instances may not be.
    if not any("__call__" in base.__dict__ for base in value.__mro__):
        return "is a class whose instances cannot be called", "give it a __call__(self, message)"
    try:
        inspect.signature(value).bind()
    except TypeError:
        cure = "read config.conf['consumer_config'] in it, or subclass consumer_framework.Consumer"
        return "has an __init__ that needs arguments", cure
    except ValueError:
        pass  # a class of C has no signature to look at
    return _method_refusal(value, "__call__", "(self, message)")


def _consumer_refusal(value: type[Consumer]) -> Refusal | None:
    if not _takes(value, 1):
        return (
            "has an __init__ that cannot be called with the config alone",
            "write __init__(self, config), and call super().__init__(config) in it",
        )
    methods = {"handle": "(self, message)", "setup": "(self)", "teardown": "(self)"}
    if issubclass(value, BatchConsumer):
        methods["handle_batch"] = "(self, messages)"
    methods |= {route.name: "(self, message)" for route in routes_of(value)}
    if hasattr(value, "ordering_key"):
        methods["ordering_key"] = "(self, message)"
    if hasattr(value, "stop_requested"):
        methods["stop_requested"] = "(self)"
    found = (_method_refusal(value, name, form) for name, form in methods.items())
    return next(filter(None, found), None)


def _method_refusal(value: type, name: str, form: str) -> Refusal | None:
    method = getattr(value, name)
    if not callable(method):
        return f"has a {name} that is no method", f"write {name}{form}"
    # A static or class method is not given the instance.
    written = inspect.getattr_static(value, name)
    is_bound = isinstance(written, staticmethod | classmethod)
    count = form.count(",") + 1 - is_bound
    if not _takes(method, count):
        return f"has a {name}{_signature(method)} that cannot be called", f"write {name}{form}"
    return _generator_refusal(value, name)


def _generator_refusal(value: type, name: str) -> Refusal | None:
    if _is_generator(getattr(value, name, None)):
        return f"has a {name}() that {_NEVER_RUNS}", "remove the yield"
    return None


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        pass  # some objects of C have no signature to look at
    return True


def _signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function))


# Errors of an import.


def _import_error(spec: str, source: str, error: BaseException, module: str) -> ConfigurationError:
    """Explain why the callback *spec* cannot be imported; *module* is "" for a file."""
    if isinstance(error, ConfigurationError):
        # The routes of a class have faults.
        return ConfigurationError(*error.problems, source=source)
    if isinstance(error, SyntaxError) and _is_of_a_file(error):
        where = f" ({error.filename}, line {error.lineno})" if error.filename else ""
        what = f"{spec!r} is no valid Python: {error.msg}{where}"
        problem = Problem("callback", what, "mend the file")
    elif isinstance(error, ModuleNotFoundError) and error.name:
        problem = _missing_module(spec, error, module)
    elif isinstance(error, TypeError | ValueError) and not _frames(error):
        # importlib refuses the name itself.
        what = f"{spec!r} cannot be imported: {type(error).__name__}: {error}"
        cure = "write it as module:object" if module else "mend the file"
        problem = Problem("callback", what, cure)
    else:
        text = f": {error}" if str(error) else ""
        what = f"{spec!r} raised {type(error).__name__} while it was imported{text}"
        cure = "see the line named; the next start tries again"
        problem = TemporaryProblem("callback", f"{what}{_last_line(error)}", cure)
    return ConfigurationError(problem, source=source)


def _is_of_a_file(error: SyntaxError) -> bool:
    """Tell whether a file has the error, and not a text that the module compiled as it ran.

    A file that is no text at all, such as one with a NUL, raises an error without its name.
    """
    return Path(error.filename).is_file() if error.filename else not _frames(error)


def _missing_module(spec: str, error: ModuleNotFoundError, module: str) -> Problem:
    missing = error.name or ""
    if module == missing or module.startswith(f"{missing}."):
        what = f"{spec!r} cannot be imported: there is no module {missing!r}"
        return Problem("callback", what, _cure_of_missing(spec))
    what = f"{spec!r} imports {missing!r}, which is not installed{_last_line(error)}"
    cure = f"install what provides {missing!r} where fm-consumer runs, or mend the import"
    return Problem("callback", what, cure)


def _cure_of_missing(spec: str) -> str:
    module, _, attribute = spec.strip().rpartition(":")
    file = module.replace(".", "/") + ".py"
    if Path(file).is_file():
        return f"use --callback-file {file}:{attribute}, or put this directory on PYTHONPATH"
    return "is the package installed where fm-consumer runs?"


def _last_line(error: BaseException) -> str:
    """Name the last line of the traceback that is not in Python's own library."""
    frames = _frames(error)
    authors = [frame for frame in frames if not _is_pythons(frame.filename)]
    last = (authors or frames)[-1:]
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in last)


_LIBRARY = sysconfig.get_path("stdlib") + "/"
_IMPORTLIB = str(Path(traceback.__file__).parent / "importlib")


def _is_pythons(file: str) -> bool:
    is_installed = "site-packages" in file or "dist-packages" in file
    return file.startswith(("<frozen ", _LIBRARY)) and not is_installed


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    # Those of this package come first, and importlib's stand between any two.
    own = (str(Path(__file__).parents[2]), "<frozen importlib", _IMPORTLIB)
    return [frame for frame in frames if not frame.filename.startswith(own)]
