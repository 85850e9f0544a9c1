"""Geometry of paths: lines, circles, reference values, nudges and U-turns against closed form."""

import math

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.exact import critical
from workbench.lenses.base import Subject
from workbench.lenses.geometry import (
    Commitment,
    Geometry,
    UTurn,
    _share_of_wandering,
    deviation,
    nudged,
    paths_in_plane,
    said_of_plane,
    straightness,
)
from workbench.views.geometry import nudges

VP, EDM = wb.VP(), wb.EDM()


@pytest.fixture(scope="module")
def digits():
    return wb.datasets.digits()


def test_lines_and_circles():
    """Shape and pace apart: a line walked unevenly, and half a circle walked evenly."""
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    line = torch.stack([t**2, 2 * t**2], 1)[:, None]
    arc, shape, speed = straightness(line, t)
    assert (arc.item(), shape.item()) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert speed.item() == pytest.approx(1 / 3, rel=1e-6)  # of (2t - 1)²
    assert deviation(line)[0].abs().max() < 1e-12
    turn = torch.stack([(math.pi * t).cos(), (math.pi * t).sin()], 1)[:, None]
    arc, shape, speed = straightness(turn, t)
    assert arc.item() == pytest.approx(math.pi / 2, rel=1e-6)
    assert shape.item() == pytest.approx(math.pi**2 / 4 - 1, rel=1e-6)
    assert speed.item() == pytest.approx(0, abs=1e-9)
    off, chord = deviation(turn)
    assert (off.max().item(), chord.item()) == (pytest.approx(1), pytest.approx(2))
    # The definition, with the velocity between the nodes.
    path = torch.cat([line, turn], 1)
    velocity = path.diff(dim=0) / t.diff()[:, None, None]
    missed = (path[-1] - path[0] - velocity).square().sum(-1)
    _, shape, speed = straightness(path, t)
    total = (missed * t.diff()[:, None]).sum(0) / (path[-1] - path[0]).square().sum(-1)
    torch.testing.assert_close(shape + speed, total)


def test_the_principal_plane_holds_the_share_that_is_said_and_wandering_paths_theirs(digits):
    """What is drawn has that share of the path's variance; a long path of equal steps in
    independent directions has 6/pi^2 in one direction and a quarter of that in the next."""
    law = wb.Gaussian.fit(digits.points)
    run = wb.sample(
        wb.Diffusion(VP, law),
        wb.Heun(),
        wb.Grid.uniform(VP, 20),
        range(5),
        wb.Record(["x", "denoised"]),
    )
    paths = paths_in_plane(Subject.of(run, digits), "x")
    states = run["x"].flatten(2).movedim(0, 1)
    chord = (states[:, -1] - states[:, 0]).norm(dim=-1).numpy()
    about = states - states.mean(1, keepdim=True)
    whole = about.square().sum((1, 2)).numpy() / chord**2
    drawn = np.stack([(paths[name] ** 2).sum("time") for name in ("along", "across")], 1)
    np.testing.assert_allclose(drawn.cumsum(1) / whole[:, None], paths["share"], rtol=1e-9)
    np.testing.assert_allclose(paths["along"][:, [0, -1]].diff("time") > 0, True)
    straight = torch.linspace(0, 1, 400).double()[None, :, None] * torch.ones(3, 1, 300).double()
    low, high = _share_of_wandering(straight, 6).T
    limit = np.array([6, 7.5]) / math.pi**2
    np.testing.assert_allclose((low + high) / 2, limit, rtol=0.03)
    with pytest.raises(NotImplementedError, match="fewer than three recorded times"):
        short = wb.sample(
            wb.Diffusion(VP, law),
            wb.DDIM(),
            wb.Grid.uniform(VP, 1),
            range(3),
            wb.Record(["x", "denoised"]),
        )
        paths_in_plane(Subject.of(short, digits))


def test_isotropic_data_have_straight_paths_that_only_x_over_alpha_shows():
    law = wb.Gaussian(torch.full((3,), 0.4).double(), 0.7)
    run = wb.sample(
        wb.Diffusion(VP, law),
        wb.Heun(),
        wb.Grid.log_snr(VP, 200),
        range(20),
        wb.Record(["x", "denoised"]),
    )
    ratio = wb.measure("geometry", run, state="ratio")
    assert float(ratio["arc_over_chord"]) == pytest.approx(1, abs=1e-9)
    assert float(ratio["off_chord"].max()) < 1e-6
    assert float(ratio["turned"].max()) < 1e-5
    assert float(ratio["speed"]) > 0.1
    plain = wb.measure("geometry", run, state="x")
    assert float(plain["arc_over_chord"]) > 1.001
    assert "the state of EDM" in Geometry().findings(ratio)[0]


#: Of the digits: arc over chord and share outside of the plane, of the state under VP on times even
#: in t; greatest distance from the chord and where, of x/alpha from 80 under Karras's grid.
REFERENCE = {"Gaussian": (1.102, 0.0052, 0.0039, 7.4), "Empirical": (1.132, 0.0121, 0.0056, 5.0)}

