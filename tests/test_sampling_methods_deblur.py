"""Inverse heat dissipation: the published iteration, what it ends with, and modes that keep rho."""

import math

import numpy as np
import pytest
import torch
from helpers import covariance, normals
from scipy.fft import dctn, idctn

import workbench as wb

SHAPE = (3, 4)
FIRST = {
    "DEIS": wb.DEIS(1), "DEIS-rho": wb.DEIS(1, "rho"), "IPNDM": wb.IPNDM(1),
    "DPMSolverPP": wb.DPMSolverPP(1), "DPMSolver": wb.DPMSolver(1),
    "DPMSolverV3": wb.DPMSolverV3(1), "UniPC": wb.UniPC(1, corrector=False),
}  # fmt: skip
STILL = [
    *FIRST.values(), wb.Euler(), wb.Heun(), wb.Midpoint(), wb.RK4(), wb.DDIM(), wb.DEIS(3),
    wb.DEIS(4, "rho"), wb.IPNDM(4), wb.UniPC(3), wb.UniPC(4, "bh1"), wb.DPMSolver(3),
    wb.DPMSolverPP(3), wb.DPMSolverPP(3, multistep=False), wb.DPMSolverPP(2, sde=True),
    wb.DPMSolverV3(3), wb.ReversibleHeun(), wb.Heun("t"), wb.ExponentialSDE(), wb.DDIM(1.0),
    wb.DDPM("large"), wb.BELM(), wb.BDIA(),
]  # fmt: skip


def gaussian(generator) -> wb.Gaussian:
    d = math.prod(SHAPE)
    cov = covariance(generator, d)
    return wb.Gaussian(normals(generator, *SHAPE), cov)


@pytest.mark.parametrize("sharp", [False, True])
def test_it_is_the_published_iteration(sharp, generator, seed):
    """scripts/sampling.py and model_code/utils.py of the authors, in pixels:

        blur_schedule = exp(linspace(log(blur_sigma_min), log(blur_sigma_max), K)), 0 before it
        DCTBlur: dct_coefs * exp(-(freqs_h^2 + freqs_w^2) * sigma^2 / 2)
        for i in range(K, 0, -1):  u_mean = model(u, i) + u;  u = u_mean + noise * delta
        return u_mean

    The model is the best there is for a Gaussian: it answers the less blurred mean, less u.
    """
    data, K, sigma, seeds = gaussian(generator), 9, 0.02, [seed, seed + 1]
    delta = 1.25 * sigma
    process = wb.HeatDissipation(wb.DCT(SHAPE), blur_min=0.5, blur_max=6.0, noise=sigma)
    grid = wb.Grid.uniform(process, K, "denoise")
    times = np.linspace(process.t_max, process.t_min, K)[::-1]
    blur_schedule = np.exp(
        np.log(process.blur_min) + times * np.log(process.blur_max / process.blur_min)
    )
    # The first of it: no blur in the authors' code, that of t = 0 in the process.
    blur_schedule = np.array([0.0 if sharp else process.blur_min, *blur_schedule])

    height, width = SHAPE
    freqs_h, freqs_w = (np.pi * np.linspace(0, n - 1, n) / n for n in (height, width))
    frequencies_squared = freqs_h[:, None] ** 2 + freqs_w[None, :] ** 2

    def forward_heat(images, fwd_steps):
        t = blur_schedule[fwd_steps] ** 2 / 2
        dct_coefs = dctn(images, axes=(-2, -1), norm="ortho") * np.exp(-frequencies_squared * t)
        return idctn(dct_coefs, axes=(-2, -1), norm="ortho")

    C, mean = data.cov.numpy(), data.mean.numpy()
    eye = np.eye(height * width).reshape(-1, *SHAPE)

    def model(u, i):
        A = forward_heat(eye, i).reshape(len(eye), -1).T
        gain = C @ A.T @ np.linalg.inv(A @ C @ A.T + sigma**2 * np.eye(len(eye)))
        excess = (u - forward_heat(mean, i)).reshape(len(u), -1)
        return forward_heat(mean + (excess @ gain.T).reshape(u.shape), i - 1) - u

    source = wb.sampling.NoiseSource(seeds, SHAPE)
    u = forward_heat(normals(generator, 2, *SHAPE).numpy(), K) + delta
    x = torch.from_numpy(u)
    for i in range(K, 0, -1):
        u_mean = model(u, i) + u
        noise = process.basis.inverse(source.step(K - i)).numpy()
        u = u_mean + noise * delta
    run = wb.sample(wb.Diffusion(process, data), wb.InverseHeat(sharp=sharp), grid, seeds, x=x)
    np.testing.assert_allclose(run.final.numpy(), u_mean, rtol=1e-9, atol=1e-9)
    assert run.nfe == K


