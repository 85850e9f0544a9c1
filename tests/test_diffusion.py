"""The field at time t from the gradient of the log-density, and the exact flow by integration."""

import math

import pytest
import torch
from helpers import (
    KINDS,
    LAWS,
    PROCESSES,
    covariance,
    integrate,
    normals,
    random_process,
    relative,
    ring,
    states,
    uniform,
)

import workbench as wb
from workbench.processes import DCT, Hartley, ShortestPath
from workbench.processes.affine import OUVE

LAW_KINDS = ["gaussian-full", "gaussian-rank-2", "mixture-full", "mixture-equal", "empirical"]


@pytest.fixture(params=PROCESSES)
def process(request, generator):
    return random_process(request.param, generator)


@pytest.mark.parametrize("kind", LAW_KINDS)
def test_every_field_follows_from_the_score(kind, process, generator):
    """s = grad log p; noise -sigma s; velocity f x - g2 s/2; drift f x - (1 + eta) g2 s/2."""
    t = uniform(generator, 0.05, 0.95) * process.t_max
    diffusion, c = wb.Diffusion(process, LAWS[kind](generator, 3)), process(t)
    x = states(generator, diffusion.denoiser, 10, c.alpha, c.sigma)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(diffusion.log_prob(leaf, t).sum(), leaf)
    eta = uniform(generator, 0.1, 3)
    terms = {
        "score": [score],
        "noise": [-c.sigma * score],
        "denoised": [x / c.alpha, c.sigma**2 * score / c.alpha],
        "velocity": [c.f * x, -0.5 * c.g2 * score],
    }
    truth = {name: (sum(parts), rounded(parts)) for name, parts in terms.items()}
    per_sample = torch.full((10,), t, dtype=torch.float64)
    for name, (expected, lost) in truth.items():
        field = getattr(diffusion, name)
        assert relative(field(x, t), expected) < 1e-9 + lost, name
        assert relative(field(x, per_sample), expected) < 1e-9 + lost, name
        assert torch.equal(field(x, torch.tensor(t, dtype=torch.float64)), field(x, t)), name
    for level in (0.0, 1.0, eta):
        parts = [c.f * x, -0.5 * (1 + level) * c.g2 * score]
        expected, lost = sum(parts), rounded(parts)
        assert relative(diffusion.drift(x, t, level), expected) < 1e-9 + lost
        assert relative(diffusion.drift(x, per_sample, level), expected) < 1e-9 + lost


def rounded(parts) -> float:
    """What rounding may leave of a sum, relative to it: near pure noise a velocity and a denoised
    state are small differences of large terms."""
    sizes = sum(part.abs().max().item() for part in parts)
    return 30 * torch.finfo(torch.float64).eps * sizes / sum(parts).abs().max().item()


def test_one_time_per_sample_equals_the_times_one_by_one(process, generator):
    diffusion = wb.Diffusion(process, LAWS["mixture-equal"](generator, 2))
    t = (0.05 + 0.9 * torch.rand(3, 4, generator=generator, dtype=torch.float64)) * process.t_max
    x = normals(generator, 3, 4, 2)
    for field in (diffusion.denoised, diffusion.velocity, diffusion.drift, diffusion.log_prob):
        together = field(x, t)
        for i, j in ((0, 0), (1, 2), (2, 3)):
            alone = field(x[i, j], t[i, j].item())
            # A velocity is a difference of states over a time; it may be next to nothing.
            size = alone.abs().max() + 1 + x[i, j].abs().max() / t[i, j]
            assert (alone - together[i, j]).abs().max() < 1e-11 * size


def test_velocity_at_pure_noise_is_regular(generator):
    """RectifiedFlow at t = 1: d_alpha E[x0] + d_sigma x = x - mean; the drift of the SDE is not."""
    diffusion = wb.Diffusion(wb.RectifiedFlow(), LAWS["mixture-full"](generator, 3))
    x = normals(generator, 5, 3)
    expected = x - diffusion.denoiser.mean
    assert relative(diffusion.velocity(x, 1.0), expected) < 1e-14
    assert relative(diffusion.drift(x, 1.0, eta=0.0), expected) < 1e-14
    assert relative(diffusion.velocity(x, torch.ones(5).double()), expected) < 1e-14
    assert bool(diffusion.drift(x, 1.0, eta=1.0).isinf().all())


