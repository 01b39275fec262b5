# SPDX-License-Identifier: GPL-2.0-or-later
"""Do something with a module of others once it is imported, without importing it."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(name: str, function: Callable[[Any], object]) -> Callable[[], None]:
    """Call *function* with the module *name*: now, or right after somebody has imported it.

    Returns:
        A function that gives up waiting.
    """
    if name in sys.modules:
        function(sys.modules[name])
        return lambda: None
    finder = _Finder(name, function)
    sys.meta_path.insert(0, finder)
    return finder.remove


class _Finder(MetaPathFinder):
    def __init__(self, name: str, function: Callable[[Any], object]) -> None:
        self._name = name
        self._function = function

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: object = None,  # noqa: ARG002 -- as its interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Find the module as others do, and have *function* called after its import."""
        if fullname != self._name:
            return None
        self.remove()
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._function(module)

            loader.exec_module = exec_module
        return spec
