"""The widget holds the very bytes of its scene."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.studies import explore
from workbench.ui import player
from workbench.ui.form import title_of
from workbench.ui.player import MODULE, Player, scene_of
from workbench.views.scene import unpack


@pytest.fixture(scope="module")
def explored():
    return explore(wb.Study(data="gaussian", denoiser="Gaussian", seeds={"count": 20}))


def test_a_player_shows_a_study_an_exploration_or_bytes(explored):
    data = scene_of(explored)
    assert Player(explored).data == data
    assert Player(explored.study).data == data
    assert Player(data).data == data
    assert Player().data == b""


def test_the_scene_says_what_is_drawn(explored):
    header, arrays = unpack(scene_of(explored))
    assert header["title"] == title_of(explored)
    assert {"x", "denoised", "exact", "density", "velocity", "rms"} <= set(arrays)
    np.testing.assert_allclose(arrays["rms"], explored.flow["rms"], rtol=1e-6)


def test_the_module_needs_nothing_from_elsewhere():
    """One module, no import, no address."""
    assert "import " not in MODULE
    addresses = {part.split('"')[0] for part in MODULE.split("://")[1:]}
    assert addresses <= {"www.w3.org/2000/svg"}
    assert MODULE.count("export default") == 1


def test_every_part_is_in_the_module():
    folder, others = Path(player.__file__).with_name("js"), {"form", "gallery", "shell"}
    assert {file.stem for file in folder.glob("*.js")} - others == set(player.PARTS)
