"""Data sets: their laws, their geometry, their labels; the same points on every machine."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.datasets import DATASETS

REFERENCE = json.loads(
    (Path(__file__).with_name("reference") / "lenses.json").read_text(encoding="utf-8")
)
PLANAR = [
    name
    for name in DATASETS
    if name not in ("digits", "field", "patches", "photographs", "points", "sphere")
]


@pytest.mark.parametrize("name", PLANAR)
def test_points_come_from_their_seed_and_have_variance_near_one(name):
    data = DATASETS[name](size=5000, seed=3)
    assert data.name == name and data.event_shape == (2,) and data.points.dtype == torch.float64
    assert torch.equal(DATASETS[name](size=5000, seed=3).points, data.points)
    assert not torch.equal(DATASETS[name](size=5000, seed=4).points, data.points)
    variance = data.points.var(0).mean().item()
    assert 0.7 < variance < 1.3
    assert (data.labels is None) == (name == "gaussian")


def check_law(points: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> None:
    """Mean and covariance within 5.5 standard errors; fourth moments are those of the points."""
    n = len(points)
    assert ((points.mean(0) - mean) / (cov.diagonal() / n).sqrt()).abs().max() < 5.5
    apart = points - mean
    products = apart[:, :, None] * apart[:, None]
    error = products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - cov) / error).abs().max() < 5.5


def test_ring_is_a_draw_from_its_law(seed):
    data = wb.datasets.ring(modes=5, radius=2.0, std=0.2, size=20_000, seed=seed % 2**31)
    law = data.law
    assert law.means.norm(dim=1).tolist() == pytest.approx([2.0] * 5)
    turn = torch.atan2(law.means[:, 1], law.means[:, 0]) % (2 * math.pi)
    assert turn.tolist() == pytest.approx([2 * math.pi * k / 5 for k in range(5)], abs=1e-12)
    assert torch.equal(law.weights, torch.full((5,), 0.2, dtype=torch.float64))
    counts = torch.bincount(data.labels)
    assert (counts - 4000).abs().max() < 5.5 * math.sqrt(20_000 * 0.16)
    for k in range(5):
        cov = 0.04 * torch.eye(2).double()
        check_law(data.points[data.labels == k], law.means[k], cov)


def test_gaussian_is_a_draw_from_its_law(seed):
    data = wb.datasets.gaussian(ratio=3.0, angle=25.0, size=20_000, seed=seed % 2**31)
    check_law(data.points, torch.zeros(2).double(), data.law.cov)
    assert data.law.spectrum.tolist() == pytest.approx([0.2, 1.8])
    long = data.law.basis[:, 1]
    assert math.degrees(math.atan2(long[1], long[0])) % 180 == pytest.approx(25.0)


def test_field_is_a_draw_from_its_power_law(seed):
    """Its modes are cosines, low frequencies first; its law is the spectrum of the comparison."""
    data = wb.datasets.field(exponent=1.5, side=3, size=20_000, seed=seed % 2**31)
    assert data.event_shape == (3, 3)
    expected = torch.arange(1, 10, dtype=torch.float64) ** -1.5
    assert data.law.spectrum.flip(0).tolist() == pytest.approx(expected.tolist())
    check_law(data.points.flatten(1), torch.zeros(9).double(), data.law.cov)
    waves = wb.DCT((3, 3)).forward(data.points)
    assert waves[:, 0, 0].var().item() == pytest.approx(1.0, rel=0.06)
    assert waves[:, 2, 2].var().item() == pytest.approx(expected[-1].item(), rel=0.06)


def test_checkerboard_is_uniform_on_its_dark_cells(seed):
    data = wb.datasets.checkerboard(cells=3, size=9000, seed=seed % 2**31)
    place = (data.points + 1.7) / (3.4 / 3)
    cell = place.floor().long()
    assert bool(((cell >= 0) & (cell < 3)).all()) and bool((cell.sum(1) % 2 == 0).all())
    dark = [(i, j) for i in range(3) for j in range(3) if (i + j) % 2 == 0]
    assert [dark[label] for label in data.labels.tolist()] == [tuple(c) for c in cell.tolist()]
    counts = torch.bincount(data.labels).double()
    assert len(counts) == 5
    assert (counts - 1800).abs().max() < 5.5 * math.sqrt(9000 * 0.2 * 0.8)
    within = (place - place.floor()).flatten()
    assert abs(within.mean() - 0.5) < 5.5 * math.sqrt(1 / 12 / len(within))
    assert abs(within.var() - 1 / 12) < 5.5 * math.sqrt(1 / 180 / len(within))


def test_moons_without_blur_are_two_half_circles():
    data = wb.datasets.moons(noise=0.0, size=500)
    points = data.points / 1.4 + torch.tensor([0.5, 0.25]).double()
    upper, lower = points[data.labels == 0], points[data.labels == 1]
    centre = torch.tensor([1.0, 0.5]).double()
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(250).double())
    torch.testing.assert_close((lower - centre).norm(dim=1), torch.ones(250).double())
    assert bool((upper[:, 1] >= 0).all()) and bool((lower[:, 1] <= 0.5).all())


def test_swiss_roll_without_blur_is_a_spiral_labelled_along_it():
    data = wb.datasets.swiss_roll(noise=0.0, segments=7, size=500)
    turn = 7.0 * data.points.norm(dim=1)
    expected = torch.stack([turn * turn.cos(), turn * turn.sin()], 1) / 7.0
    torch.testing.assert_close(data.points, expected)
    along = (turn / (1.5 * math.pi) - 1) / 2
    assert torch.equal(data.labels, (7 * along).floor().long())


@pytest.mark.parametrize(("name", "blur"), [("moons", 0.1), ("swiss_roll", 0.1)])
def test_blur_has_the_size_asked_for(name, blur):
    """Same seed, same points: the difference is the blur (scaled with the moons by 1.4)."""
    sharp, soft = (DATASETS[name](noise=value, size=20_000).points for value in (0.0, blur))
    scale = 1.4 if name == "moons" else 1.0
    assert (soft - sharp).std().item() == pytest.approx(blur * scale, rel=0.03)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch, data = load_digits(), wb.datasets.digits()
    assert data.points.shape == (1797, 8, 8) and data.points.dtype == torch.float64
    assert np.array_equal((data.points.numpy() + 1) * 8, bunch.images)
    assert np.array_equal(data.labels.numpy(), bunch.target)
    assert (data.points.min().item(), data.points.max().item()) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: wb.datasets.ring(modes=0), ["ring: modes was 0", "at least 1 and at most 64"]),
        (lambda: wb.datasets.ring(std=-0.1), ["ring: std was -0.1", "greater than 0"]),
        (lambda: wb.datasets.moons(size=5), ["moons: size was 5", "at least 10"]),
        (lambda: wb.datasets.gaussian(seed=-1), ["gaussian: seed was -1", "at least 0"]),
        (lambda: wb.datasets.checkerboard(cells=2.5), ["cells was 2.5", "a whole number"]),
    ],
)
def test_parameters_out_of_range_are_named(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


def test_patches_are_cut_from_the_photographs():
    """Each at its place: by column, row and photograph; neighbours share half their pixels."""
    data = DATASETS["photographs"]()
    rows, columns = (213 - 16) // 8 + 1, (320 - 16) // 8 + 1
    assert data.points.shape == (2 * rows * columns, 16, 16)
    assert data.points.min() >= -1 and data.points.max() <= 1
    patches = data.points.reshape(columns, rows, 2, 16, 16)
    assert torch.equal(patches[1:, :, :, :, :8], patches[:-1, :, :, :, 8:])
    assert torch.equal(patches[:, 1:, :, :8], patches[:, :-1, :, 8:])
    assert data.labels.reshape(columns, rows, 2)[..., 1].all()
    assert not torch.equal(patches[:, :, 0], patches[:, :, 1])
    # Groups are blocks of 48 x 48 pixels of one photograph.
    groups = data.groups.reshape(columns, rows, 2)
    assert len(groups.unique()) == 2 * 7 * 5
    assert (groups[:6, :6, 1] == groups[0, 0, 1]).all()
    assert len({int(groups[at]) for at in ((0, 0, 0), (0, 0, 1), (6, 0, 0), (0, 6, 0))}) == 4


def test_random_patches_are_those_of_the_reference():
    """By the spectrum of their covariance, of 4096 patches of 32 x 32 pixels."""
    pytest.importorskip("skimage", reason="needs scikit-image: pip install -e '.[pictures]'")
    row = REFERENCE["eigen_spectra"]["patches32_8photos_native"]
    data = DATASETS["patches"]()
    flat = data.points.flatten(1)
    assert flat.shape == (row["n"], row["d"]) and flat.abs().max() < 1 + 1e-12
    assert flat.var(0, correction=0).sum().item() == pytest.approx(row["trace"], rel=1e-9)
    values = torch.linalg.eigvalsh(flat.T.cov(correction=0)).flip(0)
    np.testing.assert_allclose(values[:20], row["top20_eig"], rtol=2e-3)
    assert torch.equal(data.labels.bincount(), torch.full((8,), 512))
    few = DATASETS["patches"](side=16, each=4, seed=1)
    assert few.points.shape == (32, 16, 16) and torch.equal(few.groups, few.labels)


def test_a_sphere_has_its_radius_its_dimension_and_no_direction():
    data = wb.datasets.sphere(dimension=2, ambient=5, radius=1.5, size=20_000)
    np.testing.assert_allclose(data.points.norm(dim=1), 1.5, rtol=1e-12)
    values, vectors = torch.linalg.eigh(data.points.T.cov())
    np.testing.assert_allclose(values[2:], 1.5**2 / 3, rtol=0.04)
    assert values[:2].abs().max() < 1e-12
    other = wb.datasets.sphere(radius=1.5, seed=5).points
    assert (other @ vectors[:, :2]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="needs a space of at least 6, and ambient was 5"):
        wb.datasets.sphere(dimension=5)
