"""Where the apps are, and their names as modules; nothing is imported for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

__all__ = ["APPS", "ServeError", "apps_folder", "import_apps"]

PACKAGE = Path(__file__).parent.parent

#: The package of the apps' modules.
APPS = "workbench_apps"


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
