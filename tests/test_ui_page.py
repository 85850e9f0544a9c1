"""A session of a dashboard, without a browser: what its form and its broker do to each other."""

import panel as pn
import pytest

import workbench as wb
from workbench.ui.broker import Broker
from workbench.ui.page import StudyPage


class Session:
    """A page whose runs are counted instead of computed."""

    def __init__(self) -> None:
        self.computed, self.shown = [], []
        self.made = StudyPage(
            title="Test",
            compute=self._compute,
            show=self.shown.append,
            view=pn.pane.HTML(""),
            summary=lambda result: [f"run {result}"],
            dataset=lambda result: None,
            broker=Broker(),
        )
        self.made.page()
        self.settle()

    def _compute(self, study, report):
        self.computed.append(study)
        if study.grid.steps == 13:
            raise ValueError("thirteen steps are not to be had")
        return study.grid.steps

    def settle(self) -> None:
        self.made._broker.submit(
            "the test", lambda report: None, lambda _: None, lambda _: None
        ).wait(10)

    def type(self, key: str, value) -> None:
        self.made._widgets[key].value = value
        self.settle()

    def sentence(self, key: str) -> str:
        return self.made._widgets[key].helper_text


@pytest.fixture
def session():
    return Session()


def test_opens_with_the_default_study(session):
    assert session.computed == [wb.Study()]
    assert session.shown == [32]
    assert "run 32" in session.made._facts.object
    assert wb.Study.from_query(session.made._address.search) == wb.Study()


def test_a_change_runs_and_goes_into_the_address(session):
    session.type("grid.steps", "7")
    assert session.shown == [32, 7]
    assert wb.Study.from_query(session.made._address.search).grid.steps == 7


def test_a_bad_value_keeps_the_last_good_study(session):
    before = session.made._address.search
    session.type("grid.steps", "0")
    assert "grid.steps was '0'" in session.sentence("grid.steps")
    assert session.made._widgets["grid.steps"].error_state
    assert session.shown == [32]
    assert session.made._address.search == before
    session.type("grid.steps", "5")
    assert session.sentence("grid.steps") == ""
    assert session.shown == [32, 5]


def test_choosing_another_entry_shows_its_parameters(session):
    session.type("sampler", "DDIM")
    session.type("sampler.eta", "0.5")
    assert session.made.study.sampler.eta == 0.5
    session.type("sampler", "EulerMaruyama")
    assert session.made._widgets["sampler.eta"].value == "1.0"
    session.type("grid.steps", "9")
    assert session.made.study.sampler.eta == 1.0


def test_a_run_that_fails_says_why_and_the_page_lives_on(session):
    session.type("grid.steps", "13")
    assert session.made._problem.title == "thirteen steps are not to be had"
    session.type("grid.steps", "14")
    assert not session.made._problem.visible
    assert session.shown == [32, 14]


def test_going_back_restores_the_study(session):
    first = session.made._address.search
    session.type("grid.steps", "7")
    session.made._address.search = first
    session.settle()
    assert session.made.study == wb.Study()
    assert session.made._widgets["grid.steps"].value == "32"
    assert session.shown == [32, 7, 32]


def test_reset(session):
    session.type("data", "moons")
    session.made._on_reset(None)
    session.settle()
    assert session.made.study == wb.Study()
    assert session.made._widgets["data"].value == "ring"
