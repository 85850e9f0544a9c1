"""Levels, denoisers of one method, their twins, networks: against quadrature and closed forms."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from helpers import LAWS, normals, relative, states

import workbench as wb
from workbench.denoisers.precondition import edm_preconditioning
from workbench.testing import check_denoiser

NAMES = ("denoised", "score", "log_prob", "jacobian", "divergence", "hessian", "posterior_cov")


class Circle(wb.Denoiser):
    """Uniform on a circle in the plane: the posterior mean is a ratio of Bessel functions."""

    event_shape = torch.Size((2,))

    def __init__(self, radius=1.0):
        self.radius = radius

    def posterior_mean(self, x, alpha, sigma):
        r = x.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        k = alpha * self.radius * r / sigma**2
        return self.radius * x / r * torch.special.i1e(k) / torch.special.i0e(k)


def points(radius: float, count: int = 800) -> wb.Empirical:
    """Equal points on the circle: the trapezium rule, exact to rounding above little noise."""
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return wb.Empirical(radius * torch.stack([angle.cos(), angle.sin()], -1))


def test_one_method_gives_everything_else(generator):
    """All a closed form gives, against quadrature over the circle; mean and spread measured."""
    law, truth = Circle(1.7), points(1.7)
    x = 2 * normals(generator, 5, 2)
    for alpha, sigma in ((0.8, 0.3), (0.1, 2.0), (1.0, 0.1)):
        level, exact = law.at(alpha, sigma), truth.at(alpha, sigma)
        for name in NAMES:
            assert relative(getattr(level, name)(x), getattr(exact, name)(x)) < 1e-9, name
        v = normals(generator, 5, 2)
        assert relative(level.jvp(x, v), exact.jvp(x, v)) < 1e-9
        assert relative(level.vjp(x, v), exact.jvp(x, v)) < 1e-9  # J is symmetric
        assert relative(level.rate(x, -0.3, 0.7), exact.rate(x, -0.3, 0.7)) < 1e-9
        assert relative(level.slope(x), exact.slope(x)) < 1e-9
    assert law.mean.abs().max() < 1e-12
    assert law.std == pytest.approx(1.7 / math.sqrt(2), rel=1e-5)
    check_denoiser(law)


@pytest.mark.parametrize("name", LAWS)
def test_all_of_a_level_can_be_differentiated(name, generator):
    """Autograd goes through each closed form, to its derivative by differences."""
    law, through = LAWS[name](generator, 2), set()
    for alpha, sigma in ((0.9, 0.5), (1.0, 0.05)):
        level, v = law.at(alpha, sigma), normals(generator, 2)
        asked = {one: getattr(level, one) for one in (*NAMES, "slope")}
        if not name.startswith("gaussian"):
            asked["classify"] = level.classify
        asked["rate"] = lambda x, level=level: level.rate(x, -0.3, 0.7)
        asked["jvp"] = lambda x, level=level, v=v: level.jvp(x, v)
        asked["vjp"] = lambda x, level=level, v=v: level.vjp(x, v)
        x = states(generator, law, 2, alpha, sigma).requires_grad_()
        for one, ask in asked.items():
            value = ask(x)
            if value.requires_grad:  # a Gaussian's Jacobian does not depend on the state
                about = 1e-6 * value.detach().abs().max().item() / sigma
                check = {"eps": 1e-5 * sigma, "atol": about, "rtol": 1e-3}
                assert torch.autograd.gradcheck(ask, x, **check), one
                through.add(one)
    assert through >= {"denoised", "log_prob", "score"}
    assert name.startswith("gaussian") or through == {*asked}


#: Samplers that prepare themselves at length, with less of it.
SHORT = {
    "DPMOT": {"points": 32, "rounds": 40},
    "DPMSolverV3": {"samples": 16, "nodes": 32},
    "DenoisingMCMC": {"burn_in": 4, "skip": 4, "levels": 30},
}


@pytest.mark.parametrize("name", sorted(wb.SAMPLERS))
def test_one_method_is_enough_for_every_sampler(name):
    """With nothing but the posterior mean."""
    diffusion, sampler = wb.Diffusion(wb.VP(), Circle()), wb.SAMPLERS[name](**SHORT.get(name, {}))
    run = wb.sample(diffusion, sampler, wb.Grid.log_snr(wb.VP(), 24), range(8))
    assert (run.final.norm(dim=1) - 1).abs().mean() < 0.35
    assert run.attrs["data_std"] == pytest.approx(math.sqrt(0.5), rel=1e-5)


def test_twins_are_the_law_they_stand_for(generator):
    """In another basis, moved and under noise, of a formula as of the closed form."""
    law = LAWS["mixture-full"](generator, 3)

    class Formula(wb.Denoiser):
        event_shape = law.event_shape

        def posterior_mean(self, x, alpha, sigma):
            return law.denoise(x, alpha, sigma)

    turn, offset = torch.linalg.qr(normals(generator, 3, 3)).Q, normals(generator, 3)
    for change in (
        lambda d: d.transformed(turn),
        lambda d: d.translated(offset),
        lambda d: d.noised(0.7, 0.4),
        lambda d: d.noised(0.7, 0.4).translated(offset).transformed(turn),
    ):
        twin, exact = change(Formula()), change(law)
        x = states(generator, exact, 6, 0.8, 0.5)
        each = 0.3 + torch.rand(6, generator=generator, dtype=torch.float64)
        for pair in ((0.8, 0.5), (each, 0.5), (1.0, 0.01)):
            level, other = twin.at(*pair), exact.at(*pair)
            for name in ("denoised", "score", "jacobian"):
                assert relative(getattr(level, name)(x), getattr(other, name)(x)) < 1e-9, name
        assert relative(twin.log_prob(x, 0.8, 0.5), exact.log_prob(x, 0.8, 0.5)) < 1e-9
        assert relative(twin.mean, exact.mean) < 1e-6
        assert twin.std == pytest.approx(exact.std, rel=1e-5)
    with pytest.raises(ValueError, match="one noise level per sample"):
        Formula().denoise(x, 0.8, torch.tensor([[0.1, 0.2, 0.3]]).double())


def test_probes_estimate_the_divergence_within_their_error(generator):
    law = LAWS["mixture-full"](generator, 5)
    x = states(generator, law, 40, 0.8, 0.5)
    probes = normals(generator, 400, 5).sign()
    level = law.at(0.8, 0.5)
    estimate, error = level.divergence(x, probes)
    off = ((estimate - level.divergence(x)) / error).abs()
    assert off.max() < 5 and error.shape == (40,)


PREDICTIONS = ("denoised", "noise", "velocity", "score", "edm")


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_network_is_the_denoiser_of_what_it_predicts(predicts, generator):
    """A formula in a network's clothes, trained under VP and asked under any process."""
    law = LAWS["gaussian-full"](generator, 2)
    process = wb.VP()

    def module(x, t):
        if predicts == "edm":
            rho = torch.exp(4 * t)[:, None]
            c = edm_preconditioning(rho)
            y = x / c.input
            return (law.denoise(y, torch.ones_like(rho), rho) - c.skip * y) / c.out
        c = process(t).map(lambda v: v[:, None])
        denoised = law.denoise(x, c.alpha, c.sigma)
        noise = (x - c.alpha * denoised) / c.sigma
        velocity = c.d_alpha * denoised + c.d_sigma * noise
        given = {"denoised": denoised, "noise": noise, "velocity": velocity}
        return given[predicts] if predicts in given else -noise / c.sigma

    net = wb.Neural(module, predicts, process, dtype=torch.float64)
    x = states(generator, law, 5, 0.8, 0.6)
    for alpha, sigma in ((0.8, 0.6), (1.0, 3.0), (0.3, 0.05)):
        level, exact = net.at(alpha, sigma), law.at(alpha, sigma)
        for name in ("denoised", "score", "jacobian"):
            assert relative(getattr(level, name)(x), getattr(exact, name)(x)) < 1e-10, name
        assert relative(level.rate(x, 0.1, 0.2), exact.rate(x, 0.1, 0.2)) < 1e-8
    for other in (wb.EDM(), wb.VE()):
        grid = wb.Grid.karras(other, 6)
        start = normals(generator, 5, 2) * other.prior_std(grid.t[0])
        runs = [
            wb.sample(wb.Diffusion(other, d), wb.Heun(), grid, range(5), x=start).final
            for d in (net, law)
        ]
        assert relative(*runs) < 1e-8
    assert net.std == pytest.approx(law.std, rel=1e-3)


