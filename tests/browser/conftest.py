"""One served workbench for every test of a page."""

import pytest
from browser.pages import served


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """The folder of results of the served workbench."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def port(stored):
    """A served workbench on a free port."""
    with served(stored.parent / f"{stored.name}.log", "--results", str(stored)) as number:
        yield number
