"""Everything registered passes the conformance kit; broken things do not, and are told why."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from helpers import LAWS, covariance, normals

import workbench as wb
from workbench.denoisers import Conditional, Perturbed, Spliced
from workbench.processes import Coefficients
from workbench.sampling import Combine, Evaluate
from workbench.sampling.methods.base import Sampler
from workbench.testing import ConformanceError, check_denoiser, check_process, check_sampler


@pytest.mark.parametrize("name", wb.PROCESSES)
def test_every_process(name):
    check_process(wb.PROCESSES[name]())


#: With a law of their own, with labelled points, and with images.
@pytest.mark.parametrize("data", ["ring", "moons", "digits"])
@pytest.mark.parametrize("name", ["Gaussian", "Mixture", "Empirical"])
def test_every_denoiser(name, data):
    check_denoiser(wb.DENOISERS[name].from_data(wb.DATASETS[data]()))


@pytest.mark.parametrize("name", LAWS)
def test_every_kind_of_law(name, generator, seed):
    check_denoiser(LAWS[name](generator, 3), seed=seed % 2**31)


def antisymmetric(generator, d: int) -> torch.Tensor:
    matrix = normals(generator, d, d)
    return matrix - matrix.T


def fitted_mixture(generator) -> wb.Mixture:
    data = wb.DATASETS["moons"]()
    return wb.Mixture.from_data(data)


#: Denoisers made of others, and of low rank.
COMPOSED = {
    "perturbed by nothing": lambda g: Perturbed(wb.Gaussian(normals(g, 3), covariance(g, 3))),
    "a gauge on a mixture": lambda g: Perturbed(wb.DATASETS["ring"]().law, gauge=0.7),
    "a gauge on a Gaussian": lambda g: Perturbed(
        wb.Gaussian(normals(g, 5), covariance(g, 5)), gauge=antisymmetric(g, 5)
    ),
    "a gauge on points": lambda g: Perturbed(
        wb.Empirical(normals(g, 9, 3)), gauge=antisymmetric(g, 3)
    ),
    "a gauge on a gauge": lambda g: Perturbed(Perturbed(fitted_mixture(g), gauge=0.3), gauge=0.2),
    "all that can be wrong": lambda g: Perturbed(
        fitted_mixture(g), 0.2, 0.1, 0.5, torch.tensor([[0.3, 0.1], [0.1, -0.2]]).double()
    ),
    "spliced": lambda g: Spliced(
        wb.Gaussian.from_data(wb.DATASETS["moons"]()), fitted_mixture(g), 1.7
    ),
    "classes of Gaussians": lambda g: Conditional.from_data(wb.DATASETS["moons"]()),
    "classes of mixtures": lambda g: Conditional.from_data(wb.DATASETS["moons"](), "Mixture"),
    "classes of points": lambda g: Conditional.from_data(wb.DATASETS["moons"](), "Empirical"),
    "one class of two": lambda g: Conditional(
        [wb.Gaussian(normals(g, 3), covariance(g, 3)) for _ in range(2)], label=1
    ),
    "guided": lambda g: Conditional.from_data(wb.DATASETS["moons"]()).guided(1, 0.8),
    "digits of rank 12": lambda g: wb.Gaussian.from_data(wb.DATASETS["digits"](), rank=12),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_every_composed_denoiser(name, generator, seed):
    check_denoiser(COMPOSED[name](generator), seed=seed % 2**31)


def three(place: int) -> tuple[str, ...]:
    """VP and two other processes, others at each place, so that all are met."""
    others = [name for name in wb.PROCESSES if name != "VP"]
    return ("VP", others[place % len(others)], others[(place + len(others) // 2) % len(others)])


@pytest.mark.parametrize("name", wb.SAMPLERS)
def test_every_sampler(name):
    cheap = {"points": 8, "rounds": 20} if name == "DPMOT" else {}  # its plan costs the most
    place = list(wb.SAMPLERS).index(name)
    check_sampler(wb.SAMPLERS[name](**cheap), None if name == "Heun" else three(place))


@pytest.mark.parametrize(
    "sampler",
    [wb.Euler(axis="t"), wb.Heun(axis="t"), wb.DDIM(eta=1.0), wb.EulerMaruyama(eta=2.0)],
    ids=repr,
)
def test_other_parameters(sampler):
    check_sampler(sampler, three(sampler.order))


def broken_laws(error) -> set[str]:
    return {law.name for law in error.value.report.laws if not law.holds}


def test_a_wrong_derivative_is_found():
    """A factor of two in d_sigma, the kind of slip that ships for years."""

    @dataclass(frozen=True)
    class Wrong(wb.VP):
        def at(self, t):
            c = super().at(t)
            return type(c)(**{**vars(c), "d_sigma": 2 * c.d_sigma})

    with pytest.raises(ConformanceError, match="BROKEN d_sigma") as error:
        check_process(Wrong())
    assert "d_sigma is the derivative of sigma" in broken_laws(error)


@dataclass(frozen=True)
class Square(wb.Process):
    """alpha = 1 - t^2, a difference that is rounded as 1 is; sigma = t or as 1 - alpha^2 says."""

    preserving: bool = False
    excess: float = 0.0
    t_min = 1e-3
    t_max = 1.0

    def at(self, t):
        alpha, d_alpha = 1 - t * t, -2 * t * (1 + self.excess)
        root = torch.sqrt(2 - t * t) if self.preserving else torch.ones_like(t)
        sigma, d_sigma = t * root, 2 * alpha / root if self.preserving else root
        f = d_alpha / alpha
        g2 = 2 * sigma * d_sigma - 2 * f * sigma**2
        return Coefficients(alpha, sigma, d_alpha, d_sigma, f, g2, sigma / alpha)

    def inverse(self, rho):
        if self.preserving:  # alpha = 1 / sqrt(1 + rho^2), and 1 - alpha without cancellation
            root = torch.hypot(torch.ones_like(rho), rho)
            return torch.where(rho.isinf(), 1.0, rho / torch.sqrt(root * (1 + root)))
        return torch.where(rho.isinf(), 1.0, 2 * rho / (1 + torch.hypot(torch.ones(()), 2 * rho)))


@pytest.mark.parametrize("preserving", [False, True])
def test_a_signal_that_is_rounded_as_one_is_no_slip(preserving):
    check_process(Square(preserving))
    with pytest.raises(ConformanceError) as error:
        check_process(Square(preserving, 1e-9))
    assert "d_alpha is the derivative of alpha" in broken_laws(error)


def planted(kind: type, method: str, slip):
    """A subclass whose ``method`` answers ``slip(right method, *arguments)``; one with an
    underscore is that of its levels and takes ``x, alpha, sigma``.
    """
    if method.startswith("_"):

        def wrong_level(self, x, *rates):
            def right(x, alpha, sigma, *rates):
                return getattr(kind._kind(self.denoiser, alpha, sigma), method)(x, *rates)

            return slip(right, x, self.alpha, self.sigma, *rates)

        level = type("WrongLevel", (kind._kind,), {method: wrong_level})
        return type("Wrong", (kind,), {"_kind": level})

    def wrong(self, *arguments):
        return slip(partial(getattr(kind, method), self), *arguments)

    return type("Wrong", (kind,), {method: wrong})


def mixture(kind: type = wb.Mixture) -> wb.Mixture:
    """A small mixture of full components; with it a slip shows in two dimensions."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.3, -1.1]], dtype=torch.float64)
    a, b = torch.tensor([[0.3, 0.1], [0.1, 0.1]]), torch.tensor([[0.1, -0.05], [-0.05, 0.2]])
    return kind(weights, means, torch.stack([a, b, 0.1 * torch.eye(2)]).double())


