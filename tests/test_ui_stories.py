"""Every story opens, and its numbers are what they are said to be."""

import json
import re
from html import escape

import pytest

from workbench.lenses import LENSES
from workbench.studies import Study, StudyError
from workbench.studies.claims import computed, problem, thumbnail
from workbench.studies.comparison import Comparing
from workbench.ui import stories
from workbench.ui.stories import SHIPPED, Story, StoryError, read

FOUND, WRONG = stories.stories()

#: Titles of the tabs of each page.
TABS = {
    "trajectories": {"Through a lens", "Exact truth", "Shape"},
    "gap": {"Through a lens"},
    "gauge": {"Through a lens"},
    "seeds": {"Through a lens"},
    "frequency": {"Through a lens", "What networks lose"},
    "samplers": {"Where each is stable", "Measured order", "A grid tuned for it"},
    "networks": {"Draw points", "Truth"},
}


def test_there_are_a_dozen_and_each_is_whole():
    assert len(FOUND) >= 12 and WRONG == {}
    for story in FOUND:
        assert len(re.split(r"(?<=[.!?:]) (?=[A-Z])", story.look)) == 3, story.slug
        assert story.question.endswith("?") and story.numbers
        study = Study.from_flat(dict(story.study))
        if story.page == "samplers":
            Comparing.from_flat(dict(story.options))
        assert problem(story.page, story.study, story.options) == ""
        assert set(story.open) <= {"frame", "tab", "lens"}
        assert story.open.get("tab") in {None, *TABS.get(story.page, ())}
        assert story.open.get("lens") in {None, *LENSES}
        assert story.open.get("frame", 0) <= study.grid.parameters["steps"]
        assert stories.get(story.slug) == story
        told = stories.note(story)
        assert escape(story.title) in told and all(
            f"{one.value:g}" in told for one in story.numbers
        )


@pytest.mark.parametrize("story", FOUND, ids=lambda story: story.slug)
def test_its_numbers_are_computed(story):
    """To the digits that are told; thumbnails are of the study that opens."""
    for one in story.numbers:
        value = computed(one.of, {**story.study, **one.changed}, story.options, one.at)
        assert value == pytest.approx(one.value, rel=1e-3, abs=1e-9), one.how
    frames = stories.thumbnail_of(story)
    assert frames is not None, f"draw its thumbnail anew: {SHIPPED / story.slug}.json"
    if story.slug == "heun-overshoots":
        made = thumbnail(story.page, story.study, story.options, story.picture)
        assert {key: frames[key] for key in ("kind", "shape")} == {
            key: made[key] for key in ("kind", "shape")
        }


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a reader's own stories: ``own(name, **entries)`` writes one."""
    monkeypatch.setenv(stories.VARIABLE, str(tmp_path))

    def write(name, **entries):
        whole = {"title": "T", "question": "Q?", "look": "One.", "change": "C."} | entries
        kept = {key: value for key, value in whole.items() if value is not None}
        (tmp_path / name).write_text(json.dumps(kept))
        return tmp_path / name

    return write


def test_a_folder_of_one_s_own(own, tmp_path, monkeypatch):
    own("moons.yaml", study={"data": "moons", "grid.steps": 4})
    own("orders.yaml")
    (tmp_path / "broken.yaml").write_text("title: [")
    found, wrong = stories.stories()
    assert [story.slug for story in found] == [*(story.slug for story in FOUND), "moons"]
    assert "another story is named orders" in wrong["orders.yaml"]
    assert "it cannot be read" in wrong["broken.yaml"]
    moons = stories.get("moons")
    assert moons.address == "./trajectories?data=moons&grid.steps=4&story=moons"
    assert stories.get("../moons") is None and stories.get("broken") is None
    assert stories.thumbnail_of(moons) is None
    made = thumbnail(moons.page, moons.study, moons.options)
    assert made["kind"] == "plane" and made["shape"] == [5, 140, 2]
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    stories.keep_thumbnail(moons, made)
    assert stories.thumbnail_of(moons) == {"key": moons.key, **made}
    monkeypatch.setenv(stories.VARIABLE, str(tmp_path / "gone"))
    assert "is no folder" in stories.stories()[1][str(tmp_path / "gone")]


def test_what_is_no_story_is_said(own):
    for entries, sentence in (
        ({"title": None}, "title is missing"),
        ({"page": "gaps"}, "page was 'gaps'; it must be one of trajectories, samplers, gap, gau"),
        ({"study": {"data": {"name": "ring"}}}, "study must be dotted keys with plain values"),
        ({"studdy": {}}, "it has no entry 'studdy'"),
        ({"numbers": [{"is": 1.0}]}, "needs is, of and says"),
        ({"numbers": [{"is": "one", "of": "run.nfe", "says": ""}]}, "a number was 'one'"),
        ({"picture": "y"}, "picture was 'y'"),
        ({"place": "first"}, "place must be a whole number"),
    ):
        with pytest.raises(StoryError, match=re.escape(sentence)):
            read(own("mine.yaml", **entries))


def test_what_is_not_installed_is_said_on_its_card():
    assert "'Hoin'" in problem("trajectories", {"sampler": "Hoin"}, {})
    assert "'Hoin'" in problem("samplers", {}, {"samplers": "Hoin"})


@pytest.mark.parametrize(
    ("of", "at", "sentence"),
    [
        ("final.mean", {}, "there are final.norm and run.nfe"),
        ("output.w3", {}, "there is no 'w3'"),
        ("planarity.share", {}, "say at which of them"),
        ("planarity.share", {"rho": 1.0}, "it has component"),
        ("nothing.share", {}, "nothing"),
    ],
)
def test_a_number_that_is_none_is_said(of, at, sentence):
    with pytest.raises(StudyError, match=re.escape(sentence)):
        computed(of, {"grid.steps": 2, "seeds.count": 4}, {}, at)


def test_texts_of_a_story_are_no_html():
    one = Story("a", "<u>", "?", "trajectories", {}, "<script>", "<i>")
    assert "<u>" not in stories.note(one) and "<script>" not in stories.note(one)
