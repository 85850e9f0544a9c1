"""The law of a sampler's output: against formulas, on other data, where it has none."""

import math

import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.lenses import Output, Subject


def measured(law, sampler, grid, process=None):
    subject = Subject(wb.Diffusion(process or wb.EDM(), law), sampler, grid, None)
    return Output().measure(subject)


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
    assert found["w2"].item() == pytest.approx(abs(std - end), rel=1e-10)
    ratio = (std / end) ** 2
    assert found["kl"].item() == pytest.approx(0.5 * (ratio - 1 - math.log(ratio)), rel=1e-8)
    assert found["w2_data"].item() == pytest.approx(abs(std - math.sqrt(variance)), rel=1e-10)
    assert found.attrs == {"gaussian": True}


def test_of_other_data_it_is_that_of_the_gaussian_with_their_moments(generator):
    points = normals(generator, 40, 3) * torch.tensor([2.0, 1.0, 0.3]).double()
    data = wb.Empirical(points)
    apart = points - points.mean(0)
    gaussian = wb.Gaussian(points.mean(0), apart.T @ apart / len(points))
    grid = wb.Grid.log_snr(wb.VP(), 9)
    mine = measured(data, wb.Heun(), grid, wb.VP())
    other = measured(gaussian, wb.Heun(), grid, wb.VP())
    for name in ("w2", "kl", "w2_data"):
        assert mine[name].item() == pytest.approx(other[name].item(), rel=1e-7), name
        assert "on the Gaussian with the data's mean and covariance" in mine[name].long_name
        assert "on the Gaussian" not in other[name].long_name
    assert (mine.attrs, other.attrs) == ({"gaussian": False}, {"gaussian": True})


def test_a_sampler_that_is_not_linear_has_none():
    law = wb.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    with pytest.raises(NotImplementedError, match="not linear"):
        measured(law, wb.RK45(), wb.Grid.karras(wb.EDM(), 5))
