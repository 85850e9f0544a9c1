"""The widget holds the very bytes of its scene."""

import base64
import html
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
from traitlets import TraitError

import workbench as wb
from workbench.studies import explore
from workbench.studies.execution import player_of
from workbench.ui import player
from workbench.ui.form import title_of
from workbench.ui.player import MODULE, Player, offline, scene_of
from workbench.views.scene import unpack


@pytest.fixture(scope="module")
def explored():
    return explore(wb.Study(data="gaussian", denoiser="Gaussian", seeds={"count": 20}))


def test_a_player_shows_a_study_an_exploration_or_bytes(explored):
    data = scene_of(explored)
    assert Player(explored).data == data
    assert Player(explored.study).data == data
    assert Player(data).data == data
    assert Player().data == Player().other == b""
    two = Player(data, data, compare="difference", view={"trail": 3})
    assert two.other == data and two.view == {"trail": 3}
    with pytest.raises(TraitError, match=r"beside.*over.*difference"):
        Player(compare="under")


def test_the_scene_says_what_is_drawn(explored):
    header, arrays = unpack(scene_of(explored))
    assert header["title"] == title_of(explored)
    assert wb.Study.parse(header["study"]) == explored.study
    assert header["entries"]["grid.steps"] == 32
    assert header["seeds"] == list(range(20)) and header["axis"]["step"] == list(range(33))
    assert {"x", "denoised", "exact", "density", "velocity", "rms"} <= set(arrays)
    np.testing.assert_allclose(arrays["rms"], explored.flow["rms"], rtol=1e-6)


def test_the_module_needs_nothing_from_elsewhere():
    """One module, no import, no address."""
    assert "import " not in MODULE
    addresses = {part.split('"')[0] for part in MODULE.split("://")[1:]}
    assert addresses <= {"www.w3.org/2000/svg"}
    assert MODULE.count("export default") == 1


def test_every_part_is_in_the_module():
    folder = Path(player.__file__).with_name("js")
    others = {"bands", "form", "gallery", "gap", "gauge", "panels", "seeds", "shell"}  # of pages
    assert {file.stem for file in folder.glob("*.js")} - others == set(player.PARTS)


def test_a_saved_widget_is_found_in_what_holds_it(explored):
    """As nbconvert's page needs it: the module and the run, without a kernel."""
    shown = Player(explored)
    box = ipywidgets.HBox([ipywidgets.VBox([shown])])
    states = ipywidgets.Widget.get_manager_state(widgets=[shown, *box.children, box])["state"]
    page = player_of(states, box.model_id)
    assert base64.b64encode(shown.data).decode() in page
    assert base64.b64encode(MODULE.encode()).decode() in page
    text = ipywidgets.HTML("export { show }")
    assert player_of({**states, "x": {"state": {}}}, "x") == ""
    assert player_of(ipywidgets.Widget.get_manager_state(widgets=[text])["state"], "y") == ""


def test_a_page_of_its_own_shows_what_it_is_given_as_text(explored):
    study = wb.Study.parse(unpack(scene_of(explored))[0]["study"])
    page = offline(explored, view={"note": "</script><img src=x>"})
    assert "</script><img" not in page and page.count("</script>") == 1
    assert html.escape(study.to_yaml()) in page
