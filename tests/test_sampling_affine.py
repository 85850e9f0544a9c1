"""Methods in t against textbook loops on every process; the published samplers of restoration.

The latter are written out as their authors wrote them, in their variables: the code of SGMSE+
(sp-uhh/sgmse), IR-SDE (Algolzw/image-restoration-sde), RDDM (nachifur/RDDM) and Resfusion
(nkicsl/Resfusion). That of MRS stands in test_sampling_identities.
"""

import math
from itertools import pairwise

import pytest
import torch
from helpers import LAWS, normals, relative

import workbench as wb
from workbench.processes import AFFINE, DCT, IRSDE, OUVE, RDDM, SPECTRAL, Affine, Resfusion
from workbench.sampling import NoiseSource, walk

SHAPE = (3,)
SPECTRUM = torch.tensor([1.0, 0.4, 0.1], dtype=torch.float64)
EVERY = {
    **wb.PROCESSES,
    **AFFINE,
    "ShortestPath": lambda: SPECTRAL["ShortestPath"](SPECTRUM, DCT(SHAPE)),
    "HeatDissipation": lambda: SPECTRAL["HeatDissipation"](DCT(SHAPE), blur_max=1.0),
    "Blurring": lambda: SPECTRAL["Blurring"](DCT(SHAPE), blur_max=1.0),
    "EqualSNR": lambda: SPECTRAL["EqualSNR"](SPECTRUM, DCT(SHAPE)),
}


def restoring(process, generator, law="mixture-full") -> wb.Diffusion:
    """A law and, where the process wants one, a condition of about its size."""
    condition = 2 * normals(generator, *SHAPE) if isinstance(process, Affine) else None
    return wb.Diffusion(process, LAWS[law](generator, *SHAPE), condition)


# ---- textbook loops on the velocity and the drift -----------------------------------------------


def euler(v, x, t, h):
    return x + h * v(x, t)


def heun(v, x, t, h):
    k = v(x, t)
    return x + h / 2 * (k + v(x + h * k, t + h))


def midpoint(v, x, t, h):
    return x + h * v(x + h / 2 * v(x, t), t + h / 2)


