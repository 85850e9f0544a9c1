"""One served workbench for every test of a page."""

import pytest
from browser.pages import served
from helpers import free_port


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """The folder of results of the served workbench."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def gate():
    """A port by which the served workbench may be reached too, through a `pages.Gate`."""
    return free_port()


@pytest.fixture(scope="session")
def port(stored, gate, reader):
    """A served workbench on a free port, and a page of it that keeps the browser's process."""
    options = ("--results", str(stored), "--origin", f"127.0.0.1:{gate}")
    with served(stored.parent / f"{stored.name}.log", *options) as number:
        page = reader.new_page()
        page.goto(f"http://127.0.0.1:{number}/liveness")
        reader.wb_parked.append(page)
        yield number
