"""The pages of the served workbench: files in ``apps/``, and whatever a plugin registers.

A page is registered like everything else. Outside of the package it is a function::

    @wb.register(kind="page", title="Mine")
    def mine():
        \"\"\"What the page is for.\"\"\"
        return StudyPage(...).page()

A file in ``apps/`` has ``TITLE``, ``DESCRIPTION`` and ``page()``; it is imported when its page is
first made, so that a list of pages costs nothing.
"""

from __future__ import annotations

import ast
import importlib
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from workbench.registry import register

PACKAGE = Path(__file__).parent.parent

#: The package of the apps' modules.
APPS = "workbench_apps"

#: Held while a thread imports what computes: imports in a circle must not be begun by two threads.
IMPORTING = threading.RLock()


class ServeError(RuntimeError):
    """The dashboards cannot be served; the text says why and what to do."""


def apps_folder() -> Path:
    """Where the apps are: inside an installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "apps", PACKAGE.parent / "apps"):
        if folder.is_dir():
            return folder
    raise ServeError(f"no apps folder was found in or beside {PACKAGE}; reinstall the package.")


def import_apps() -> None:
    """Have the apps' files importable as modules of a package, here and for what is unpickled."""
    if APPS not in sys.modules:
        package = ModuleType(APPS)
        package.__path__ = [str(apps_folder())]
        sys.modules[APPS] = package


def _texts(file: Path) -> dict[str, str]:
    """The texts that a module gives names to, without running it."""
    found = {}
    for line in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            with suppress(ValueError):
                value = ast.literal_eval(line.value)
                if isinstance(value, str):
                    found[line.targets[0].id] = value
    return found


def _page_of(file: Path) -> Callable[[], object]:
    """The page of a file, which is imported when it is first called."""

    def page() -> object:
        with IMPORTING:
            import_apps()
            module = importlib.import_module(f"{APPS}.{file.stem}")
        return module.page()

    page.__name__ = page.__qualname__ = file.stem
    return page


def _register_all() -> None:
    for file in sorted(apps_folder().glob("[!_]*.py")):
        texts, page = _texts(file), _page_of(file)
        for name in ("TITLE", "DESCRIPTION"):
            if name not in texts:
                raise ServeError(f"{file} says no {name}: write {name} = '...' in it.")
        page.__doc__ = texts["DESCRIPTION"]
        register(page, kind="page", title=texts["TITLE"], file=file)


_register_all()
