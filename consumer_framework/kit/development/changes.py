# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits for changed files of a project, and reports those that changed together as one."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# Milliseconds: the longest time to collect changes, and the silence that ends it.
_LONGEST, _SILENCE = 1000, 100
_NOT_WATCHED = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages"})


def is_watched(path: Path, root: Path, more: Sequence[Path]) -> bool:
    """Tell if a change of *path* is one of the consumer.

    Args:
        path: The file.
        root: The directory of the project.
        more: Further files and directories, of which each file counts.
    """
    if any(path == each or each in path.parents for each in more):
        return True
    if path.suffix != ".py" or root not in path.parents:
        return False
    folders = [parent for parent in path.parents if root in parent.parents]
    return all(map(_is_source, folders))


def _is_source(folder: Path) -> bool:
    name = folder.name
    is_other = name.startswith(".") or name in _NOT_WATCHED
    return not is_other and not (folder / "pyvenv.cfg").exists()


class Changes:
    """Threads that wait for changes.

    Args:
        root: The directory of the project: its Python files count.
        more: Further files and directories; each must exist.

    Attributes:
        descriptor: Can be read once files have changed.

    Raises:
        ConfigurationError: The package that watches is not installed.
    """

    def __init__(self, root: Path, more: Sequence[Path]) -> None:
        try:
            import watchfiles  # noqa: PLC0415 -- an extra
        except ImportError as error:
            what = "watching the files of the project needs the package watchfiles"
            cure = "pip install 'consumer-framework[watch]'"
            raise ConfigurationError(Problem("", what, cure)) from error
        self._root, self._more = root, more
        self._watch = watchfiles.watch
        self._end = threading.Event()
        self._found: queue.SimpleQueue[set[Path] | Exception] = queue.SimpleQueue()
        self.descriptor, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # An editor replaces a file, so the directory of each file is watched. A whole virtual
        # environment would take thousands of watches.
        folders = [p for p in root.iterdir() if p.is_dir() and _is_source(p)]
        deep = [*folders, *(p for p in more if p.is_dir())]
        flat = {root, *(p.parent for p in more if not p.is_dir())}
        self._threads = [
            threading.Thread(target=self._run, args=(places, is_deep), daemon=True)
            for places, is_deep in ((deep, True), (flat, False))
            if places
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        os.close(self.descriptor)
        os.close(self._write)

    def take(self) -> set[Path]:
        """Return the files that have changed since the last call.

        Raises:
            OSError: The files cannot be watched any more.
        """
        os.read(self.descriptor, 4096)
        found: set[Path] = set()
        while not self._found.empty():
            one = self._found.get()
            if isinstance(one, Exception):
                raise OSError(str(one)) from one
            found |= one
        return found

    def _run(self, places: Sequence[Path], is_deep: bool) -> None:  # noqa: FBT001 -- an argument of a thread
        try:
            for changed in self._watch(
                *places,
                watch_filter=lambda _, path: is_watched(Path(path), self._root, self._more),
                debounce=_LONGEST,
                step=_SILENCE,
                stop_event=self._end,
                recursive=is_deep,
                raise_interrupt=False,
            ):
                self._tell({Path(path) for _, path in changed})
        except Exception as error:  # noqa: BLE001 -- it is the parent's to tell
            self._tell(error)

    def _tell(self, found: set[Path] | Exception) -> None:
        self._found.put(found)
        os.write(self._write, b"x")
