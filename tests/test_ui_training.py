"""The page of networks without a browser: its form, its jobs, what it draws, what it refuses."""

import io
import json
import time

import numpy as np
import pytest

from workbench.denoisers import checkpoints
from workbench.studies import files
from workbench.studies.training import Training, jobs
from workbench.studies.watching import floors
from workbench.ui.broker import Broker, use
from workbench.ui.sketch import points_of
from workbench.ui.training import TrainingPage


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page whose work is done on a thread of this process, in a folder of its own."""
    monkeypatch.setenv("WORKBENCH_RESULTS", str(tmp_path))
    folder = tmp_path / "nets"
    folder.mkdir()
    broker = Broker()
    before = use(broker)
    made = TrainingPage("Networks", "About.", folder)
    made.page()
    assert made.opened == "ring"  # that there is something to see
    made._read("?")
    yield made
    use(before)
    broker.close()


def until(met, seconds=120):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.05)


def controls(page) -> dict:
    return {one["key"]: one for one in json.loads(page.form.controls)}


def legends(page) -> set[bool]:
    shown = page.pictures
    return {one.legend[0].visible for one in (shown.drawn, shown.over_levels, shown.over_steps)}


def test_points_are_drawn_trained_on_forked_and_opened(page):
    angle = np.linspace(0, 6, 60)
    flat = np.stack([np.cos(angle), np.sin(angle)], 1).flatten() * 0.7
    page.edit("network.width", "8")
    page.sketch.points = flat.tolist()
    page.sketch.sent = 1
    assert page.training.data.name == "points" and page.training.training.steps == 1500
    (job,) = jobs()
    assert job.study.hash == page.training.hash
    job.cancel()  # it is long: another, of few steps
    page._look()
    assert page.train.label == "Continue" and not page.train.disabled
    page.edit("training.steps", "12")
    page.edit("training.every", "4")
    assert page.train.label == "Train"
    page._on_train()
    assert page.train.disabled and not page.cancel.disabled
    until(lambda: page._job().is_over)
    assert page._job().state == "done", page._job().reason
    page._look()
    until(lambda: page.seen is not None)
    assert page.seen.step == 12 and page.seen.samples.shape == (300, 2)
    drawn = sorted(page.seen.points.tolist())
    np.testing.assert_allclose(drawn, sorted((2.2 * flat.reshape(-1, 2)).tolist()), atol=3e-4)
    assert page.pictures.steps.data["xs"][0] == [4, 8, 12]
    level = page.pictures.levels["training", "memorised"].data
    named = [one.label.value for one in page.pictures.over_levels.legend[0].items if one.visible]
    assert named == ["memorises the set (training)", "network, training"]  # what is known
    assert legends(page) == {True}
    wanted = page.seen.floors["training"]
    np.testing.assert_allclose(level["y"], np.divide(wanted["memorised"], wanted["linear"]))
    assert page._study().denoiser.file == page.seen.file
    file = page.seen.file
    page._on_fork()
    assert page.training.start == file and page.seen is None and page.train.label == "Train"
    assert legends(page) == {False}  # there is nothing that they name
    assert Training.salvage(dict(one.split("=") for one in page._query()[1:].split("&")))[
        0
    ].start == (file)
    (page._folder / "mine.safetensors").write_bytes(files.place(file).read_bytes())
    page._on_path("mine.safetensors")
    assert page.opened == "mine.safetensors" and page.address.search == "?open=mine.safetensors"
    until(lambda: page.seen is not None)
    assert page.training.training.steps == 12 and page.train.disabled


def test_what_cannot_be_opened_or_set_is_said(page):
    outside = page._folder.parent / "outside.safetensors"
    outside.write_bytes((checkpoints.shipped_folder() / "ring.safetensors").read_bytes())
    (page._folder / "link.safetensors").symlink_to(outside)
    for name in ("../outside.safetensors", str(outside), "..\\outside", ".hidden"):
        page._on_path(name)
        assert "lies outside of" in page.opening.title and page.opened == ""
    page._on_path("link.safetensors")
    assert "there is no network" in page.opening.title
    (page._folder / "bad.safetensors").write_bytes(b"\x80\x04 a pickle")
    page._on_path("bad.safetensors")  # read by a worker, not by the server
    until(lambda: page.bench.problem)
    assert "is a pickle" in page.bench.problem and page.opened == ""
    page._read("?open=nothing")
    assert "there is no network 'nothing'" in page.bench.problem
    page._read("?training.steps=0&network=UNet")
    assert "steps was '0'; it must be" in controls(page)["training.steps"]["error"]
    assert page.training.network.name == "UNet"
    page.edit("training.rate", "-1")
    assert "rate was '-1'" in controls(page)["training.rate"]["error"]
    page.edit("training.rate", "0.01")
    assert page.training.training.rate == 0.01 and not controls(page)["training.rate"]["error"]
    page.edit("regularisers", ["FokkerPlanck"])
    page.edit("regularisers.FokkerPlanck.weight", "0.1")
    assert page.training.regularisers[0].weight == 0.1
    for flat, sentence in (([0.0] * 8, "4 points were drawn; 10 to"), (["x"], "are no points")):
        with pytest.raises(ValueError, match=sentence):
            points_of(flat)
    assert np.load(io.BytesIO(points_of([0.5, -0.5] * 10))).tolist() == [[1.1, -1.1]] * 10


def test_floors_are_the_losses_of_the_best_denoisers_on_the_draws_of_the_curve():
    """A network that is the Gaussian itself, the card's curve included, lies on the linear one."""
    place = checkpoints.shipped_folder() / "gaussian.safetensors"
    _, card = checkpoints.read(place)
    said = json.dumps({key: card[key] for key in ("data", "settings", "study")})
    found = floors(said, tuple(card["curve"]["rho"]))
    for kind in ("training", "held_out"):
        np.testing.assert_allclose(found[kind]["linear"], found[kind]["law"], rtol=1e-2)
        loss = np.array(card["curve"][kind][-1])
        assert (loss > 0.97 * np.array(found[kind]["law"])).all()
        np.testing.assert_allclose(loss, found[kind]["law"], rtol=0.03)
