"""The explorer: its form, its runs, and how both come to the notebook."""

import asyncio
import sys
import threading
import time

import pytest

import workbench as wb
from workbench.studies import SECTIONS, Study, StudyError, available_devices, explore
from workbench.ui.broker import Broker
from workbench.ui.form import CANCELLED, controls
from workbench.ui.player import scene_of

widgets = pytest.importorskip(
    "ipywidgets", reason="needs ipywidgets: pip install -e '.[notebooks]'"
)
notebook = pytest.importorskip("workbench.ui.notebook")

SMALL = {"data": "gaussian", "denoiser": "Gaussian", "grid.steps": 4, "seeds.count": 8}


def small(**more) -> Study:
    return Study.from_flat({**SMALL, **more})


@pytest.fixture
def broker():
    made = Broker()
    yield made
    made.close()


@pytest.fixture
def explorer(broker):
    return notebook.Explorer(small(), broker)


def put(explorer, **values) -> None:
    """What a reader does: set controls one after the other."""
    for key, value in values.items():
        explorer._fields[key].input.value = value


def sentence(explorer, key: str) -> str:
    field = explorer._fields[key].sentence
    assert (field.layout.display == "none") == (field.value == "")
    return field.value


# ---- the run -------------------------------------------------------------------------------------


def test_the_first_run_is_there_at_once_and_is_the_study_s_own(explorer):
    assert explorer.study == small()
    assert explorer.run.equals(wb.run(small()))
    assert explorer.player.data == scene_of(explore(small()))
    assert explorer.player.frame == 0.0 and explorer.player.playing  # it opens at pure noise


def test_a_change_runs_the_changed_study(explorer):
    put(explorer, **{"grid.steps": 6})
    assert explorer.wait() is explorer.exploration
    assert explorer.study == small(**{"grid.steps": 6})
    assert explorer.run.equals(wb.run(small(**{"grid.steps": 6})))
    assert explorer.player.data == scene_of(explore(small(**{"grid.steps": 6})))
    assert "6 steps, 12 evaluations" in explorer._facts.value


def test_the_default_study_is_explored_when_none_is_given(broker):
    assert notebook.Explorer(broker=broker).run.equals(wb.run(Study()))


def test_only_the_newest_of_several_requests_is_run(explorer, broker, monkeypatch):
    ran, gate = [], threading.Event()
    monkeypatch.setattr(
        notebook, "explore", lambda study, report: ran.append(study) or explore(study, report)
    )
    broker.submit("another", lambda report: gate.wait(30), done=print, failed=print)
    put(explorer, **{"grid.steps": 5, "seeds.count": 3})
    put(explorer, **{"grid.steps": 7})
    with pytest.raises(TimeoutError, match="the run was not over"):
        explorer.wait(0.1)
    assert explorer.run.sizes["time"] == 5  # the picture of the run before
    gate.set()
    explorer.wait(30)
    assert ran == [small(**{"grid.steps": 7, "seeds.count": 3})]
    assert explorer.run.equals(wb.run(ran[0]))


def test_progress_is_shown_while_a_run_is_waited_for(explorer, broker):
    gate = threading.Event()
    broker.submit("another", lambda report: gate.wait(30), done=print, failed=print)
    put(explorer, **{"grid.steps": 5})
    with pytest.raises(TimeoutError):
        explorer.wait(0.05)
    assert explorer._stage.value == "waiting for 1 other run 0%"
    assert (explorer._busy.layout.display, explorer._facts.layout.display) == (None, "none")
    gate.set()
    explorer.wait(30)
    assert (explorer._busy.layout.display, explorer._facts.layout.display) == ("none", None)


def test_cancel_keeps_the_picture_and_says_so(explorer, broker):
    gate, data = threading.Event(), explorer.player.data
    broker.submit("another", lambda report: gate.wait(30), done=print, failed=print)
    put(explorer, **{"grid.steps": 5})
    cancel = explorer._busy.children[-1]
    cancel.click()
    gate.set()
    assert explorer.wait(30).study.grid.steps == 4
    assert explorer.player.data == data
    assert explorer._problem.value == CANCELLED
    put(explorer, **{"grid.steps": 6})
    explorer.wait(30)
    assert explorer.run.sizes["time"] == 7
    assert explorer._problem.value == ""


