"""The probability flow of Gaussian data and the emergence of its modes."""

import math

import pytest
import torch
from helpers import PROCESSES, covariance, integrate, normals, random_process, relative, uniform
from scipy.optimize import brentq

import workbench as wb
from workbench.exact.flow import (
    band_emergence,
    denoised_factor,
    denoised_path,
    emergence,
    flow_factor,
    flow_path,
    perturbation_gain,
)
from workbench.processes import HeatDissipation
from workbench.processes.bases import DCT

NAMES = list(PROCESSES)


def variances_of(generator, d: int = 6) -> torch.Tensor:
    """From 1e-4 to 1e2, and one zero."""
    values = 10 ** (6 * torch.rand(d, generator=generator, dtype=torch.float64) - 4)
    return torch.cat([values, torch.zeros(1).double()])


def centred(variances) -> wb.Gaussian:
    return wb.Gaussian(torch.zeros_like(variances), variances)


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_the_integrated_velocity(name, generator):
    process = random_process(name, generator)
    data = wb.Gaussian(normals(generator, 4), covariance(generator, 4))
    diffusion = wb.Diffusion(process, data)
    share = torch.tensor([0.7, 0.3, 0.02], dtype=torch.float64)
    times = (process.t_min + share * (0.9 * process.t_max - process.t_min)).tolist()
    x = process(times[0]).alpha * data.mean + process(times[0]).sigma * normals(generator, 3, 4)
    path = flow_path(diffusion, x, times[0], times)
    assert path.shape == (3, 3, 4)
    torch.testing.assert_close(path[0], x, rtol=1e-12, atol=1e-12)
    for s, state in zip(times[1:], path[1:], strict=True):
        assert relative(integrate(diffusion, x, times[0], s), state) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_those_of_the_path(name, generator):
    """From pure noise to data, in the modes of a full covariance, one of them empty."""
    process = random_process(name, generator)
    variances = variances_of(generator)
    basis = torch.linalg.qr(normals(generator, 7, 7)).Q
    data = wb.Gaussian.low_rank(normals(generator, 7), basis, variances)
    diffusion, t = wb.Diffusion(process, data), process.t_max
    x = normals(generator, 2, 7)
    times = torch.tensor([t, 0.5 * t, process.t_min, 0.0], dtype=torch.float64)
    modes = (x - process(t).alpha * data.mean) @ basis
    psi, xi = (factor(process, variances, t, times) for factor in (flow_factor, denoised_factor))
    assert psi.shape == xi.shape == (4, 7)
    alpha = process(times).alpha[:, None, None]
    path = alpha * data.mean + (psi[:, None] * modes) @ basis.T
    torch.testing.assert_close(flow_path(diffusion, x, t, times), path, rtol=1e-11, atol=1e-11)
    denoised = data.mean + (xi[:, None] * modes) @ basis.T
    torch.testing.assert_close(
        denoised_path(diffusion, x, t, times), denoised, rtol=1e-10, atol=1e-10
    )
    assert bool((xi[:, -1] == 0).all())  # no component outside the data, ever


def test_from_pure_noise_to_the_data_it_is_the_square_root(generator):
    variances = variances_of(generator)
    torch.testing.assert_close(
        flow_factor(wb.RectifiedFlow(), variances, 1.0, 0.0), variances.sqrt(), rtol=1e-14, atol=0
    )