@pytest.mark.parametrize(
    ("name", "rank"), [*((name, 2) for name in PROCESSES), *((name, 5) for name in KINDS)]
)
def test_the_flow_equals_its_integration(name, rank, generator):
    """Against DOP853 on the velocity, to 1e-9 from noise to data; and it undoes itself."""
    if rank == 5:
        law = wb.Gaussian(normals(generator, 5), covariance(generator, 5))
    else:
        law = LAWS["gaussian-rank-2"](generator, 5)
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, law)
    low, high = process.t_min, process.t_max
    noisy = process.prior_std(high) * normals(generator, 2, 5)
    clean = diffusion.flow(noisy, high, low)
    assert relative(integrate(diffusion, noisy, high, low), clean) < 1e-9
    assert relative(diffusion.flow(clean, low, high), noisy) < 1e-8  # the way back spreads errors
    middle = math.sqrt(low * high)
    assert relative(diffusion.flow(clean, low, middle), diffusion.flow(noisy, high, middle)) < 1e-9


def test_the_flow_of_a_mixture_is_not_in_closed_form():
    for law in (ring(), wb.Empirical(torch.eye(2).double())):
        diffusion = wb.Diffusion(wb.VP(), law)
        with pytest.raises(
            NotImplementedError, match=r"no closed-form probability flow.*Integrate"
        ):
            diffusion.flow(torch.zeros(1, 2).double(), 1.0, 0.1)


def test_the_marginal_is_the_law_of_x_t(process, generator):
    t = uniform(generator, 0.05, 0.95) * process.t_max
    for kind in LAW_KINDS:
        diffusion = wb.Diffusion(process, LAWS[kind](generator, 3))
        x = states(generator, diffusion.denoiser, 10, process(t).alpha, process(t).sigma)
        marginal = diffusion.marginal(t).log_prob(x)
        torch.testing.assert_close(marginal, diffusion.log_prob(x, t), rtol=1e-9, atol=1e-9)
    c, law = process(t), LAWS["gaussian-full"](generator, 3)
    marginal = wb.Diffusion(process, law).marginal(t)
    expected = c.alpha**2 * law.cov + c.sigma**2 * torch.eye(3).double()
    torch.testing.assert_close(marginal.cov, expected)
    torch.testing.assert_close(marginal.mean, c.alpha * law.mean)


def test_dtype_and_description():
    diffusion = wb.Diffusion(wb.EDM(), ring())
    single = diffusion.to(torch.float32)
    assert (diffusion.dtype, single.dtype) == (torch.float64, torch.float32)
    assert single.event_shape == (2,) and single.device.type == "cpu"
    x, t = torch.ones(2, 2), torch.tensor([0.5, 1.0])
    assert single.velocity(x, t.double()).dtype == torch.float32
    assert repr(single) == "Diffusion(EDM(sigma_min=0.002, sigma_max=80.0), " + repr(ring()) + ")"


X = torch.zeros(2, 2).double()
FINE = wb.Diffusion(wb.VP(), ring())