def broadest(c) -> float | torch.Tensor:
    """A noise level taken for all coordinates alike."""
    return c if isinstance(c, float) else c.amax(-1, keepdim=True)


def first_of_all(c) -> float | torch.Tensor:
    return c if isinstance(c, float) else c[:1]


HOMOGENEOUS = "D(cx, c alpha, c sigma) = D(x, alpha, sigma)"
EACH = "one scale c per coordinate: " + HOMOGENEOUS
EQUAL = "one noise level per coordinate, all equal, as a single one"
ALONE = "a sample alone as in a batch"
ONE_BY_ONE = "one noise level per sample as one by one"
TWEEDIE = "Tweedie: alpha D = x + sigma^2 score"
SECOND = "Tweedie of second order: Cov[x0|x] = sigma^2/alpha dD/dx"
POSITIVE = "posterior_cov symmetric, positive semi-definite"
GRADIENT = "score = gradient of the log-density [1/sigma]"
HEAT = "Fokker-Planck equation of the log-density"
SCORE_HEAT = "Fokker-Planck equation of the score"
JACOBIAN = "jacobian = derivative of D"
TRACE = "divergence = trace of the jacobian"
HESSIAN = "hessian = derivative of the score, symmetric"
RATE = "rate = derivative of D along a path of (alpha, sigma)"
PURE = "at alpha = 0 the mean of the data"
CONTINUOUS = "continuous at alpha = 0"
DATA = "as sigma goes to 0, D(alpha x0) = x0 for data x0"
CERTAIN = "as sigma goes to 0, no posterior covariance"

