"""The Samplers page in a real browser: live, offline, by keyboard, its state in the URL."""

import numpy as np
import pytest
from browser.pages import PLAYER, Page
from conftest import external_requests

import workbench as wb
from workbench.studies.comparison import Comparing, compare
from workbench.ui.form import words

FEW = "samplers=DDIM,Heun,UniPC:order=3&modes=16&most=32"


class Comparison(Page):
    """The page as its user sees it."""

    def __init__(self, page, port) -> None:
        super().__init__(page, port)
        self.home = self.home.replace("trajectories", "samplers")

    def open(self, query: str = FEW) -> "Comparison":
        self.page.goto(f"{self.home}?{query}")
        self.says("evaluations:")
        return self

    def asked(self) -> tuple[wb.Study, Comparing]:
        """What the address stands for."""
        flat = wb.Study.flat_of_query(self.page.url.partition("?")[2])
        mine = Comparing.keys()
        own = {key: flat.pop(key) for key in mine}
        return wb.Study.from_flat(flat), Comparing.from_flat(own)

    def best(self) -> str:
        """What the page must say of its comparison."""
        study, options = self.asked()
        at = compare(study, options).lens.sel(budget=options.nfe)[options.error]
        names = [words(name) for name in at["sampler"].values.tolist()]
        return f"{names[int(np.argmin(at.values.min(1)))]} on"


@pytest.fixture
def page(browser_page, port):
    made = Comparison(browser_page, port)
    yield made
    assert not browser_page.wb_errors
    assert not external_requests(browser_page)


#: Tabs, what they say, and how many figures they draw.
BENEATH = [
    ("Where each is stable", "Relative error of the standard deviation", 3),
    ("Measured order", "Slope of the exact W2 between", 1),
    ("A grid tuned for it", "W2 by grid: log-SNR", 2),
    ("On data that are not Gaussian", "Data: ring as Mixture, 48 seeds", 1),
]


def test_it_says_the_exact_answer_and_each_tab_draws_when_it_is_chosen(page):
    page.open()
    page.draws(2)
    page.says(f"best with 16 evaluations: {page.best()}")
    page.says("power law k^-2, 16 modes")
    page.keep_screenshot("samplers")
    for title, told, more in BENEATH:
        page.open_section(title)
        page.says(told)
        page.draws(2 + more)
    page.turn_theme()
    page.draws(3)


def test_the_address_is_the_whole_state(page):
    page.open(f"{FEW}&exponent=1.5&grids=karras&start=exact&error=kl&process=EDM&nfe=12")
    study, options = page.asked()
    assert (study.process.name, options.exponent, options.grids) == ("EDM", 1.5, "karras")
    page.says(f"best with 12 evaluations: {page.best()}")
    page.enter("exponent", "0.5")
    page.says("power law k^-0.5")
    page.page.go_back()
    page.says("power law k^-1.5")
    assert page.page.get_by_label("exponent", exact=True).input_value() == "1.5"
    # And so is that of a run of it.
    page.page.get_by_text("Play a run of at most 12 evaluations").press("Enter")
    link = page.page.get_by_role("link", name="UniPC 3, log-SNR: 12 steps")
    with page.page.context.expect_page() as opened:
        link.press("Enter")
    opened.value.wait_for_selector(f"{PLAYER}[data-drawn]")
    study = wb.Study.from_query(opened.value.url.partition("?")[2])
    assert (study.sampler.name, study.sampler.order, study.grid.steps) == ("UniPC", 3, 12)
    opened.value.close()


def test_bad_values_are_answered_in_sentences(page):
    page.open(f"samplers=Foo&modes=0&grids=<b>&{FEW.partition('&')[2].partition('&')[2]}")
    page.says("samplers held 'Foo'")
    page.says("grids held '<b>'")
    page.says("modes was 0; it must be a whole number")
    page.enter("number of modes", "many")
    page.says("modes was 'many'; it must be a whole number")
    page.enter("number of modes", "5")
    page.says("power law k^-2, 5 modes")
    assert page.page.get_by_text("it must be a whole number").count() == 0
    # A file of eigenvalues, which has to hold some.
    page.choose("spectrum", "eigenvalues from a file")
    page.says("no eigenvalues are here yet")
    box = page.page.locator("input[type=file]")
    box.set_input_files({"name": "bad.csv", "mimeType": "text/csv", "buffer": b"1,two"})
    page.says("'two' in place 2")
    box.set_input_files({"name": "mine.csv", "mimeType": "text/csv", "buffer": b"4\n2\n1\n"})
    page.says("3 modes of the file ")
    assert page.asked()[1].spectrum == "file"
