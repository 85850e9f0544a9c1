"""A session of a dashboard, without a browser: what its form and its broker do to each other."""

import json
import shlex

import panel as pn
import pytest

import workbench as wb
from workbench.studies.export import to_script
from workbench.ui.broker import Broker
from workbench.ui.page import StudyPage
from workbench.ui.section import Section


class Session:
    """A page whose runs are counted instead of computed."""

    def __init__(self) -> None:
        self.computed, self.shown, self.others, self.edits, self.asked = [], [], [], [], 0
        self.made = StudyPage(
            title="Test",
            compute=self._compute,
            show=self.shown.append,
            view=pn.pane.HTML(""),
            summary=lambda result: [f"run {result}"],
            dataset=lambda result: None,
            broker=Broker(),
            show_other=self.others.append,
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
        self.edits = [*self.edits, {"key": key, "value": value, "count": len(self.edits) + 1}]
        self.made.form.edits = self.edits
        self.settle()

    def control(self, key: str) -> dict:
        return next(one for one in json.loads(self.made.form.controls) if one["key"] == key)

    def sentence(self, key: str) -> str:
        return self.control(key)["error"]

    def ask(self, what: str) -> None:
        self.asked += 1
        self.made.bench.asked = {"what": what, "count": self.asked}
        self.settle()


@pytest.fixture
def session():
    return Session()


def test_opens_with_the_default_study(session):
    assert session.computed == [wb.Study()]
    assert session.shown == [32]
    assert session.made.bench.facts == ["run 32"]
    assert wb.Study.from_query(session.made.address.search) == wb.Study()


def test_a_change_runs_and_goes_into_the_address(session):
    session.type("grid.steps", "7")
    assert session.shown == [32, 7]
    assert wb.Study.from_query(session.made.address.search).grid.steps == 7


def test_changes_that_come_together_all_count(session):
    edits = {"process": "EDM", "process.sigma_max": "10", "grid": "karras"}
    session.made.form.edits = [
        {"key": key, "value": value, "count": i + 1} for i, (key, value) in enumerate(edits.items())
    ]
    session.settle()
    study = session.made.study
    assert (study.process.sigma_max, study.grid.name) == (10.0, "karras")


def test_a_bad_value_keeps_the_last_good_study(session):
    before = session.made.address.search
    session.type("grid.steps", "0")
    assert session.sentence("grid.steps").startswith("steps was '0'; it must be a whole number")
    assert session.control("grid.steps")["value"] == "0"
    assert session.shown == [32]
    assert session.made.address.search == before
    session.type("grid.steps", "5")
    assert session.sentence("grid.steps") == ""
    assert session.shown == [32, 5]


def test_choosing_another_entry_shows_its_parameters(session):
    session.type("sampler", "DDIM")
    session.type("sampler.eta", "0.5")
    assert session.made.study.sampler.eta == 0.5
    session.type("sampler", "EulerMaruyama")
    assert session.control("sampler.eta")["value"] == "1.0"
    session.type("grid.steps", "9")
    assert session.made.study.sampler.eta == 1.0


def test_a_run_that_fails_says_why_and_the_page_lives_on(session):
    session.type("grid.steps", "13")
    assert session.made.bench.problem == "thirteen steps are not to be had"
    session.type("grid.steps", "14")
    assert session.made.bench.problem == ""
    assert session.shown == [32, 14]


def test_going_back_restores_the_study(session):
    first = session.made.address.search
    session.type("grid.steps", "7")
    session.made.address.search = first
    session.settle()
    assert session.made.study == wb.Study()
    assert session.control("grid.steps")["value"] == "32"
    assert session.shown == [32, 7, 32]


def test_reset(session):
    session.type("data", "moons")
    session.type("", "reset")
    assert session.made.study == wb.Study()
    assert session.control("data")["value"] == "ring"


def test_pinned_it_stands_beside_and_in_the_address(session):
    """B stays as it was pinned while A changes; what differs is said in one line."""
    session.ask("pin")
    assert session.others == [32]
    assert session.made.bench.differs.endswith("are the same study: change A in the form.")
    session.type("grid.steps", "7")
    session.type("sampler", "DDIM")
    said = "A → <b>B</b>: Sampler DDIM → <b>Heun</b>; steps 7 → <b>32</b>"
    assert session.made.bench.differs == said
    address = session.made.address.search
    session.ask("unpin")
    assert (session.others, session.made.other) == ([32, None], None)
    session.made.address.search = address  # back
    session.settle()
    assert session.made.other == wb.Study()
    session.ask("swap")
    assert (session.made.study, session.made.other.grid.steps) == (wb.Study(), 7)
    assert session.others == [32, None, 32, 7]


def test_a_bad_pin_is_a_sentence(session):
    session.made.address.search = "?grid.steps=5&pin=grid.steps%3D0"
    session.settle()
    assert session.made.bench.problem.startswith("Of the pinned study B: grid.steps was '0'")
    session.made.address.search = "?grid.steps=5&pin=grid.steps%3D13"
    session.settle()
    assert session.made.bench.problem.endswith("thirteen steps are not to be had")
    assert session.made.other is None and "pin=" not in session.made.address.search


def test_what_a_story_or_a_link_asks_for_and_is_not_here_is_a_sentence(
    session, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORKBENCH_STORIES", str(tmp_path))
    texts = "title: A\nquestion: Why?\npage: trajectories\nlook: One.\nchange: Two.\n"
    (tmp_path / "mine.yaml").write_text(f"{texts}study: {{sampler: Quux}}\n")
    session.made._read("?story=mine&sampler=Quux&grid.steps=5")
    assert session.made.bench.problem == (
        "This story asks for what is not here: sampler was 'Quux'."
    )
    assert session.sentence("sampler").startswith("Sampler was 'Quux'; it must be one of")
    assert session.made.study.grid.steps == 5  # the rest of it is shown
    session.made._read("?story=none")
    assert session.made.bench.problem == "There is no story named 'none' here."
    session.made._read("?study=9&grid.steps=6")
    assert session.made.bench.problem == (
        "study was '9'; this workbench reads versions 1 and 2 of the format."
    )


def test_what_is_taken_away_is_the_study(session):
    session.type("grid.steps", "7")
    answers = {}
    for what in ("study", "script", "python", "notebook", "command"):
        session.ask(what)
        answers[what] = session.made.bench.answer["text"]
    assert wb.Study.parse(answers["study"]) == session.made.study
    assert answers["script"] == answers["python"] == to_script(session.made.study)
    assert "grid.steps" in answers["notebook"]
    words = shlex.split(answers["command"])
    assert words[:3] == ["workbench", "run", "-"] and words[-2:] == ["-o", "run.zarr"]
    pairs = dict(word.split("=", 1) for word in words[3:-2] if word != "--set")
    assert wb.Study().changed(pairs) == session.made.study


def test_a_section_is_open_while_its_tab_is_chosen():
    sections = [Section(name, lambda *_: 0, print, pn.pane.HTML("")) for name in "ab"]
    made = StudyPage(
        title="Test",
        compute=lambda study, report: 1,
        show=lambda result: None,
        view=pn.pane.HTML(""),
        summary=lambda result: [],
        dataset=lambda result: None,
        sections=sections,
        broker=Broker(),
    )
    made.page()
    for tab, opened in (
        ("section1", [False, True]),
        ("section0", [True, False]),
        ("", [False] * 2),
    ):
        made.bench.tab = tab
        assert [one.is_open for one in sections] == opened