@pytest.mark.parametrize(
    ("call", "error", "pieces"),
    [
        (lambda: wb.Diffusion(ring(), wb.VP()), TypeError, ["process was Mixture", "a Process"]),
        (lambda: wb.Diffusion(wb.VP, ring()), TypeError, ["process was", "call it first", "VP()"]),
        (lambda: wb.Diffusion(wb.VP(), wb.VP()), TypeError, ["denoiser was VP(", "a Denoiser"]),
        (lambda: FINE.denoised(X, 1.5), ValueError, ["t was 1.5", "t from 0 to 1"]),
        (lambda: FINE.score(X, torch.tensor([0.5, -0.1])), ValueError, ["t was -0.1", "0 to 1"]),
        (lambda: FINE.noise(X, 0.0), ValueError, ["t was 0", "sigma > 0", "t >= 0.001"]),
        (lambda: FINE.noise(X, torch.zeros(())), ValueError, ["t was 0", "sigma > 0"]),
        (lambda: FINE.velocity(X, torch.tensor([0.0, 1.0])), ValueError, ["t was 0", "sigma > 0"]),
        (lambda: FINE.drift(X, 0.5, eta=-1.0), ValueError, ["eta was -1.0", "at least 0"]),
        (lambda: FINE.drift(X, 0.5, eta=math.inf), ValueError, ["eta was inf", "finite"]),
        (lambda: FINE.denoised(X[:, :1], 0.5), ValueError, ["x has shape (2, 1)", "(2,)"]),
        (lambda: FINE.score(X.float(), 0.5), TypeError, ["x is float32", "float64"]),
        (lambda: FINE.marginal(2.0), ValueError, ["t was 2", "from 0 to 1"]),
        (lambda: FINE.denoised(X, torch.ones(3)), ValueError, ["t has shape (3,)", "(2,)"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(call, error, pieces):
    with pytest.raises(error) as caught:
        call()
    for piece in pieces:
        assert piece in str(caught.value)


# ---- derivatives, conditions and bases -----------------------------------------------------------

SHAPE = torch.Size((2, 2))


def reshaped(law: wb.Mixture) -> wb.Mixture:
    return wb.Mixture(law.weights, law.means.reshape(-1, *SHAPE), law.covs)


def diffusions(generator) -> dict[str, wb.Diffusion]:
    """A mixture of four dimensions under one process of each family."""
    law = reshaped(LAWS["mixture-full"](generator, 4))
    spectrum = torch.rand(SHAPE, generator=generator, dtype=torch.float64) + 0.1
    return {
        "scalar": wb.Diffusion(wb.VP(), law),
        "affine": wb.Diffusion(OUVE(), law, condition=normals(generator, *SHAPE)),
        "spectral": wb.Diffusion(ShortestPath(spectrum, Hartley(SHAPE)), law),
    }


def slope(field, h):
    """The derivative of ``field(s)`` at 0, by fourth-order differences."""
    a, b, c, d = (field(k * h) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


@pytest.mark.parametrize("family", ["scalar", "affine", "spectral"])
def test_derivatives_in_space_and_time(family, generator):
    diffusion = diffusions(generator)[family]
    t = uniform(generator, 0.3, 0.7)
    x = diffusion.diffuse(normals(generator, 5, *SHAPE), t, normals(generator, 5, *SHAPE))
    eye = torch.eye(4).double().reshape(4, 1, *SHAPE)

    def columns(field):
        """Directional derivatives along every coordinate, as (n, out, 4)."""
        each = [slope(lambda h, e=e: field(x + h * e), 1e-3) for e in eye]
        return torch.stack([v.flatten(1) for v in each], -1)

    assert relative(diffusion.jacobian(x, t), columns(lambda y: diffusion.denoised(y, t))) < 1e-6
    assert relative(diffusion.hessian(x, t), columns(lambda y: diffusion.score(y, t))) < 1e-6
    by_density = torch.stack(
        [slope(lambda h, e=e: diffusion.log_prob(x + h * e, t), 1e-3) for e in eye], -1
    )
    assert relative(diffusion.score(x, t).flatten(1), by_density) < 1e-6
    velocity = columns(lambda y: diffusion.velocity(y, t)).diagonal(dim1=1, dim2=2).sum(1)
    assert relative(diffusion.divergence(x, t), velocity) < 1e-6
    times = torch.full((5,), t, dtype=torch.float64)
    assert relative(diffusion.divergence(x, times), velocity) < 1e-6
    for when in (t, times):
        both = diffusion.velocity_and_divergence(x, when)
        assert relative(both[0], diffusion.velocity(x, when)) < 1e-13
        assert relative(both[1], diffusion.divergence(x, when)) < 1e-13
    for rate, field in (
        (diffusion.denoised_rate, diffusion.denoised),
        (diffusion.score_rate, diffusion.score),
    ):
        found = rate(x, t)
        assert relative(found, slope(lambda h, f=field: f(x, t + h), 1e-4)) < 1e-6
        assert relative(rate(x, times), found) < 1e-12


def test_velocity_and_divergence_take_one_evaluation(generator):
    class Counted(wb.Denoiser):
        event_shape, dtype, evaluations = torch.Size((3,)), torch.float64, 0

        def posterior_mean(self, x, alpha, sigma):
            self.evaluations += 1
            return torch.tanh(x @ torch.tril(x.new_ones(3, 3)) * alpha / (alpha + sigma))

    diffusion = wb.Diffusion(wb.VP(), Counted())
    x = normals(generator, 4, 3)
    apart = diffusion.velocity(x, 0.4), diffusion.divergence(x, 0.4)
    before = diffusion.denoiser.evaluations
    both = diffusion.velocity_and_divergence(x, 0.4)
    assert diffusion.denoiser.evaluations == before + 1
    for found, wanted in zip(both, apart, strict=True):
        assert relative(found, wanted) < 1e-13


@pytest.mark.parametrize("family", ["scalar", "affine", "spectral"])
def test_the_density_is_carried_by_the_flow(family, generator):
    """d/dt log p = -div(p v)/p at fixed x, whatever the shift or the basis."""
    diffusion = diffusions(generator)[family]
    t = uniform(generator, 0.3, 0.7)
    x = diffusion.diffuse(normals(generator, 5, *SHAPE), t, normals(generator, 5, *SHAPE))
    in_time = slope(lambda h: diffusion.log_prob(x, t + h), 1e-4)
    along = (diffusion.velocity(x, t) * diffusion.score(x, t)).flatten(1).sum(1)
    assert relative(in_time, -(diffusion.divergence(x, t) + along)) < 1e-7


def test_the_marginal_of_every_family_is_a_law_of_the_state(generator):
    for family, diffusion in diffusions(generator).items():
        law = wb.Gaussian(normals(generator, *SHAPE), covariance(generator, 4))
        diffusion = wb.Diffusion(diffusion.process, law, diffusion.condition)
        marginal, x = diffusion.marginal(0.4), normals(generator, 6, *SHAPE)
        assert relative(marginal.log_prob(x), diffusion.log_prob(x, 0.4)) < 1e-10, family
        x0, noise = torch.zeros(1, *SHAPE).double(), torch.zeros(1, *SHAPE).double()
        at_zero = diffusion.diffuse(x0, 0.4, noise)
        moved = diffusion.diffuse(law.mean[None], 0.4, noise)
        assert relative(marginal.mean, moved[0]) < 1e-12
        columns = [
            diffusion.diffuse(e.reshape(1, *SHAPE), 0.4, noise) - at_zero
            for e in torch.eye(4).double()
        ]
        signal = torch.stack([c.flatten() for c in columns], 1)
        columns = [
            diffusion.diffuse(x0, 0.4, e.reshape(1, *SHAPE)) - at_zero
            for e in torch.eye(4).double()
        ]
        spread = torch.stack([c.flatten() for c in columns], 1)
        expected = signal @ law.cov @ signal.T + spread @ spread.T
        assert relative(marginal.cov, expected) < 1e-10


def test_the_diagonal_twin_gives_the_same_run(generator, seed):
    law = wb.Gaussian(normals(generator, *SHAPE), covariance(generator, 4))
    for process, condition in ((wb.VP(), None), (OUVE(), normals(generator, *SHAPE))):
        diffusion = wb.Diffusion(process, law, condition)
        twin, basis = diffusion.diagonalised()
        assert twin.denoiser.basis is None
        grid, x = wb.Grid.log_snr(process, 8), normals(generator, 5, *SHAPE)
        run = wb.sample(diffusion, wb.Heun(), grid, range(5), wb.Record(["x", "score"]), x=x)
        there = wb.sample(
            twin, wb.Heun(), grid, range(5), wb.Record(["x", "score"]), x=basis.forward(x)
        )
        assert relative(basis.inverse(there["x"]), run["x"]) < 1e-13
        # The score is a difference of states, of which rounding leaves this at the last node.
        rounding = torch.finfo(torch.float64).eps * run["x"].abs().max() / grid.sigma[-1] ** 2
        assert (basis.inverse(there["score"]) - run["score"]).abs().max() < 50 * rounding
    with pytest.raises(NotImplementedError, match="only Gaussian data"):
        FINE.diagonalised()


def test_conditions_and_bases_that_do_not_fit_are_refused():
    ring_law, mean = ring(), torch.zeros(2).double()
    for call, error, piece in (
        (lambda: wb.Diffusion(OUVE(), ring_law), TypeError, "give it as"),
        (lambda: wb.Diffusion(wb.VP(), ring_law, mean), TypeError, "takes no condition"),
        (lambda: wb.Diffusion(OUVE(), ring_law, torch.zeros(3)), ValueError, "shape (3,)"),
        (lambda: wb.Diffusion(OUVE(), ring_law, mean / 0), ValueError, "not finite"),
        (
            lambda: wb.Diffusion(ShortestPath(torch.ones(3), DCT((3,))), ring_law),
            ValueError,
            "for the shape of the data",
        ),
    ):
        with pytest.raises(error) as caught:
            call()
        assert piece in str(caught.value)
