# SPDX-License-Identifier: GPL-2.0-or-later
"""Says what is wrong where a callback cannot be imported, and where.

A module that is missing and a file that is no Python need an edit. Whatever else code raises while
it is imported may be over at the next start: a network that is not there yet, a full disk.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from consumer_framework.core.errors import ConfigurationError, Problem, TemporaryProblem


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
    own = (str(Path(__file__).parent), "<frozen importlib", _IMPORTLIB)
    return [frame for frame in frames if not frame.filename.startswith(own)]


_LIBRARY = sysconfig.get_path("stdlib") + "/"
_IMPORTLIB = str(Path(traceback.__file__).parent / "importlib")


def _is_file(name: str | None) -> bool:
    return name is not None and Path(name).is_file()
