"""Studies: the stored runs and sweeps of a folder; find, compare, open again, download, delete."""

import panel as pn

from workbench.studies.library import Library, default_folder
from workbench.ui.library import LibraryPage

TITLE = "Studies"
DESCRIPTION = "Find stored runs and sweeps, compare them, open them again."


def page():
    # One for all sessions of this server: it remembers what it has read.
    if "library" not in pn.state.cache:
        pn.state.cache["library"] = Library(pn.state.cache.get("results") or default_folder())
    found = pn.state.cache["library"]
    return LibraryPage(TITLE, found).page()