def test_a_closed_explorer_gives_up_its_run(explorer, broker):
    gate = threading.Event()
    broker.submit("another", lambda report: gate.wait(30), done=print, failed=print)
    put(explorer, **{"grid.steps": 5})
    explorer.close()
    assert explorer._ticket.cancelled
    gate.set()


# ---- what is not allowed -------------------------------------------------------------------------


def test_a_wrong_value_gets_the_study_s_own_sentence_and_changes_nothing(explorer):
    data = explorer.player.data
    with pytest.raises(StudyError) as error:
        small(**{"grid.steps": 0})
    put(explorer, **{"grid.steps": 0})
    assert sentence(explorer, "grid.steps") == error.value.problems["grid.steps"]
    assert "wb-wrong" in explorer._fields["grid.steps"].box._dom_classes
    assert (explorer.study, explorer.player.data) == (small(), data)
    put(explorer, **{"grid.steps": 4})
    assert sentence(explorer, "grid.steps") == ""
    assert "wb-wrong" not in explorer._fields["grid.steps"].box._dom_classes


def test_a_wrong_value_among_the_rare_ones_opens_their_fold(explorer):
    assert explorer._fold.selected_index is None
    put(explorer, **{"process.t_min": -1.0})
    assert sentence(explorer, "process.t_min").startswith("process.t_min was -1.0; it must be")
    assert explorer._fold.selected_index == 0


def test_a_run_that_is_refused_says_why_under_its_control(explorer, monkeypatch):
    monkeypatch.setattr(sys.modules["workbench.studies.explore"], "MOST_NUMBERS", 1000)
    put(explorer, **{"seeds.count": 1000})  # 5 times, 2 coordinates, x and denoised: 20 000 numbers
    with pytest.raises(StudyError, match=r"seeds\.count was 1000; .* at most 50 here"):
        explorer.wait(30)
    assert sentence(explorer, "seeds.count").startswith("seeds.count was 1000; with 5 recorded")
    assert explorer.run.sizes == {"time": 5, "sample": 8, "dim": 2}
    put(explorer, **{"seeds.count": 50})
    assert explorer.wait(30).run.sizes["sample"] == 50
    assert sentence(explorer, "seeds.count") == ""


def test_a_failure_is_told_above_the_picture(explorer, monkeypatch):
    def fail(study, report):
        raise RuntimeError("<no> memory")

    monkeypatch.setattr(notebook, "explore", fail)
    put(explorer, **{"grid.steps": 5})
    with pytest.raises(RuntimeError, match="memory"):
        explorer.wait(30)
    assert explorer._problem.value == "The run failed: RuntimeError: &lt;no&gt; memory"
    assert explorer.run.sizes["time"] == 5
    monkeypatch.undo()
    put(explorer, **{"grid.steps": 6})
    explorer.wait(30)
    assert (explorer._problem.value, explorer._problem.layout.display) == ("", "none")


def test_what_cannot_be_explored_is_refused_when_it_is_made(broker):
    with pytest.raises(TypeError, match=r"study was \{'data': 'ring'\}; it must be a Study"):
        notebook.Explorer({"data": "ring"}, broker)
    missing = next(name for name in ("mps", "cuda") if name not in available_devices())
    with pytest.raises(StudyError, match=f"device was '{missing}'; on this machine it may be auto"):
        notebook.Explorer(small(device=missing), broker)


# ---- the form ------------------------------------------------------------------------------------


def shown(explorer) -> list:
    """The controls in the order they are shown, the folded ones last."""
    by_box = {field.box: field for field in explorer._fields.values()}
    common = [by_box[box] for box in explorer._form.children[:-1]]
    assert explorer._form.children[-1] is explorer._fold
    return common + [by_box[box] for box in explorer._rare.children]