def rk4(v, x, t, h):
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    k4 = v(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


TEXTBOOK = {
    "Euler": (wb.Euler("t"), euler),
    "Heun": (wb.Heun("t"), heun),
    "Midpoint": (wb.Midpoint("t"), midpoint),
    "RK4": (wb.RK4("t"), rk4),
}


def reversible_heun(v, x, times):
    """Kidger et al. 2021, algorithm 1."""
    hat, k = x, v(x, times[0])
    for t, s in pairwise(times):
        h = s - t
        hat = 2 * x - hat + h * k
        k, before = v(hat, s), k
        x = x + h / 2 * (before + k)
    return x


def inner_times(process) -> list[float]:
    """Unequal steps that keep off both ends."""
    return [share * process.t_max for share in (0.7, 0.55, 0.3)]


def test_all_processes_are_here():
    assert set(EVERY) == {*wb.PROCESSES, *AFFINE, *SPECTRAL}


@pytest.mark.parametrize("name", EVERY)
def test_a_method_in_t_steps_the_state_by_its_velocity(name, generator):
    """One step of Euler is x + h v(x, t), for every process; and so for all methods in t."""
    diffusion = restoring(EVERY[name](), generator)
    times = inner_times(diffusion.process)
    grid, v = wb.Grid.times(diffusion.process, times), diffusion.velocity
    x, record = grid.sigma[0] * normals(generator, 6, *SHAPE), wb.Record(["x"])
    for key, (sampler, step) in TEXTBOOK.items():
        states = wb.sample(diffusion, sampler, grid, range(6), record, x)["x"]
        for i, (t, s) in enumerate(pairwise(times)):
            expected = step(v, states[i], t, s - t)
            assert relative(states[i + 1], expected) < 1e-12, key
    run = wb.sample(diffusion, wb.ReversibleHeun("t"), grid, range(6), x=x)
    assert relative(run.final, reversible_heun(v, x, times)) < 1e-12


@pytest.mark.parametrize("name", EVERY)
def test_euler_maruyama_steps_the_state_by_its_drift(name, generator, seed):
    """x + h drift + sqrt(eta |h|) g z; under a spectral process z is one of the basis."""
    diffusion = restoring(EVERY[name](), generator)
    process, seeds, eta = diffusion.process, range(seed, seed + 6), 0.7
    times, noise = inner_times(process), NoiseSource(seeds, SHAPE)
    grid = wb.Grid.times(process, times)
    x = grid.sigma[0] * normals(generator, 6, *SHAPE)
    final = wb.sample(diffusion, wb.EulerMaruyama(eta), grid, seeds, x=x).final
    for i, (t, s) in enumerate(pairwise(times)):
        g = torch.as_tensor(process(t).g2, dtype=torch.float64).sqrt()
        fresh = math.sqrt(eta * (t - s)) * g * noise.step(i)
        x = x + (s - t) * diffusion.drift(x, t, eta) + diffusion.from_core(fresh, s, "noise")
    assert relative(final, x) < 1e-12


@pytest.mark.parametrize("name", AFFINE)
def test_reverse_diffusion_turns_the_transition_of_the_state_round(name, generator, seed):
    """x = x' + f(x') + sqrt(v) z with f(x) = (A - 1) x + (m - A m') mu: x' = x - f(x) + v s ..."""
    diffusion = restoring(EVERY[name](), generator)
    process, mu, seeds = diffusion.process, diffusion.condition, range(seed, seed + 6)
    times, noise = inner_times(process), NoiseSource(seeds, SHAPE)
    grid, x = wb.Grid.times(process, times), normals(generator, 6, *SHAPE)
    final = wb.sample(diffusion, wb.ReverseDiffusion(), grid, seeds, x=x).final
    for i, (t, s) in enumerate(pairwise(times)):
        A = process(t).alpha / process(s).alpha
        v = process(t).sigma ** 2 - A**2 * process(s).sigma ** 2
        f = (A - 1) * x + (process.shift(t)[0] - A * process.shift(s)[0]) * mu
        x = x - f + v * diffusion.score(x, t) + math.sqrt(v) * noise.step(i)
    assert relative(final, x) < 1e-12


@pytest.mark.parametrize("name", AFFINE)
def test_reversible_heun_in_t_is_undone_under_a_condition(name, generator):
    diffusion = restoring(EVERY[name](), generator)
    process, sampler = diffusion.process, wb.ReversibleHeun("t")
    grid, x = wb.Grid.times(process, inner_times(process)), normals(generator, 6, *SHAPE)
    held = diffusion.constants(x)
    final, _ = walk(sampler.program(process, grid), diffusion.core, x, None, registers=held)
    back, _ = walk(sampler.back(process, grid), diffusion.core, final, None, registers=held)
    assert relative(back, x) < 1e-12


@pytest.mark.parametrize("name", ["OUVE", "IRSDE"])
def test_a_method_in_t_forms_the_velocity_at_the_data_with_the_score(name, generator):
    """At t = 0, where sigma is 0: theta (mu - x) - g^2 s / 2."""
    diffusion = restoring(EVERY[name](), generator, "gaussian-full")
    process, mu, x = diffusion.process, diffusion.condition, normals(generator, 6, *SHAPE)

    def v(x, t):
        return process.theta * (mu - x) - 0.5 * process(t).g2 * diffusion.score(x, t)

    for sampler, step in TEXTBOOK.values():
        final = wb.sample(
            diffusion, sampler, wb.Grid.times(process, [0.02, 0.0]), range(6), x=x
        ).final
        assert relative(final, step(v, x, 0.02, -0.02)) < 1e-11


# ---- the exact law ------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["gaussian-full", "gaussian-diagonal", "gaussian-rank-2-and-rest"])
@pytest.mark.parametrize("name", AFFINE)
def test_the_law_of_a_method_in_t_is_the_recursion_of_its_moments(name, law, generator):
    """x' = M x + b + noise: m' = M m + b, C' = M C M^T + eta g^2 |h|, from drift and velocity."""
    diffusion = restoring(EVERY[name](), generator, law)
    process, mu, eta = diffusion.process, diffusion.condition, 0.6
    times, unit = inner_times(process), torch.eye(3).double()
    grid = wb.Grid.times(process, times)
    prior = wb.Gaussian(process.prior_mean(times[0]) * mu, process.prior_std(times[0]) ** 2)
    start = LAWS["gaussian-full"](generator, *SHAPE)
    for begin, given in ((prior, None), (start, start)):
        for sampler, step, noisy in (
            (wb.EulerMaruyama(eta), euler, eta),
            (wb.Heun("t"), heun, 0.0),
        ):
            mean, cov = begin.mean, begin.cov
            for t, s in pairwise(times):
                field = lambda x, t, e=noisy: diffusion.drift(x, t, e)  # noqa: E731
                b = step(field, torch.zeros(1, 3).double(), t, s - t)[0]
                M = (step(field, unit, t, s - t) - b).T
                mean = M @ mean + b
                cov = M @ cov @ M.T + noisy * process(t).g2 * (t - s) * unit
            exact = wb.exact.law(diffusion, sampler, grid, given)
            assert relative(exact.mean, mean) < 1e-11
            assert relative(exact.cov, cov) < 1e-11


# ---- published samplers -------------------------------------------------------------------------


def test_the_predictor_corrector_of_sgmse(generator, seed):
    """``get_pc_sampler`` with reverse_diffusion and ald: snr 0.5, N = 30, eps = 0.03."""
    theta, sigma_min, sigma_max, N, eps, target_snr = 1.5, 0.05, 0.5, 30, 0.03, 0.5
    process = OUVE(theta, sigma_min, sigma_max)
    diffusion = restoring(process, generator)
    y, seeds = diffusion.condition, range(seed, seed + 6)
    noise = NoiseSource(seeds, SHAPE)
    randn = (noise.step(i) for i in range(10_000))
    logsig = math.log(sigma_max / sigma_min)

    def std(t):
        decay = math.exp(2 * logsig * t) - math.exp(-2 * theta * t)
        return math.sqrt(sigma_min**2 * decay * logsig / (theta + logsig))

    timesteps = torch.linspace(1, eps, N, dtype=torch.float64).tolist()
    xt = y + noise.start() * std(1.0)
    for i, t in enumerate(timesteps):
        stepsize = t - timesteps[i + 1] if i != N - 1 else t  # from eps to 0
        # Corrector: annealed Langevin dynamics.
        step_size = (target_snr * std(t)) ** 2 * 2
        xt_mean = xt + step_size * diffusion.score(xt, t)
        xt = xt_mean + next(randn) * math.sqrt(step_size * 2)
        # Predictor: the SDE discretised, turned round.
        drift = theta * (y - xt)
        dispersion = sigma_min * (sigma_max / sigma_min) ** t * math.sqrt(2 * logsig)
        f, G = drift * stepsize, dispersion * math.sqrt(stepsize)
        xt_mean = xt - (f - G**2 * diffusion.score(xt, t))
        xt = xt_mean + G * next(randn)
    sampler = wb.PredictorCorrector("EulerMaruyama", snr=0.5, norms="expected", scaled=False)
    grid = wb.Grid.times(process, [*timesteps, 0.0])
    run = wb.sample(diffusion, sampler, grid, seeds)
    assert relative(run.final, xt_mean) < 1e-11
    assert run.nfe == sampler.nfe(grid) == 2 * N


def test_the_langevin_corrector_of_sgmse_has_norms_of_the_batch(generator, seed):
    """``langevin``: 2 (snr |z| / |score|)^2 with mean norms and no factor of alpha."""
    process = OUVE()
    diffusion = restoring(process, generator)
    grid, seeds = wb.Grid.times(process, [0.6, 0.5]), range(seed, seed + 6)
    noise, x = NoiseSource(seeds, SHAPE), normals(generator, 6, *SHAPE)
    sampler = wb.PredictorCorrector("EulerMaruyama", norms="batch", snr=0.3, scaled=False)
    final = wb.sample(diffusion, sampler, grid, seeds, x=x).final
    grad, z = diffusion.score(x, 0.6), noise.step(0)
    step_size = (0.3 * z.norm(dim=-1).mean() / grad.norm(dim=-1).mean()) ** 2 * 2
    x = x + step_size * grad + z * torch.sqrt(step_size * 2)
    x = x - 0.1 * diffusion.drift(x, 0.6)
    assert relative(final, x) < 1e-11


def mean_reverting_schedule(T: int, eps: float):
    """``cosine_theta_schedule``: thetas, their sums, dt; index t from 0 to T."""
    timesteps, s = T + 2, 0.008
    x = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos(((x / timesteps) + s) / (1 + s) * math.pi * 0.5) ** 2
    thetas = 1 - (alphas_cumprod / alphas_cumprod[0])[1:-1]
    thetas_cumsum = torch.cumsum(thetas, 0) - thetas[0]
    dt = -1 / thetas_cumsum[-1].item() * math.log(eps)
    return thetas.tolist(), thetas_cumsum.tolist(), dt


@pytest.mark.parametrize("mode", ["sde", "ode", "posterior"])
def test_the_three_samplers_of_irsde(mode, generator, seed):
    """``reverse_sde``, ``reverse_ode`` and ``reverse_posterior``, on the published cosine rates."""
    T, eps, max_sigma = 20, 0.005, 50 / 255
    thetas, thetas_cumsum, dt = mean_reverting_schedule(T, eps)
    process = IRSDE(-math.log(eps), max_sigma)  # our t is the share of the rates' whole sum
    diffusion = restoring(process, generator)
    mu, seeds = diffusion.condition, range(seed, seed + 6)
    times = [total / thetas_cumsum[-1] for total in thetas_cumsum[T::-1]]
    noise = NoiseSource(seeds, SHAPE)
    x = mu + noise.start() * max_sigma
    for i, t in enumerate(range(T, 0, -1)):
        sigma_bar = max_sigma * math.sqrt(1 - math.exp(-2 * thetas_cumsum[t] * dt))
        eps_hat = diffusion.noise(x, times[i])
        score, sigma = -eps_hat / sigma_bar, max_sigma * math.sqrt(2 * thetas[t])
        if mode == "posterior":
            A, B, C = (
                math.exp(-v * dt) for v in (thetas[t], thetas_cumsum[t], thetas_cumsum[t - 1])
            )
            x0 = (x - mu - sigma_bar * eps_hat) / B + mu
            mean = A * (1 - C**2) / (1 - B**2) * (x - mu) + C * (1 - A**2) / (1 - B**2) * (x0 - mu)
            std = max_sigma * math.sqrt((1 - A**2) * (1 - C**2) / (1 - B**2))
            x = mu + mean + (std * noise.step(i) if t > 1 else 0.0)
            continue
        drift = (thetas[t] * (mu - x) - (1.0 if mode == "sde" else 0.5) * sigma**2 * score) * dt
        x = x - drift
        if mode == "sde":  # the sign of their noise is ours turned round
            x = x + sigma * math.sqrt(dt) * noise.step(i)
    sampler = {"sde": wb.EulerMaruyama(), "ode": wb.Euler("t"), "posterior": wb.DDPM()}[mode]
    nodes, final = (times[:-1], "denoise") if mode == "posterior" else (times, "stop")
    run = wb.sample(diffusion, sampler, wb.Grid.times(process, nodes, final), seeds)
    assert relative(run.final, x) < 1e-10


def residual_run(diffusion, times, noise, eta, form):
    """``ddim_sample`` of RDDM (use_pred_noise) and its ``p_sample``, to the data."""
    process, x_input = diffusion.process, diffusion.condition
    alphas_cumsum = [process.shift(t)[0] for t in times]
    betas2_cumsum = [process(t).sigma ** 2 for t in times]
    img = x_input + math.sqrt(betas2_cumsum[0]) * noise.start()
    for i, t in enumerate(times):
        x_start = diffusion.denoised(img, t)
        if i == len(times) - 1:
            return x_start
        pred_res = x_input - x_start
        alpha, betas2 = (
            alphas_cumsum[i] - alphas_cumsum[i + 1],
            betas2_cumsum[i] - betas2_cumsum[i + 1],
        )
        sigma2 = eta * betas2 * betas2_cumsum[i + 1] / betas2_cumsum[i]
        if form == "ddim_sample":
            pred_noise = (img - x_input - (alphas_cumsum[i] - 1) * pred_res) / math.sqrt(
                betas2_cumsum[i]
            )
            kept = math.sqrt(betas2_cumsum[i + 1] - sigma2)
            img = img - alpha * pred_res - (math.sqrt(betas2_cumsum[i]) - kept) * pred_noise
        else:
            coef1 = betas2_cumsum[i + 1] / betas2_cumsum[i]
            coef2 = (betas2 * alphas_cumsum[i + 1] - betas2_cumsum[i + 1] * alpha) / betas2_cumsum[
                i
            ]
            coef3 = betas2 / betas2_cumsum[i]
            img = coef1 * img + coef2 * pred_res + coef3 * x_start
        img = img + math.sqrt(sigma2) * noise.step(i)
    return None


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_samplers_of_rddm(eta, generator, seed):
    """Residual and noise on schedules of their own; sigma^2 = eta beta^2 beta_bar'^2/beta_bar^2."""
    process = RDDM(0.7)
    diffusion = restoring(process, generator)
    times, seeds = [1.0, 0.8, 0.55, 0.3, 0.1], range(seed, seed + 6)
    grid = wb.Grid.times(process, times, "denoise")
    run = wb.sample(diffusion, wb.DDIM(math.sqrt(eta)), grid, seeds)
    expected = residual_run(diffusion, times, NoiseSource(seeds, SHAPE), eta, "ddim_sample")
    assert relative(run.final, expected) < 1e-12
    if eta == 1:
        expected = residual_run(diffusion, times, NoiseSource(seeds, SHAPE), eta, "p_sample")
        assert relative(wb.sample(diffusion, wb.DDPM(), grid, seeds).final, expected) < 1e-12


@pytest.mark.parametrize("mode", ["epsilon", "x_0"])
def test_the_sampler_of_resfusion(mode, generator, seed):
    """``generate``: DDPM's step in the residual noise, or the posterior given x_0 and residual."""
    process = Resfusion()
    diffusion = restoring(process, generator)
    times = [share * process.t_max for share in (1.0, 0.8, 0.5, 0.25, 0.05)]
    X_0_hat, seeds = diffusion.condition, range(seed, seed + 6)
    noise = NoiseSource(seeds, SHAPE)
    sqrt_hat = [wb.VP()(t).alpha for t in times] + [1.0]
    alphas_hat = [a**2 for a in sqrt_hat]
    assert sqrt_hat[0] == pytest.approx(0.5, rel=1e-14)  # the acceleration point
    X = sqrt_hat[0] * X_0_hat + math.sqrt(1 - alphas_hat[0]) * noise.start()
    for i, t in enumerate(times):
        alpha_hat, alpha_hat_t_minus_1 = alphas_hat[i], alphas_hat[i + 1]
        alpha = alpha_hat / alpha_hat_t_minus_1
        beta, last = 1 - alpha, i == len(times) - 1
        sigma = math.sqrt((1 - alpha_hat_t_minus_1) / (1 - alpha_hat) * beta)
        x_0 = diffusion.denoised(X, t)
        residual_term = X_0_hat - x_0
        if mode == "epsilon":
            eps = (X - sqrt_hat[i] * x_0 - (1 - sqrt_hat[i]) * residual_term) / math.sqrt(
                1 - alpha_hat
            )
            weight = (1 - math.sqrt(alpha)) * math.sqrt(1 - alpha_hat) / beta
            resnoise = eps + weight * residual_term
            X = 1 / math.sqrt(alpha) * (X - beta / math.sqrt(1 - alpha_hat) * resnoise)
        else:  # Bayes: N(X; sqrt(a) X' + (1 - sqrt(a)) R, b) times the marginal of X' given x_0, R
            given = sqrt_hat[i + 1] * x_0 + (1 - sqrt_hat[i + 1]) * residual_term
            moved = X - (1 - math.sqrt(alpha)) * residual_term
            X = math.sqrt(alpha) * (1 - alpha_hat_t_minus_1) * moved + beta * given
            X = X / (1 - alpha_hat)
        X = X + (0.0 if last else sigma) * noise.step(i)
    grid = wb.Grid.times(process, times, "denoise")
    run = wb.sample(diffusion, wb.DDPM(), grid, seeds)
    assert relative(run.final, X) < 1e-11


@pytest.mark.parametrize("name", AFFINE)
def test_ancestral_sampling_undoes_a_chain_that_keeps_the_marginals(name, generator):
    """Data of one point are D: from their marginal one step leads to the next."""
    process, x_0 = EVERY[name](), normals(generator, *SHAPE)
    t, s = 0.8 * process.t_max, 0.35 * process.t_max
    grid = wb.Grid.times(process, [t, s])
    diffusion = wb.Diffusion(process, wb.Gaussian(x_0, 0.0), 2 * normals(generator, *SHAPE))
    for sampler in (wb.DDPM(), wb.DDIM(0.6), wb.DDIM()):
        law = wb.exact.law(diffusion, sampler, grid, diffusion.marginal(t))
        assert relative(law.mean, diffusion.marginal(s).mean) < 1e-13
        assert relative(law.cov, diffusion.marginal(s).cov) < 1e-13