def test_what_a_network_cannot_be_is_said():
    with pytest.raises(TypeError, match="module was 3"):
        wb.Neural(3, "noise", wb.VP())
    with pytest.raises(ValueError, match="predicts was 'eps'"):
        wb.Neural(torch.nn.Identity(), "eps", wb.VP())
    with pytest.raises(TypeError, match="one alpha and sigma"):
        wb.Neural(torch.nn.Identity(), "noise", wb.OUVE())
    short = wb.Neural(lambda x, t: x[:, 0], "denoised", wb.VP(), event_shape=(2,))
    with pytest.raises(ValueError, match=r"Neural.* shape \(3,\) .* of shape \(3, 2\)"):
        short.denoise(torch.zeros(3, 2), 1.0, 1.0)


@pytest.mark.parametrize("name", ["mixture-equal", "mixture-full", "gaussian-full", "empirical"])
def test_what_is_kept_between_runs_is_never_stale(name, generator):
    """A tensor of the denoiser written to in place, or put in its place: as if made anew."""
    law = LAWS[name](generator, 2)
    grid, x = wb.Grid.karras(wb.VP(), 6), normals(generator, 4, 2)

    def final(denoiser):
        return wb.sample(wb.Diffusion(wb.VP(), denoiser), wb.Heun(), grid, range(4), x=x).final

    for denoiser in (law, law.to(torch.float32)):
        x = x.to(denoiser.dtype)
        before = final(denoiser)
        assert torch.equal(final(denoiser), before) and len(denoiser._programs) == 1
        place = "mean" if name == "gaussian-full" else "means"
        getattr(denoiser, "points" if name == "empirical" else place).mul_(1.3)
        after = final(denoiser)
        assert relative(after, before) > 1e-3
        twin = pickle.loads(pickle.dumps(copy.copy(denoiser)))
        assert not hasattr(twin, "_programs") and relative(final(twin), after) < 1e-6
    kept = weakref.ref(law)
    del law, denoiser
    gc.collect()
    assert kept() is None