CHOICES = [(section, name) for section, names in SECTIONS.items() for name in names]


@pytest.mark.parametrize(("section", "name"), CHOICES, ids=lambda value: value)
def test_every_entry_of_every_registry_has_its_controls(explorer, section, name, monkeypatch):
    monkeypatch.setattr(explorer, "_start", lambda: None)
    put(explorer, **{section: name})
    wanted = controls(explorer.study)
    assert getattr(explorer.study, section).name == name
    fields = shown(explorer)
    assert [f.control for f in fields] == sorted(wanted, key=lambda control: control.rare)
    for control, field in zip(sorted(wanted, key=lambda c: c.rare), fields, strict=True):
        kind = {
            int: widgets.IntText,
            float: widgets.FloatText,
            bool: widgets.Checkbox,
            str: widgets.Text,
        }
        number = str if control.optional else control.kind  # it may be empty
        expected = widgets.Dropdown if control.choices else kind[number]
        assert type(field.input) is expected
        assert (field.input.value, field.input.description) == (control.value, control.label)
        assert field.input.tooltip == control.help
        if control.choices:
            assert field.input.options == tuple(control.options.items())


def test_another_entry_comes_with_its_own_defaults(explorer):
    put(explorer, sampler="DDIM")
    put(explorer, **{"sampler.eta": 0.25})
    put(explorer, sampler="EulerMaruyama")
    assert explorer._fields["sampler.eta"].input.value == 1.0
    assert explorer.study == small(sampler="EulerMaruyama")
    put(explorer, grid="karras")
    assert explorer.study == small(sampler="EulerMaruyama", grid="karras")  # the steps are kept
    explorer.wait(30)
    assert explorer.run.equals(wb.run(explorer.study))


def test_controls_that_stay_keep_their_widgets(explorer):
    before = dict(explorer._fields)
    put(explorer, process="EDM")
    for key in ("process", "grid.steps", "seeds.count", "data.ratio"):
        assert explorer._fields[key] is before[key]
    assert "process.beta_min" not in explorer._fields


# ---- the event loop of a kernel ------------------------------------------------------------------


def test_results_arrive_on_the_loop_s_own_thread(broker):
    async def session():
        explorer = notebook.Explorer(small(), broker)
        seen = []
        explorer.player.observe(lambda _: seen.append(threading.get_ident()), "data")
        put(explorer, **{"grid.steps": 5})
        until = time.monotonic() + 300
        while explorer.run.sizes["time"] != 6 and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return explorer, seen

    explorer, seen = asyncio.run(session())
    assert seen == [threading.get_ident()]
    assert explorer.run.equals(wb.run(small(**{"grid.steps": 5})))
    put(explorer, **{"grid.steps": 6})  # the loop has ended; there is none now
    explorer.wait(30)
    assert explorer.run.equals(wb.run(small(**{"grid.steps": 6})))


def test_waiting_inside_the_loop_takes_the_result_itself(broker):
    async def session():
        explorer = notebook.Explorer(small(), broker)
        seen = []
        explorer.player.observe(lambda _: seen.append(threading.get_ident()), "data")
        put(explorer, **{"grid.steps": 5})
        explorer.wait(30)  # blocks the loop: nothing is delivered by it
        assert explorer.run.sizes["time"] == 6
        await asyncio.sleep(0.05)  # nothing is delivered twice
        return seen

    assert asyncio.run(session()) == [threading.get_ident()]


def test_a_request_outlives_a_loop_that_ends_before_it(broker):
    gate = threading.Event()

    async def session():
        explorer = notebook.Explorer(small(), broker)
        broker.submit("another", lambda report: gate.wait(30), done=print, failed=print)
        put(explorer, **{"grid.steps": 5})
        return explorer

    explorer = asyncio.run(session())
    gate.set()
    assert explorer.wait(30).study.grid.steps == 5