#: Share of a path's variance in one and in two principal directions, of the state under VP.
SHARES = {"Gaussian": (0.9657, 0.9995), "Empirical": (0.9483, 0.9980)}


@pytest.mark.parametrize("kind", REFERENCE)
def test_the_paths_of_the_digits_have_the_reference_values(kind, digits):
    law = wb.Gaussian.fit(digits.points) if kind == "Gaussian" else wb.Empirical(digits.points)
    arc, outside, off, where = REFERENCE[kind]
    record = wb.Record(["x", "denoised"])
    run = wb.sample(wb.Diffusion(VP, law), wb.Heun(), wb.Grid.uniform(VP, 64), range(96), record)
    found = wb.measure("geometry", run, state="x")
    assert float(found["arc_over_chord"]) == pytest.approx(arc, abs=0.006)
    assert float(found["outside"]) == pytest.approx(outside, rel=0.12)
    paths = paths_in_plane(Subject.of(run, digits), "x", count=96)
    one, two = paths["share"].mean("path").values
    assert (one, two) == (
        pytest.approx(SHARES[kind][0], abs=0.004),
        pytest.approx(SHARES[kind][1], abs=4e-4),
    )
    exact = paths["share_gaussian"].mean("path").values
    assert exact[0] == pytest.approx(SHARES["Gaussian"][0], abs=0.004)
    if kind == "Gaussian":  # the same starts: but for the sampler's own error
        np.testing.assert_allclose(paths["share"], paths["share_gaussian"], atol=3e-3)
    assert two > paths["share_null"].sel(component=2, bound="high")
    assert f"{two:.2%} in two (Gaussian data" in said_of_plane(paths)
    chord = paths_in_plane(Subject.of(run, digits), "x", "chord", count=96)
    np.testing.assert_allclose(chord["along"][:, -1], 1, rtol=1e-9)
    np.testing.assert_allclose(chord["across"][:, [0, -1]], 0, atol=1e-9)
    run = wb.sample(wb.Diffusion(EDM, law), wb.Heun(), wb.Grid.karras(EDM, 40), range(96), record)
    found = wb.measure("geometry", run, state="ratio")
    assert float(found["off_chord"].max()) == pytest.approx(off, rel=0.06)
    top = float(found["rho"][int(found["off_chord"].argmax())])
    assert top == pytest.approx(where, rel=0.2)
    assert float(found["arc_over_chord"]) == pytest.approx(1.001, abs=1.2e-3)


def test_commitment_and_nudges(digits):
    """Of the Gaussian the response is the flow's own gain; a remembered set answers early nudges
    with other pictures, and late ones not at all."""
    run = {}
    for kind, law in (
        ("Gaussian", wb.Gaussian.fit(digits.points)),
        ("ideal", wb.Empirical(digits.points)),
    ):
        grid = wb.Grid.log_snr(VP, 32, final="denoise")
        made = wb.sample(wb.Diffusion(VP, law), wb.Heun(), grid, range(64), wb.Record(["x"]))
        run[kind] = wb.measure("commitment", made, data=digits, levels=4)
    plain, ideal = run["Gaussian"], run["ideal"]
    apart = abs(plain["response"] - plain["response_exact"]) / plain["response_se"]
    assert float(apart.max()) < 5
    assert float(plain["response_exact"][0]) == pytest.approx(0.1083, rel=0.02)
    assert (plain["response"][-1] > plain["response"][0]).all()
    assert float(ideal["response"][0]) == pytest.approx(0.345, rel=0.1)
    assert float(ideal["changed"][0]) == pytest.approx(0.44, abs=0.2)
    assert float(ideal["changed"][-1]) < 0.05
    kept = ideal["point_kept"].values
    assert (np.diff(kept) >= 0).all() and kept[-1] == 1
    at = float(ideal["rho"][int((kept >= 0.9).argmax())])
    assert at == pytest.approx(0.899, rel=0.25)
    assert (ideal["class_kept"] >= ideal["point_kept"]).all()
    assert float(ideal["point_entropy"][0]) == pytest.approx(math.log(1797), rel=1e-3)
    assert float(ideal["class_entropy"][0]) == pytest.approx(math.log(10), rel=1e-3)
    assert float(abs(ideal["point_entropy"][-1])) < 1e-6
    assert "the nearest data point no longer changes" in " ".join(Commitment().findings(ideal))
    # What the page shows of it are the same nudges: their size, and their pictures by the level.
    ends = nudged(Subject.of(made, digits), Commitment(levels=4))
    np.testing.assert_allclose(ends["level"], ideal["level"])
    apart = (ends["nudged"] - ends["end"]).values.reshape(4, -1)
    np.testing.assert_allclose(np.sqrt((apart**2).mean(1)), ideal["response"], rtol=1e-9)
    image = nudges(ends).values()[0]
    assert (
        image.dimension_values(2).size == 5 * 9 * 10 * 9
    )  # rows, columns of tiles of 8 x 8 and a border
    ring = wb.datasets.ring()
    model, grid = wb.Diffusion(VP, wb.Empirical(ring.points[:50])), wb.Grid.uniform(VP, 6)
    flat = wb.sample(model, wb.Heun(), grid, range(5), wb.Record(["x"]))
    lines = nudges(nudged(Subject.of(flat, ring), Commitment(levels=2))).values()[0]
    assert len(lines) == 2 * 5


