"""The Studies page in a real browser: found, chosen by keyboard, compared, opened, deleted."""

import io
import re
import shutil
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from browser.pages import COLOURS, LONG, PLAYER
from conftest import external_requests

import workbench as wb
from workbench.studies import Study, SweepSpec
from workbench.studies.chunked import keep
from workbench.studies.store import read

FIRST = Study(seeds={"count": 8}, grid={"name": "log_snr", "steps": 4}, device="cpu")
OTHER = FIRST.changed({"sampler": "DDIM"})
EVIL = "<img src=x onerror=console.error(1)>.zarr"


@pytest.fixture(scope="module")
def results(stored):
    """Runs, a sweep with failures, and what should not harm."""
    keep(FIRST, stored / "first.zarr")
    keep(OTHER, stored / "other.zarr")
    shutil.copytree(stored / "first.zarr", stored / EVIL)
    (stored / "torn.zarr").mkdir()
    base = FIRST.changed({"data": "gaussian", "denoiser": "Gaussian"})
    axes = {"sampler": ["DDIM", "Heun"], "grid.steps": [4, 8, 16]}
    wb.studies.sweep(SweepSpec(base, grid=axes), stored / "orders", workers=0)
    devices = SweepSpec(base, grid={"device": ["cpu", "mps"]})
    wb.studies.sweep(devices, stored / "failing", workers=0)
    return stored


@pytest.fixture
def home(results, port):
    """The page's address on a workbench that has ``results``."""
    return f"http://127.0.0.1:{port}/studies"


class Shelf:
    """The page as its user sees it."""

    def __init__(self, page, home) -> None:
        self.page, self.home = page, home

    def open(self, query: str = "") -> "Shelf":
        self.page.goto(f"{self.home}?{query}")
        self.says("to compare.")
        return self

    def says(self, words: str) -> None:
        self.page.get_by_text(words).first.wait_for()

    def box(self, name: str):
        return self.page.get_by_role("checkbox", name=f"Select {name}", exact=True)

    def rows(self) -> list[str]:
        return self.page.locator("tbody tr[data-name] td.name").all_text_contents()

    def shows(self, *names: str) -> None:
        """Wait until the table has these rows, in this order."""
        deadline = time.monotonic() + LONG
        while self.rows() != list(names):
            assert time.monotonic() < deadline, self.rows()
            self.page.wait_for_timeout(50)

    def draws(self) -> None:
        self.page.wait_for_function(f"() => ({COLOURS})().some((colours) => colours > 20)")

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button, exact=True).click()
        return Path(download.value.path()).read_bytes()


@pytest.fixture
def shelf(browser_page, home):
    made = Shelf(browser_page, home)
    yield made
    assert not browser_page.wb_errors
    assert not external_requests(browser_page)


def test_one_by_keyboard_and_everything_of_it(shelf, results, tmp_path):
    shelf.open("order=name")
    shelf.shows(EVIL, "failing", "first.zarr", "orders", "other.zarr", "torn.zarr")
    shelf.box("failing").focus()
    shelf.page.keyboard.press("Tab")
    shelf.page.keyboard.press("Space")
    shelf.says(f"hash {FIRST.hash[:12]}")
    assert shelf.page.url.endswith("selected=first.zarr")
    assert Study.parse(shelf.page.locator("pre").inner_text()) == FIRST
    assert Study.parse(shelf.download("Study").decode()) == FIRST
    with zipfile.ZipFile(io.BytesIO(shelf.download("Data"))) as archive:
        archive.extractall(tmp_path)
    there = read(results / "first.zarr")["final"].values
    np.testing.assert_array_equal(read(tmp_path / "first.zarr")["final"].values, there)


def test_pictures_and_errors_come_and_a_study_file_is_opened(shelf, results):
    shelf.open("order=-error")
    row = shelf.page.locator("tr[data-name='first.zarr']")
    row.locator("td.c-error").filter(has_text=re.compile(r"\d")).wait_for()
    assert float(row.locator("td.c-error").text_content()) > 0
    drawn = "(e) => e.getContext('2d').getImageData(0, 0, e.width, e.height).data.some((v) => v)"
    assert row.locator("canvas").evaluate(drawn)
    shelf.open("text=ddim&order=name")  # among what a sweep contains, too
    shelf.shows("orders", "other.zarr")
    box = shelf.page.locator("input[type=file]")
    text = OTHER.to_yaml().encode()
    box.set_input_files({"name": "mine.yaml", "mimeType": "text/yaml", "buffer": text})
    link = shelf.page.get_by_role("link", name="Open in Trajectories")
    link.wait_for()
    assert Study.from_query(link.get_attribute("href").partition("?")[2]) == OTHER
    box.set_input_files({"name": "bad.yaml", "mimeType": "text/yaml", "buffer": b"sampler: Foo"})
    shelf.says("bad.yaml is no study: sampler was 'Foo'")


def test_its_study_opens_on_the_pages_and_one_is_saved_there(shelf, results):
    shelf.open("selected=other.zarr")
    link = shelf.page.get_by_role("link", name="Open in Trajectories")
    with shelf.page.context.expect_page() as opened:
        link.press("Enter")
    opened.value.wait_for_selector(f"{PLAYER}[data-drawn]")
    assert Study.from_query(opened.value.url.partition("?")[2]) == OTHER
    place = results / f"ring-DDIM-{OTHER.hash[:8]}.zarr"
    try:
        opened.value.get_by_role("button", name="Export").click()
        opened.value.get_by_role("menuitem", name="Save to Studies").click()
        opened.value.get_by_text(f"It is in Studies as {place.name}").wait_for()
        there = read(results / "other.zarr")["final"].values
        np.testing.assert_array_equal(read(place)["final"].values, there)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    opened.value.close()
    shelf.page.get_by_role("link", name="Open in Samplers").wait_for()


