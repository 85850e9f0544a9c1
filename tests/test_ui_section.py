"""A section beside a page's picture, without a browser: when it computes, what it says, keeps."""

import pickle
import threading

import panel as pn
import pytest

import workbench as wb
from workbench.studies import StudyError
from workbench.ui.broker import Broker
from workbench.ui.page import StudyPage
from workbench.ui.section import FigureRow, Section
from workbench.ui.tasks import figures


class Session:
    """A page with one section; runs are counted instead of computed."""

    def __init__(self, sections: int = 1) -> None:
        self.ran, self.computed, self.shown = [], [], []
        self.gate, self.reports = threading.Event(), []
        self.began = threading.Semaphore(0)
        self.gate.set()
        self.sections = [
            Section("Beneath", self._compute, self.shown.append, pn.pane.HTML(""))
            for _ in range(sections)
        ]
        self.section = self.sections[0]
        self.broker = Broker()
        self.page = StudyPage(
            title="Test",
            compute=lambda study, report: self.ran.append(study),
            show=lambda result: None,
            view=pn.pane.HTML(""),
            summary=lambda result: [],
            dataset=lambda result: None,
            sections=self.sections,
            broker=self.broker,
        )
        self.page.page()
        self.settle()

    def _compute(self, study, report):
        self.computed.append(study.grid.steps)
        self.began.release()
        if study.grid.steps == 13:
            raise ValueError("thirteen steps are not to be had")
        if study.grid.steps == 14:
            raise StudyError({"grid.steps": "grid.steps was 14.", "grid": "Choose another grid."})
        if study.grid.steps == 15:
            raise RuntimeError("<no> memory")
        for share in (0.25, 0.5):
            report("counting", share)
            self.gate.wait(20)
        report("counting", 0.75)
        return study.grid.steps

    def settle(self) -> None:
        """Wait until all that was asked for before is over."""
        nothing = lambda _: None  # noqa: E731
        mine = self.page._session.number  # in turn with what its page has asked for
        self.broker.submit("test", nothing, nothing, nothing, session=mine).wait(20)

    def open(self, which: int = 0) -> None:
        self.sections[which].is_open = True

    def close(self) -> None:
        self.section.is_open = False

    def type(self, steps: int) -> None:
        self.page.edit("grid.steps", str(steps))

    @property
    def sentence(self) -> str:
        problem = self.section._problem
        return problem.title if problem.visible else ""

    @property
    def row(self):
        return self.section._work


@pytest.fixture
def session():
    made = Session()
    yield made
    made.gate.set()
    made.broker.close()


def test_it_is_closed_at_first_and_costs_nothing(session):
    assert session.ran == [wb.Study()]
    assert session.computed == []
    assert not session.section.is_open
    session.type(7)
    session.settle()
    assert (session.computed, session.shown) == ([], [])


def test_opened_it_computes_the_page_s_study(session):
    session.type(7)
    session.open()
    session.settle()
    assert (session.computed, session.shown) == ([7], [7])
    assert session.sentence == ""
    assert not session.row.row.shown


def test_open_it_follows_the_study(session):
    session.open()
    session.settle()
    session.type(7)
    session.settle()
    assert session.shown == [32, 7]
    assert [study.grid.steps for study in session.ran] == [32, 7]


def test_opened_again_it_computes_only_what_has_changed(session):
    session.open()
    session.settle()
    session.close()
    session.open()
    session.settle()
    assert session.computed == [32]
    session.close()
    session.type(7)
    session.settle()
    assert session.computed == [32]
    session.open()
    session.settle()
    assert session.shown == [32, 7]


def test_the_newest_study_wins(session):
    session.gate.clear()
    session.open()
    assert session.began.acquire(timeout=20)  # else 5 would take its place, and could be finished
    for steps in (5, 6, 7):
        session.type(steps)
    session.gate.set()
    session.settle()
    assert session.shown[-1] == 7  # what was under way may have been finished first
    assert not {5, 6} & {*session.shown}
    assert session.section._shown.grid.steps == 7