@pytest.mark.parametrize("factor", [1.25, math.sqrt(2)])
def test_the_variance_it_ends_with(factor):
    """delta^2 / (1 - (S / (S + sigma^2))^2) of a mode whose blurred variance is S."""
    data = wb.Gaussian(torch.zeros(1, 3).double(), 2.0)
    diffusion = wb.Diffusion(wb.HeatDissipation(wb.DCT((1, 3)), noise=0.3), data)
    grid = wb.Grid.uniform(diffusion.process, 2000)
    law = wb.exact.law(diffusion, wb.InverseHeat(factor), grid, diffusion.marginal(1.0))
    basis, node = diffusion.process.basis.matrix, diffusion.process(grid.t[-1])
    made = (basis.T @ law.cov @ basis).diagonal()
    signal = (node.alpha.square() * 2.0).flatten()
    shrunk = signal / (signal + 0.3**2)
    expected = (factor * 0.3) ** 2 / (1 - shrunk.square())
    torch.testing.assert_close(made, expected, rtol=1e-2, atol=0)
    assert wb.exact.w2(law, diffusion.marginal(grid.t[-1])) > 0.02  # not the data's


def heat(generator, points: int = 2):
    """Noised data at t = 1, where the finest modes have lost more than a float holds."""
    data = gaussian(generator)
    diffusion = wb.Diffusion(wb.HeatDissipation(wb.DCT(SHAPE)), data)
    assert diffusion.process(1.0).alpha.min() == 0
    z = normals(generator, points, *SHAPE)
    x = diffusion.diffuse(data.mean + z, 1.0, normals(generator, points, *SHAPE))
    return diffusion, x


@pytest.mark.parametrize("name", FIRST)
def test_first_orders_are_ddim_by_mode(name, generator):
    """Where alpha grows from 0 by modes, with no digits lost to x / alpha."""
    diffusion, x = heat(generator)
    for final in ("stop", "denoise"):
        grid = wb.Grid.uniform(diffusion.process, 7, final)
        one, other = (
            wb.sample(diffusion, sampler, grid, range(len(x)), x=x).final
            for sampler in (FIRST[name], wb.DDIM())
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", STILL, ids=repr)
def test_a_mode_of_constant_rho_stays(sampler, generator):
    """The mean of the image: neither the flow nor the reverse SDE moves it."""
    diffusion, x = heat(generator)
    grid = wb.Grid.times(diffusion.process, [0.3, 0.25, 0.2, 0.17, 0.15, 0.14])
    run = wb.sample(diffusion, sampler, grid, range(len(x)), x=x)
    moved = (run.final.mean((1, 2)) - x.mean((1, 2))).abs().max().item()
    reach = max(1.0, run.final.abs().max().item())
    assert moved < 1e-12 * reach


def test_an_inversion_returns_a_mode_of_constant_rho(generator):
    diffusion, x = heat(generator)
    grid = wb.Grid.times(diffusion.process, [0.12, 0.1, 0.08, 0.07])
    for inversion in (wb.BELM(), wb.BDIA(), wb.EDICT(), wb.DDIMInversion()):
        latent = inversion.encode(diffusion, grid, x)
        back = inversion.decode(diffusion, grid, latent)
        torch.testing.assert_close(latent.x.mean((1, 2)), x.mean((1, 2)), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(back.mean((1, 2)), x.mean((1, 2)), rtol=1e-9, atol=1e-9)


def test_on_another_process_each_step_noises_its_prediction_afresh():
    """x' = alpha' D + factor sigma' z: on Gaussian data a recursion of the variance."""
    process, variance, factor = wb.VP(), 0.7, 1.1
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(1).double(), variance))
    grid = wb.Grid.karras(process, 5)
    expected = 1.0
    for a, b in zip(grid.nodes, grid.nodes[1:], strict=False):
        gain = a.alpha * variance / (a.alpha**2 * variance + a.sigma**2)
        expected = (b.alpha * gain) ** 2 * expected + (factor * b.sigma) ** 2
    start = wb.Gaussian(torch.zeros(1).double(), 1.0)
    made = wb.exact.law(diffusion, wb.InverseHeat(factor), grid, start)
    assert made.cov.item() == pytest.approx(expected, rel=1e-12)