#: P(class), P(same image) and the covariance kept in the bands 1 and 5-8, by rho.
TABLE = {
    3.0: (0.206, 0.003, 0.180, 0.024),
    2.0: (0.346, 0.015, 0.361, 0.067),
    1.5: (0.521, 0.040, 0.544, 0.145),
    1.0: (0.825, 0.267, 0.810, 0.423),
    0.6: (0.994, 0.766, 0.976, 0.859),
}


def test_u_turns_keep_what_has_emerged_and_have_the_reference_values(digits, monkeypatch):
    monkeypatch.setattr(UTurn, "_rho", lambda self, subject: np.array(list(TABLE)))
    diffusion = wb.Diffusion(VP, wb.Empirical(digits.points))
    found = wb.measure("uturn", diffusion, data=digits, samples=1000)
    apart = abs(found["kept"] - found["denoised"]) / np.hypot(
        found["kept_se"], found["denoised_se"]
    )
    assert float(apart.max()) < 4.5
    for rho, row in zip(TABLE, TABLE.values(), strict=True):
        at = found.isel(level=list(TABLE).index(rho))
        got = [at["class_kept"], at["point_kept"], *at["kept"].sel(band=["1", "5-8"])]
        errors = [at["class_kept_se"], at["point_kept_se"], *at["kept_se"].sel(band=["1", "5-8"])]
        for value, wanted, error in zip(got, row, errors, strict=True):
            assert abs(float(value) - wanted) < 4.5 * float(error) * math.hypot(1, 0.7) + 0.005
    assert found.attrs["power"] == pytest.approx(1.672, abs=1e-3)
    assert found.attrs["collapse"] == pytest.approx(0.889, abs=1e-3)
    assert found.attrs["between"] == pytest.approx(1.518, abs=2e-3)
    assert "to the sampling error" in " ".join(UTurn().findings(found))


def test_u_turns_by_the_reverse_sde_keep_a_class_as_often_as_theory_has_it(generator):
    """Two classes: the probability phi(h), by the sampler; and clones agree as often as returns."""
    offset, std, n = 1.0, 0.5, 600
    means = offset * torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
    law = wb.Mixture(torch.full((2,), 0.5).double(), means, torch.full((2,), std**2).double())
    labels = torch.arange(n) % 2
    points = means[labels] + std * normals(generator, n, 2)
    data = wb.Data("two", points, labels, law)
    found = wb.measure("uturn", wb.Diffusion(VP, law), data=data, samples=n, levels=5, steps=40)
    # The class of a return is that of its nearest point: by the sign, up to the classes' overlap.
    h = offset / np.hypot(std, found["rho"].values)
    overlap = 0.5 * math.erfc(offset / std / 2**0.5)
    expected = critical.phi(torch.from_numpy(h)).numpy()
    for key in ("class_kept", "clones_agree"):
        assert (abs(found[key] - expected) < 4.5 * found[f"{key}_se"] + 2 * overlap).all()
    apart = abs(found["kept"] - found["denoised"]) / np.hypot(
        found["kept_se"], found["denoised_se"]
    )
    assert float(apart.max()) < 5


def test_gaussian_u_turns_are_exact(digits):
    law = wb.Gaussian.fit(digits.points)
    bare = wb.Data("unlabelled", digits.points)
    found = wb.measure("uturn", wb.Diffusion(VP, law), data=bare, samples=1797, levels=4)
    assert "clones_agree" not in found and "class_kept" not in found
    apart = abs(found["kept"] - found["kept_exact"]) / found["kept_se"]
    assert float(apart.max()) < 5


def test_one_sample_and_one_point_are_sentences(digits):
    law = wb.Gaussian.fit(digits.points)
    grid = wb.Grid.uniform(VP, 6)
    run = wb.sample(wb.Diffusion(VP, law), wb.DDIM(), grid, [3], wb.Record(["x", "denoised"]))
    for lens in (Geometry(), Commitment(levels=2)):
        found = wb.measure(lens, run, data=digits)
        assert "One sample says nothing of the spread" in lens.findings(found)[-1]
    assert np.isnan(found["response_se"]).all() and np.isnan(found["changed_se"]).all()
    same = wb.Data("same", torch.full((9, 4, 4), 0.1, dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="all data points are one"):
        wb.measure("uturn", wb.Diffusion(VP, wb.Empirical(same.points)), data=same)


def test_what_has_no_shape(digits):
    law = wb.Gaussian(torch.zeros(2).double(), 1.0)
    run = wb.sample(
        wb.Diffusion(VP, law),
        wb.DDIM(),
        wb.Grid.uniform(VP, 1),
        range(3),
        wb.Record(["x", "denoised"]),
    )
    with pytest.raises(NotImplementedError, match="fewer than three recorded times"):
        wb.measure("geometry", run)