def test_a_study_that_comes_back_is_not_computed_again(session):
    session.open()
    session.settle()
    session.gate.clear()
    session.type(5)
    session.type(32)
    session.gate.set()
    session.settle()
    assert session.shown == [32]
    assert not session.row.row.shown


def test_progress_and_cancel(session):
    session.gate.clear()
    session.page._work._broker.submit(
        "other", lambda report: session.gate.wait(20), lambda _: None, lambda _: None
    )
    session.open()
    assert session.row.row.shown
    assert "waiting for 1 other run" in session.row.row.said
    session.row._on_cancel()
    assert not session.row.row.shown
    assert session.sentence == "Cancelled. Choose another tab and this one again to compute it."
    assert session.section._problem.severity == "info"
    session.gate.set()
    session.settle()
    assert session.shown == []
    session.close()
    session.open()
    session.settle()
    assert session.shown == [32]
    assert session.sentence == ""


def test_cancelling_leaves_the_page_s_own_run_alone(session):
    session.open()
    session.settle()
    session.gate.clear()
    session.broker.submit("o", lambda report: session.gate.wait(20), lambda _: None, lambda _: None)
    session.type(7)
    session.row._on_cancel()
    session.gate.set()
    session.settle()
    assert [study.grid.steps for study in session.ran] == [32, 7]
    assert session.shown == [32]
    assert session.sentence.endswith("What is shown is of the study before.")


def test_closing_gives_up_what_is_under_way(session):
    session.gate.clear()
    session.open()
    session.close()
    assert not session.row.row.shown
    session.gate.set()
    session.settle()
    assert session.shown == []


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (13, "thirteen steps are not to be had"),
        (14, "grid.steps was 14. Choose another grid."),
        (15, "The run failed: RuntimeError: <no> memory"),
    ],
)
def test_an_error_is_a_sentence_and_the_last_good_figures_stay(session, steps, said):
    session.type(steps)
    session.settle()
    session.open()
    session.settle()
    assert session.sentence == said
    assert session.section._problem.severity == "error"
    session.type(7)
    session.settle()
    assert (session.sentence, session.shown) == ("", [7])
    session.type(steps)
    session.settle()
    assert session.sentence == f"{said} What is shown is of the study before."
    assert session.shown == [7]
    assert not session.page.bench.problem  # it is the section's, not the page's
    session.type(7)
    session.settle()
    assert (session.sentence, session.shown) == ("", [7])


def test_a_result_that_cannot_be_shown_is_told_too(session):
    session.section._show = lambda result: 1 / 0
    session.open()
    session.settle()
    assert session.sentence == "The run failed: ZeroDivisionError: division by zero"
    assert session.section._shown is None


def test_several_sections_are_apart():
    session = Session(sections=2)
    session.open(0)
    session.open(1)
    session.settle()
    assert session.shown == [32, 32]
    session.section.is_open = False
    session.type(5)
    session.settle()
    assert session.shown == [32, 32, 5]


def test_a_session_that_ends_gives_up_all(session):
    session.open()
    session.settle()
    session.gate.clear()
    session.type(5)
    session.page._leave()
    session.gate.set()
    session.settle()
    assert session.shown == [32]


# ---- figures -------------------------------------------------------------------------------------


def test_a_view_becomes_one_bokeh_figure_per_panel():
    hv = pytest.importorskip("holoviews")
    from bokeh.plotting import figure

    curves = [hv.Curve([1, 2], label=label) for label in "ab"]
    row = FigureRow()
    for view, titles in ((curves[0] * curves[1], [""]), (hv.Layout(curves), ["a", "b"])):
        made = figures(view)
        assert pickle.loads(pickle.dumps(made)) == made  # as a worker sends them
        row.put(made)
        shown = [column[0].object for column in row]
        assert [(type(f), f.title.text) for f in shown] == [(figure, t) for t in titles]


def test_a_row_shows_the_newest_figures_and_may_be_empty():
    hv = pytest.importorskip("holoviews")
    row = FigureRow()
    for count in (1, 2, 0, 1):
        made = figures(hv.Layout([hv.Curve([1, 2])] * count)) if count else []
        row.put(made)
        assert len(row) == count
    assert row.sizing_mode == "stretch_width"
