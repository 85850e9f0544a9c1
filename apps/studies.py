"""Studies: the stored runs and sweeps of a folder; find, compare, open again, download, delete."""

import panel as pn

from workbench.studies.library import Library
from workbench.ui.library import LibraryPage
from workbench.ui.session import results_folder

TITLE = "Studies"
DESCRIPTION = "Find stored runs and sweeps, compare them, open them again."


def page():
    # One for all sessions of this server: it remembers what it has read.
    if "library" not in pn.state.cache:
        pn.state.cache["library"] = Library(results_folder())
    found = pn.state.cache["library"]
    return LibraryPage(TITLE, found).page()