def test_there_and_back(generator):
    process, variances = wb.VP(), variances_of(generator)
    t, s = (torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(2))
    there, back = flow_factor(process, variances, t, s), flow_factor(process, variances, s, t)
    torch.testing.assert_close(there * back, torch.ones(5, 7).double(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_perturbations_grow_by_the_gain(name, generator):
    process, variances = random_process(name, generator), variances_of(generator)
    diffusion = wb.Diffusion(process, centred(variances))
    t = uniform(generator, 0.1, 1.0) * process.t_max
    x, kick = normals(generator, 2, 7)
    ends = [diffusion.flow(state, t, 0.0) for state in (x, x + kick)]
    gain = perturbation_gain(process, variances, t)
    torch.testing.assert_close(ends[1] - ends[0], gain * kick, rtol=1e-10, atol=1e-12)


def test_a_mode_without_variance_at_sigma_zero():
    variances = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert perturbation_gain(wb.VP(), variances, 0.0).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="cannot start at sigma = 0"):
        flow_factor(wb.VP(), variances, 0.0, 0.5)
    with pytest.raises(ValueError, match=r"variances held -1"):
        flow_factor(wb.VP(), -variances, 0.2, 0.5)


@pytest.mark.parametrize("of", ["amplitude", "power"])
@pytest.mark.parametrize("name", NAMES)
def test_emergence_is_where_the_denoised_mode_has_that_share(name, of, generator):
    process, fraction = random_process(name, generator), uniform(generator, 0.1, 0.9)
    power = 1 if of == "amplitude" else 2
    c = process(torch.tensor([0.1, 0.9], dtype=torch.float64) * process.t_max)
    shrink = math.sqrt(1 / fraction ** (3 - power) - 1)
    variance = (uniform(generator, *c.rho.log().tolist()) - math.log(shrink)) * 2
    variance = torch.tensor([math.exp(variance)], dtype=torch.float64)

    def shown(t):
        ratio = denoised_factor(process, variance, process.t_max, t) / denoised_factor(
            process, variance, process.t_max, 0.0
        )
        # VE has noise left at t = 0: compare with the data's own amplitude.
        rho = process(0.0).rho
        return (ratio * (variance / (variance + rho**2)).sqrt()).item() ** power

    found = brentq(lambda t: shown(t) - fraction, 0.0, process.t_max * (1 - 1e-9), xtol=1e-14)
    got = emergence(variance, fraction, of, process).item()
    assert got == pytest.approx(found, rel=1e-8, abs=1e-10)
    assert emergence(variance, fraction, of).item() == pytest.approx(process(got).rho, rel=1e-9)


def test_a_noise_level_the_process_does_not_have_has_no_time():
    variances = torch.tensor([0.0, 1.0, 1e9], dtype=torch.float64)
    assert emergence(variances, of="power", process=wb.EDM()).isnan().tolist() == [0, 0, 1]
    assert emergence(variances, of="power", process=wb.PROCESSES["VE"]()).isnan().tolist() == [
        1,
        0,
        1,
    ]
    assert emergence(variances[0]) == 0


def test_each_mode_of_a_spectral_process_has_its_own_clock(generator):
    process = HeatDissipation(DCT((4, 4)))
    variances = 0.1 + torch.rand(4, 4, generator=generator, dtype=torch.float64)
    rho = emergence(variances, of="power")
    times = emergence(variances, of="power", process=process)
    for index in [(0, 0), (1, 2), (3, 3)]:
        mode = process.mode(index)
        least, largest = mode(torch.tensor([0.0, mode.t_max]).double()).rho.tolist()
        if least <= rho[index] <= largest:
            assert mode(times[index].item()).rho == pytest.approx(rho[index].item(), rel=1e-8)
        else:
            assert times[index].isnan()


def test_bands_against_a_root_finder(generator):
    variances = variances_of(generator, 20)
    weights = torch.rand(4, 21, generator=generator, dtype=torch.float64)
    fraction = uniform(generator, 0.05, 0.95)
    for got, w in zip(band_emergence(variances, weights, fraction), weights, strict=True):

        def missing(log_rho, w=w):
            shown = (w * variances**2 / (variances + math.exp(2 * log_rho))).sum()
            return (shown / (w * variances).sum()).item() - fraction

        assert got.item() == pytest.approx(math.exp(brentq(missing, -20, 20, xtol=1e-14)), rel=1e-9)


def test_a_band_of_one_mode_and_one_of_none(generator):
    variances = variances_of(generator, 2)  # the third mode is empty
    got = band_emergence(variances, torch.eye(3), 0.3)
    torch.testing.assert_close(got[:2], emergence(variances[:2], 0.3, "power"), rtol=1e-12, atol=0)
    assert got[2].isnan()
    times = band_emergence(variances[:1], torch.ones(1, 1), 0.3, wb.EDM(1e-9, 1e3))
    assert times.item() == pytest.approx(got[0].item(), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda v: emergence(v, 1.5), "fraction was 1.5"),
        (lambda v: emergence(v, of="energy"), "of was 'energy'"),
        (lambda v: band_emergence(v, torch.ones(2, 5)), r"weights \(2, 5\)"),
        (lambda v: band_emergence(v, -torch.ones(2, 3)), "a weight was negative"),
        (lambda v: flow_factor(HeatDissipation(DCT((2, 2))), v, 0.5, 0.1), r"have shape \(3,\)"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.ones(3).double())