#: Slips of the pen: the method that has it, the slip, and the laws that name it.
SLIPS = {
    "alpha ignored": ("_denoised", lambda f, x, a, s: f(x, 1.0, s), [HOMOGENEOUS]),
    "a biased score": (
        "_denoised",
        lambda f, x, a, s: (d := f(x, a, s)) + 0.05 * a * (a * d - x) / (a + s) ** 2,
        [TWEEDIE, JACOBIAN],
    ),
    "a score too large": ("_score", lambda f, x, a, s: 1.05 * f(x, a, s), [TWEEDIE, GRADIENT]),
    "a density too flat": ("_log_prob", lambda f, x, a, s: 0.95 * f(x, a, s), [GRADIENT, HEAT]),
    "a forgotten normalisation": (
        "_log_prob",
        lambda f, x, a, s: f(x, a, s) + 0.5 * torch.as_tensor(s / (a + s)).mean(),
        [HEAT],
    ),
    "a Jacobian too large": ("_jacobian", lambda f, x, a, s: 1.1 * f(x, a, s), [JACOBIAN, TRACE]),
    "a transposed Jacobian": ("_jacobian", lambda f, x, a, s: f(x, a, s).mT, [JACOBIAN]),
    "a forgotten dimension": ("_divergence", lambda f, x, a, s: f(x, a, s) / 2, [TRACE]),
    "a covariance without alpha": (
        "_posterior_cov",
        lambda f, x, a, s: torch.as_tensor(a).mean() * f(x, a, s),
        [SECOND],
    ),
    "a covariance that is not one": (
        "_posterior_cov",
        lambda f, x, a, s: f(x, a, s) - 0.2 * torch.eye(2).double(),
        [POSITIVE, SECOND, CERTAIN],
    ),
    "a Hessian of the wrong sign": ("_hessian", lambda f, x, a, s: -f(x, a, s), [HESSIAN]),
    "a rate without d_sigma": ("_rate", lambda f, x, a, s, da, ds: f(x, a, s, da, 0.0), [RATE]),
    "a rate without d_alpha": ("_rate", lambda f, x, a, s, da, ds: f(x, a, s, 0.0, ds), [RATE]),
    "a noise level for all coordinates": (
        "_denoised",
        lambda f, x, a, s: f(x, broadest(a), broadest(s)),
        [EACH],
    ),
    "a sum over equal levels": (
        "_denoised",
        lambda f, x, a, s: f(
            x, a, s if isinstance(s, float) or len(s.T) == 1 else s.sum(-1)[:, None]
        ),
        [EQUAL],
    ),
    "the batch centred": ("_denoised", lambda f, x, a, s: f(x - x.mean(0), a, s), [ALONE]),
    "the first sample's noise level": (
        "_rate",
        lambda f, x, a, s, da, ds: f(x, *map(first_of_all, (a, s, da, ds))),
        [ONE_BY_ONE],
    ),
    "another mean at pure noise": (
        "_denoised",
        lambda f, x, a, s: f(x, a, s) + (0.1 if isinstance(a, float) and a == 0 else 0.0),
        [PURE, CONTINUOUS],
    ),
    "no covariance at pure noise": (
        "_posterior_cov",
        lambda f, x, a, s: 0 * f(x, a, s) if isinstance(a, float) and a == 0 else f(x, a, s),
        [CONTINUOUS],
    ),
    "noise that never ends": ("_denoised", lambda f, x, a, s: f(x, a, s + 0.1 * a), [DATA]),
    "probabilities of less than one": (
        "_classify",
        lambda f, x, a, s: 0.99 * f(x, a, s),
        ["classify gives probabilities"],
    ),
    "noise added twice": (
        "noised",
        lambda f, a, s: f(a, 2 * s),
        ["noised(alpha, sigma) has the density of that level"],
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_found_by_name(name):
    method, slip, laws = SLIPS[name]
    with pytest.raises(ConformanceError) as error:
        check_denoiser(mixture(planted(wb.Mixture, method, slip)))
    assert set(laws) <= broken_laws(error)
    assert all(f"BROKEN {law}: off by" in str(error.value) for law in laws)


def test_a_slip_in_one_method_breaks_no_other_law():
    """The report points at the place: level and, where the same is asked of many, the method."""
    method, slip, _ = SLIPS["a Jacobian too large"]
    with pytest.raises(ConformanceError) as error:
        check_denoiser(mixture(planted(wb.Mixture, method, slip)))
    assert broken_laws(error) <= {JACOBIAN, TRACE, SECOND, HEAT, SCORE_HEAT}
    (law,) = (law for law in error.value.report.laws if law.name == JACOBIAN)
    assert law.deviation == pytest.approx(0.1, rel=0.6) and law.where.startswith(("alpha", "one"))


def test_the_flow_of_a_wrong_exponent_is_found():
    """A standard deviation for a variance: (l_t / l_s) for its square root."""

    def slip(flow, x, start, end):
        return flow(flow(x, start, end), start, end)

    wrong = planted(wb.Gaussian, "flow", slip)
    with pytest.raises(ConformanceError) as error:
        check_denoiser(wrong(torch.zeros(2).double(), torch.tensor([0.3, 2.0]).double()))
    assert broken_laws(error) == {"flow moves with the probability-flow velocity"}


def test_a_scaled_score_is_found_though_it_has_a_density():
    """Field and density agree at each noise level; that noise makes one of the other is not so."""
    base = wb.Gaussian(torch.zeros(2).double(), torch.tensor([0.5, 2.0]).double())
    with pytest.raises(ConformanceError) as error:
        check_denoiser(Perturbed(base, scale=0.05))
    assert broken_laws(error) == {HEAT, SCORE_HEAT}


def test_what_a_denoiser_does_not_offer_is_skipped_with_the_reason():
    """Nothing but a posterior mean, at one noise level for all coordinates and alpha > 0."""

    class Plain(wb.Denoiser):
        event_shape, dtype, device = torch.Size([2]), torch.float64, torch.device("cpu")
        mean, std = torch.zeros(2).double(), 1.0

        def posterior_mean(self, x, alpha, sigma):
            if isinstance(alpha, float) and alpha == 0:
                raise ValueError("This one needs a signal.")
            return alpha * x / (alpha**2 + sigma**2)

    report = check_denoiser(Plain())
    assert "answers for one noise level per sample" in report.skipped[0]
    text = str(report)
    for line in (
        "skipped laws of alpha = 0: This one needs a signal.",
        "skipped classify: Plain has no classes to tell apart.",
        "ok     " + HOMOGENEOUS,
        "ok     " + TWEEDIE,
        "ok     " + DATA,
    ):
        assert line in text
    assert not any(law.name in (PURE, EACH, EQUAL) for law in report.laws)


def test_a_sampler_of_lower_order_is_found():
    """Heun's rows with one wrong symbol: converges, but at order one."""

    @dataclass(frozen=True)
    class Wrong(Sampler):
        """Says 2."""

        order = 2
        stochastic = False

        def evaluations(self, a, b):
            return 2

        def rows(self, process, a, b):
            half = b.sigma / a.sigma
            mid = (Evaluate("D", "x", a), Combine("y", {"x": half, "D": b.alpha - a.alpha * half}))
            return (*mid, Evaluate("D", "y", b), Combine("x", {"y": 1.0}))

    with pytest.raises(ConformanceError) as error:
        check_sampler(Wrong())
    assert broken_laws(error) == {"order 2 (shortfall)"}


def test_a_wrong_count_of_evaluations_is_found():
    @dataclass(frozen=True)
    class Wrong(wb.Heun):
        def evaluations(self, a, b):
            return 1

    with pytest.raises(ConformanceError, match="nfe"):
        check_sampler(Wrong())


def test_the_report_reads_law_by_law():
    text = str(check_process(wb.EDM()))
    assert text.splitlines()[0] == repr(wb.EDM())
    assert "ok     rho = sigma / alpha" in text
