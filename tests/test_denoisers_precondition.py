"""EDM's scalings: what they are for."""

import math

import pytest
import torch
from helpers import log_uniform, normals

import workbench as wb
from workbench.denoisers.precondition import edm_preconditioning


def test_input_and_target_have_unit_variance_with_the_least_gain_on_errors(generator):
    """The three conditions that define them, for data of variance sigma_data^2."""
    sigma, data = log_uniform(generator, 0.01, 50), log_uniform(generator, 0.1, 5)
    c = edm_preconditioning(sigma, data)
    assert c.input**2 * (data**2 + sigma**2) == pytest.approx(1)

    def target(skip):  # variance of x0 - skip x
        return (1 - skip) ** 2 * data**2 + skip**2 * sigma**2

    assert target(c.skip) / c.out**2 == pytest.approx(1)
    assert all(target(c.skip + e) > target(c.skip) for e in (-0.01, 0.01))
    assert c.weight * c.out**2 == pytest.approx(1)
    assert c.noise == pytest.approx(0.25 * math.log(sigma))


def test_the_ideal_network_is_zero_for_normal_data(generator):
    data = wb.Gaussian(torch.zeros(3).double(), 0.49)
    x, sigma = normals(generator, 5, 3), log_uniform(generator, 0.01, 50)
    c = edm_preconditioning(sigma, 0.7)
    torch.testing.assert_close(data.denoise(x, 1.0, sigma), c.skip * x)


def test_tensors_as_numbers(generator):
    sigma = normals(generator, 2, 3).exp()
    c = edm_preconditioning(sigma)
    one = edm_preconditioning(sigma[1, 2].item())
    for got, wanted in zip(c, one, strict=True):
        assert got.shape == (2, 3) and got[1, 2].item() == pytest.approx(wanted)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, torch.tensor([1.0, 0.0])])
def test_noise_levels_must_be_positive(sigma):
    with pytest.raises(ValueError, match=r"sigma was (0|-1|inf); the scalings exist"):
        edm_preconditioning(sigma)
    with pytest.raises(ValueError, match="sigma_data was 0"):
        edm_preconditioning(1.0, 0)
