"""The law of a sampler's output: against formulas, on other data, and its null band."""

import dataclasses
import math

import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.lenses.base import Subject
from workbench.lenses.output import draws
from workbench.studies.spec import Study


def measured(law, sampler, grid, process=None, **parameters):
    diffusion = wb.Diffusion(process or wb.EDM(), law)
    return wb.measure("output", wb.sample(diffusion, sampler, grid, range(60)), **parameters)


@pytest.mark.parametrize("final", ["stop", "denoise"])
def test_one_euler_path_of_one_mode(final):
    """Euler in rho multiplies the state by 1 + (r'/r - 1) r²/(λ + r²) in each step."""
    grid, variance = wb.Grid.karras(wb.EDM(), 6, final=final), 0.7
    law = wb.Gaussian(torch.zeros(1).double(), torch.tensor([variance], dtype=torch.float64))
    found = measured(law, wb.Euler(), grid)
    std = grid.sigma[0]  # the prior's
    for r, after in zip(grid.sigma, grid.sigma[1:], strict=False):
        std *= abs(1 + (after / r - 1) * r * r / (variance + r * r))
    end = math.sqrt(variance + grid.sigma[-1] ** 2)
    assert found["w2_exact"].item() == pytest.approx(abs(std - end), rel=1e-10)
    ratio = (std / end) ** 2
    assert found["kl_exact"].item() == pytest.approx(0.5 * (ratio - 1 - math.log(ratio)), rel=1e-8)
    to_data = measured(law, wb.Euler(), grid, target="data")["w2_exact"]
    assert to_data.item() == pytest.approx(abs(std - math.sqrt(variance)), rel=1e-10)


def test_of_other_data_the_gaussian_with_their_moments_is_exact(generator):
    points = normals(generator, 40, 3) * torch.tensor([2.0, 1.0, 0.3]).double()
    data = wb.Empirical(points)
    apart = points - points.mean(0)
    gaussian = wb.Gaussian(points.mean(0), apart.T @ apart / len(points))
    grid = wb.Grid.log_snr(wb.VP(), 9)
    mine = measured(data, wb.Heun(), grid, wb.VP())
    other = measured(gaussian, wb.Heun(), grid, wb.VP())
    for name in ("w2", "kl"):
        assert mine[f"{name}_gaussian"].item() == pytest.approx(other[f"{name}_exact"].item(), 1e-7)
    assert "w2_exact" not in mine and "w2_gaussian" not in other


def test_a_sampler_that_is_not_linear_has_no_exact_value():
    law = wb.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    found = measured(law, wb.RK45(), wb.Grid.karras(wb.EDM(), 5))
    assert "w2_exact" not in found and "w2_null" in found


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_the_null_band_is_where_exact_samples_fall(kind):
    generator = torch.Generator().manual_seed(3)
    cov = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)
    gaussian = wb.Gaussian(torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64), cov)
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.9]], dtype=torch.float64)
    weights, covs = torch.tensor([0.3, 0.7]).double(), torch.tensor([[0.3, 0.02], [0.1, 0.1]])
    laws = {
        "gaussian": gaussian,
        "mixture": wb.Mixture(weights / weights.sum(), means, covs.double()),
    }
    diffusion = wb.Diffusion(wb.VP(), laws[kind])
    grid, n = wb.Grid.log_snr(wb.VP(), 3), 150
    run = wb.sample(diffusion, wb.DDIM(), grid, range(n))
    lens, sets = wb.lenses.Output(), 120 if kind == "gaussian" else 24
    band = lens.null(Subject.of(run))
    inside = dict.fromkeys(("w2", "kl"), 0)
    for _ in range(sets):
        z = normals(generator, n, *diffusion.event_shape)
        exact = diffusion.diffuse(draws(laws[kind], n, generator), grid.t[-1], z)
        found = lens.measure(Subject.of(dataclasses.replace(run, final=exact)))
        for name in inside:
            low, high = band[name].values
            inside[name] += low <= found[name].item() <= high
    for name, count in inside.items():  # 95 % of them; with all but 1e-4 at least these
        assert count >= (103 if kind == "gaussian" else 18), (name, count)


@pytest.mark.parametrize(
    ("lens", "sentence"),
    [
        ("planarty", "there is no lens 'planarty'; there are "),
        ("planarity", "Planarity reads x, which was not recorded; record it too"),
    ],
)
def test_what_a_lens_lacks_is_a_sentence(lens, sentence):
    run = wb.sample(*_small(), seeds=range(3))
    with pytest.raises((KeyError, ValueError), match=sentence):
        wb.measure(lens, run)


def test_a_diffusion_alone_is_a_subject_where_nothing_is_read():
    diffusion = _small()[0]
    assert wb.measure("emergence", diffusion)["power"].ndim == 2
    with pytest.raises(ValueError, match="Output reads final of a run and was given a diffusion"):
        wb.measure("output", diffusion)
    with pytest.raises(TypeError, match="a lens was given"):
        wb.measure("output", Study())


def _small():
    law = wb.Gaussian(torch.zeros(2).double(), torch.tensor([1.0, 0.3]).double())
    return wb.Diffusion(wb.VP(), law), wb.Heun(), wb.Grid.log_snr(wb.VP(), 5)