def test_two_are_compared(shelf, results):
    shelf.open("selected=first.zarr")
    shelf.box("other.zarr").press("Space")
    ends = [read(results / name)["final"].values for name in ("first.zarr", "other.zarr")]
    rms = np.sqrt(np.square(ends[0].astype(float) - ends[1]).mean())
    shelf.says(f"RMS difference of the final states {rms:.4g} [x]")
    differing = shelf.page.get_by_role("table").filter(has_text="In what the studies differ")
    assert differing.locator("td").all_text_contents()[:3] == ["sampler", "Heun", "DDIM"]
    link = shelf.page.get_by_role("link", name="Play the two beside each other")
    one, other = link.get_attribute("href").split("&pin=")
    assert Study.from_query(one.partition("?")[2]) == FIRST
    assert Study.from_query(unquote(other)) == OTHER
    shelf.box("failing").press("Space")  # a third replaces the first
    shelf.says("Two are compared at a time: failing takes the place of first.zarr.")
    shelf.box("torn.zarr").press("Space")
    shelf.says("cannot be read as a Zarr store")
    assert shelf.page.url.endswith("selected=failing&selected=torn.zarr")


def test_the_address_is_the_state(shelf):
    shelf.open("text=ddim&in=sampler&kind=run&order=name&selected=other.zarr")
    shelf.shows("other.zarr")
    shelf.says(f"hash {OTHER.hash[:12]}")
    find = shelf.page.get_by_label("Find")
    find.fill("heun")
    shelf.page.wait_for_timeout(200)
    find.press("Enter")
    shelf.shows(EVIL, "first.zarr")
    shelf.page.wait_for_url("**text=heun**")  # it follows the rows
    shelf.page.go_back()
    shelf.shows("other.zarr")
    assert find.input_value() == "ddim"
    shelf.open("kind=run&order=name")
    shelf.page.get_by_role("button", name="Sort by Name").click()
    shelf.shows("torn.zarr", "other.zarr", "first.zarr", EVIL)
    shelf.page.wait_for_url("**order=-name**")


def test_an_address_reaches_nothing_else(shelf):
    shelf.open(
        "order=up&selected=../../etc/passwd&selected=%3Cimg%20src=x%20onerror=alert(1)%3E&kind=%3Cb"
    )
    shelf.says("order was 'up'; it must be one of name, state")
    shelf.says("kind was '<b'; it must be one of all, run, sweep")
    shelf.says("No run or sweep is named '../../etc/passwd', '<img src=x onerror=alert(1)>' here.")
    shelf.box(EVIL).press("Space")
    shelf.page.get_by_role("heading", name=EVIL).wait_for()


def test_a_sweep_its_table_its_figure_its_failures(shelf, results):
    shelf.open("selected=orders")
    shelf.draws()
    table = read(results / "orders" / "sweep.zarr").load()
    shelf.says(f"{float(table['output.w2_exact'].sel({'sampler': 'Heun', 'grid.steps': 16})):.4g}")
    shelf.says("output.w2_exact: ")
    shelf.page.get_by_role("combobox", name="Measure").select_option("nfe")
    shelf.says("nfe: denoiser evaluations")
    # Narrow and dark.
    shelf.page.set_viewport_size({"width": 420, "height": 900})
    shelf.page.get_by_role("button", name="Light or dark theme").click()
    shelf.page.wait_for_timeout(300)
    shelf.draws()
    for part in (shelf.page.locator(".wb-rows"), shelf.page.locator(".bk-Figure")):
        box = part.first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 421
    for label in ("Find", "Measure"):  # and what is written is seen on its ground
        colour = shelf.page.get_by_label(label).first.evaluate("(e) => getComputedStyle(e).color")
        assert min(map(float, colour.strip("rgba()").split(",")[:3])) > 128, (label, colour)
    shelf.open("selected=failing")
    shelf.says("1 of the studies of")
    shelf.says("device was 'mps'; on this machine it may be")


def test_delete_asks_first_and_a_new_run_appears(shelf, results):
    shutil.copytree(results / "first.zarr", results / "spare.zarr")
    shelf.open("selected=spare.zarr")
    shelf.page.get_by_role("button", name="Delete", exact=True).click()
    shelf.page.get_by_role("button", name="Keep it").click()
    shelf.page.get_by_text("It moves to .trash").wait_for(state="hidden")
    assert (results / "spare.zarr").is_dir()
    shelf.page.get_by_role("button", name="Delete", exact=True).click()
    shelf.page.get_by_role("button", name="Yes, delete it").click()
    shelf.says("move it back to have it again")
    shelf.box("spare.zarr").wait_for(state="detached")
    assert not (results / "spare.zarr").exists()
    assert len(list((results / ".trash").glob("*spare.zarr"))) == 1
    # And a new run appears.
    place = results / "late.zarr"
    try:
        shutil.copytree(results / "other.zarr", place)
        shelf.page.get_by_role("button", name="Look again").click()
        shelf.box("late.zarr").wait_for()
        error = shelf.page.locator("tr[data-name='late.zarr'] td.c-error")
        error.filter(has_text=re.compile(r"\d")).wait_for()  # it is read no more
    finally:
        shutil.rmtree(place)
