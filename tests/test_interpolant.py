"""The fields of an interpolant against quadrature, gradients, integration and a diffusion."""

import math

import pytest
import torch
from helpers import LAWS, covariance, normals, relative, ring, uniform
from scipy.integrate import solve_ivp

import workbench as wb
from workbench.interpolant import Interpolant
from workbench.processes.interpolants import EncoderDecoder, Linear, Mirror, Trigonometric

PATHS = {
    "linear-brownian": Linear(),
    "linear-none": Linear("none"),
    "linear-quadratic": Linear("quadratic", 9.0),
    "trig-brownian": Trigonometric("brownian", 2.0),
    "trig-sine-squared": Trigonometric("sine-squared", 0.9),
    "encoder-decoder": EncoderDecoder(),
    "mirror": Mirror("brownian", 3.0),
}
#: Ends of every kind: isotropic, diagonal, commuting and dense pairs.
ENDS = [
    ("gaussian-full", "gaussian-full"),
    ("gaussian-scalar", "gaussian-full"),
    ("gaussian-diagonal", "gaussian-diagonal"),
    ("gaussian-rank-2", "gaussian-scalar"),
    ("gaussian-scalar", "mixture-isotropic"),
    ("mixture-equal", "mixture-isotropic"),
    ("mixture-diagonal", "gaussian-full"),
    ("mixture-diagonal", "mixture-isotropic"),
    ("mixture-full", "mixture-full"),
    ("mixture-full", "empirical"),
    ("gaussian-scalar", "empirical"),
]
MEAN, COV = [1.0, -0.5], [[2.0, 0.6], [0.6, 0.5]]


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def standard(d: int = 2) -> wb.Gaussian:
    return wb.Gaussian(torch.zeros(d, dtype=torch.float64), 1.0)


def gaussians(path) -> Interpolant:
    return Interpolant(path, standard(), wb.Gaussian(double(MEAN), double(COV)))


def draw(generator, ends, path, d=3):
    """An interpolant, a time in which it has a density, and states spread over its law."""
    made = Interpolant(PATHS[path], LAWS[ends[0]](generator, d), LAWS[ends[1]](generator, d))
    t = uniform(generator, 0.1, 0.9)
    c = made.path(t)
    scale = c.a * made.source.std + c.b * made.target.std + c.gamma
    centre = c.a * made.source.mean + c.b * made.target.mean
    return made, t, centre + 1.5 * scale * normals(generator, 6, d)


each_end = pytest.mark.parametrize("ends", ENDS, ids="-to-".join)
each_path = pytest.mark.parametrize("path", PATHS)


# ---- Gaussian ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "velocity", "score", "noise"),
    [
        (
            Linear(),
            [1.0820458292221045, -0.670376476212072],
            [0.02895735149015451, -0.4718975798395549],
            [-0.013269925512907533, 0.21625063798812272],
        ),
        (
            Trigonometric(),
            [1.2079973880322463, -0.7098604156971553],
            [0.12689993542617004, -0.45086094442335045],
            [-0.05815285597754324, 0.20661044057192815],
        ),
        (
            EncoderDecoder(),
            [0.505685847608021, 0.3371238984053474],
            [-0.5476993645861982, -0.36513290972413215],
            [0.35847388802584684, 0.23898259201723124],
        ),
    ],
)
def test_fields_between_gaussians_equal_the_reference(path, velocity, score, noise):
    """Values computed on their own, from N(0, I) to a full covariance, at t = 0.3."""
    made, x = gaussians(path), double([0.3, 0.2])
    assert relative(made.velocity(x, 0.3), double(velocity)) < 1e-14
    assert relative(made.score(x, 0.3), double(score)) < 1e-14
    assert relative(made.noise(x, 0.3), double(noise)) < 1e-14


def affine(field):
    """Matrix and vector of an affine field of two coordinates."""
    shift, one, other = field(double([[0, 0], [1, 0], [0, 1]]))
    return torch.stack([one - shift, other - shift], 1), shift


def transported(made, epsilon, start=1e-4, end=1 - 1e-4, forward=True):
    """Mean and covariance that the moment equations of the SDE carry from ``start`` to ``end``."""
    law = made.marginal(start)

    def rates(t, state):
        mean, cov = torch.from_numpy(state[:2]), torch.from_numpy(state[2:]).reshape(2, 2)
        matrix, shift = affine(lambda x: made.drift(x, t, epsilon, forward))
        noise = 2 * (epsilon(t) if callable(epsilon) else epsilon) * torch.eye(2).double()
        fresh = noise if forward else -noise
        rate = matrix @ cov + cov @ matrix.T + fresh
        return torch.cat([matrix @ mean + shift, rate.flatten()]).numpy()

    state = torch.cat([law.mean, law.cov.flatten()]).numpy()
    solved = solve_ivp(rates, (start, end), state, "LSODA", rtol=1e-9, atol=1e-11)
    final = torch.from_numpy(solved.y[:, -1])
    return final[:2], final[2:].reshape(2, 2)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (Linear(), [1.9997000200000004, 0.5998800060000001, 0.500000005]),
        (Trigonometric(), [1.9998999853284585, 0.5999399911970742, 0.5000500073357718]),
        (EncoderDecoder(), [1.9999996052162554, 0.5999998815649055, 0.4999999013039917]),
    ],
)
def test_the_velocity_transports_the_covariance(path, expected, record_property):
    (xx, xy), (_, yy) = transported(gaussians(path), 0.0)[1].tolist()
    off = max(abs(a - b) for a, b in zip((xx, xy, yy), expected, strict=True))
    record_property("measured", f"{path!r}: transported covariance off by {off:.1e}")
    assert off < 1e-7


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "epsilon", [0.0, 0.5, 2.0, lambda t: 3 * t * (1 - t)], ids=["0", "0.5", "2", "of t"]
)
def test_every_diffusivity_has_the_same_marginals(dense, epsilon, generator):
    """Moments of the forward SDE from source to target, whatever epsilon(t)."""
    made = gaussians(Linear())
    if dense:
        made = Interpolant(
            PATHS["trig-brownian"],
            wb.Gaussian(normals(generator, 2), covariance(generator, 2, 0.2)),
            wb.Gaussian(normals(generator, 2), covariance(generator, 2, 0.2)),
        )
    mean, cov = transported(made, epsilon)
    law = made.marginal(1 - 1e-4)
    assert relative(cov, law.cov) < 1e-7 and (mean - law.mean).abs().max() < 1e-7
    if not dense:
        assert relative(cov, double([[1.99970002, 0.599880006], [0.599880006, 0.500000005]])) < 1e-7


def test_the_way_back_has_the_same_marginals(generator):
    made = gaussians(PATHS["trig-brownian"])
    mean, cov = transported(made, 0.7, start=0.95, end=0.05, forward=False)
    law = made.marginal(0.05)
    assert relative(cov, law.cov) < 1e-7 and (mean - law.mean).abs().max() < 1e-7


# ---- any ends ------------------------------------------------------------------------------------


@each_path
@each_end
def test_fields_are_derivatives_of_the_density_and_conserve_it(ends, path, generator):
    """score = grad log p; divergence = trace of the Jacobian; d_t log p + div b + b . s = 0."""
    made, t, x = draw(generator, ends, path)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(made.log_prob(leaf, t).sum(), leaf)
        fields = torch.autograd.functional.jacobian(lambda y: made.velocity(y, t), x)
    jacobian = torch.stack([fields[i, :, i] for i in range(len(x))])
    assert relative(made.score(x, t), score) < 1e-9
    divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    size = 1 + divergence.abs()
    assert ((made.divergence(x, t) - divergence).abs() / size).max() < 1e-9

    velocity, h = made.velocity(x, t), 2e-4
    logs = [made.log_prob(x, t + k * h) for k in (-3, -2, -1, 1, 2, 3)]
    slope = sum(w * p for w, p in zip((-1, 9, -45, 45, -9, 1), logs, strict=True)) / (60 * h)
    along = (velocity * score).sum(1)
    residual = slope + divergence + along
    assert (residual.abs() / (size + along.abs())).max() < 1e-7


@each_path
@each_end
def test_the_parts_of_the_state_add_up(ends, path, generator):
    """x = a E[x0] + b E[x1] + gamma E[z] given x; velocity is that of the parts."""
    made, t, x = draw(generator, ends, path)
    c = made.path(t)
    source, target = made.endpoints(x, t)
    noise, score = made.noise(x, t), made.score(x, t)
    size = 1 + c.a * source.abs().max() + c.b * target.abs().max()
    assert (c.a * source + c.b * target + c.gamma * noise - x).abs().max() < 1e-11 * size
    assert (noise + c.gamma * score).abs().max() < 1e-11 * size
    ends_only = c.d_a * source + c.d_b * target
    assert (made.conditional(x, t) - ends_only).abs().max() < 1e-10 * size
    velocity = ends_only + c.d_gamma * noise
    assert relative(made.velocity(x, t), velocity) < 1e-9
    assert relative(made.conditional(x, t) - c.gamma_d_gamma * score, velocity) < 1e-9
    epsilon = uniform(generator, 0.1, 2)
    for sign, forward in ((1, True), (-1, False)):
        drift = velocity + sign * epsilon * score
        assert relative(made.drift(x, t, epsilon, forward), drift) < 1e-9
        assert relative(made.drift(x, t, lambda _: epsilon, forward), drift) < 1e-9
        each = torch.full((len(x),), epsilon, dtype=torch.float64)
        assert relative(made.drift(x, t, each, forward), drift) < 1e-9


@each_path
@each_end
def test_the_marginal_is_the_law_of_x_t(ends, path, generator):
    """Its own log-density and moments; at both ends the very laws that were given."""
    made, t, x = draw(generator, ends, path)
    law, c = made.marginal(t), made.path(t)
    assert (law.log_prob(x) - made.log_prob(x, t)).abs().max() < 1e-9
    mean = c.a * made.source.mean + c.b * made.target.mean
    assert (law.mean - mean).abs().max() < 1e-12
    variance = (c.a * made.source.std) ** 2 + (c.b * made.target.std) ** 2 + c.gamma2
    assert law.std**2 == pytest.approx(variance, rel=1e-10)
    first = made.target if path == "mirror" else made.source
    assert made.marginal(0.0) is first and made.marginal(1.0) is made.target


@pytest.mark.parametrize("path", [p for p in PATHS if p != "linear-none"])
def test_fields_in_one_dimension_equal_their_integrals(path, generator):
    """Averages over both ends by the trapezium rule, z being what is left of x."""
    k = 3
    weights = torch.rand(2, k, generator=generator, dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)
    source, target = (
        wb.Mixture(w, normals(generator, k, 1), 0.2 + torch.rand(k, generator=generator).double())
        for w in weights
    )
    made, t = Interpolant(PATHS[path], source, target), uniform(generator, 0.15, 0.85)
    c = made.path(t)
    nodes = torch.linspace(-14, 14, 1201, dtype=torch.float64)
    densities = [law.log_prob(nodes[:, None]).exp() for law in (source, target)]
    x0, x1 = nodes[:, None], nodes[None]
    for x in 1.5 * normals(generator, 3):
        z = (x - c.a * x0 - c.b * x1) / c.gamma
        joint = densities[0][:, None] * densities[1] * torch.exp(-0.5 * z * z)
        total = joint.sum()
        density = total * (nodes[1] - nodes[0]) ** 2 / (c.gamma * math.sqrt(2 * math.pi))
        parts = {"source": x0, "target": x1, "noise": z, "conditional": c.d_a * x0 + c.d_b * x1}
        parts["velocity"] = parts["conditional"] + c.d_gamma * z
        parts["score"] = -z / c.gamma
        truth = {name: ((joint * part).sum() / total).item() for name, part in parts.items()}
        state = x.reshape(1)
        got = dict(zip(("source", "target"), made.endpoints(state, t), strict=True))
        got |= {name: getattr(made, name)(state, t) for name in truth if name not in got}
        for name, value in truth.items():
            assert got[name].item() == pytest.approx(value, rel=1e-8, abs=1e-8), name
        assert made.log_prob(state, t).item() == pytest.approx(density.log().item(), abs=1e-8)


@each_end
def test_one_time_per_sample_equals_the_times_one_by_one(ends, generator):
    made = Interpolant(Linear(), LAWS[ends[0]](generator, 3), LAWS[ends[1]](generator, 3))
    t = 0.05 + 0.9 * torch.rand(2, 3, generator=generator, dtype=torch.float64)
    x = normals(generator, 2, 3, 3)
    fields = [made.velocity, made.score, made.divergence, made.log_prob]
    fields.append(lambda x, t: made.drift(x, t, 0.3))
    fields.append(lambda x, t: made.endpoints(x, t)[1])
    for field in fields:
        together = field(x, t)
        for i, j in ((0, 0), (1, 2), (1, 0)):
            alone = field(x[i, j], t[i, j].item())
            assert relative(together[i, j], alone) < 1e-10
        one = torch.tensor(0.3, dtype=torch.float64)
        assert relative(field(x, one), field(x, 0.3)) < 1e-12
        assert relative(field(x, one.reshape(1)), field(x, 0.3)) < 1e-12


def test_large_batches_are_worked_through_in_pieces(monkeypatch, generator):
    """To the same values, in whatever pieces, one time per sample too; no sample at all is fine."""
    made = Interpolant(
        Linear(), *(LAWS[f"mixture-{k}"](generator, 3) for k in ("full", "diagonal"))
    )
    x, t = normals(generator, 50, 3), torch.rand(50, generator=generator, dtype=torch.float64)
    fields = (made.velocity, made.divergence, made.log_prob, lambda x, t: made.drift(x, t, t))
    whole = [field(x, t) for field in fields]
    monkeypatch.setattr("workbench.interpolant.BLOCK", 1000)
    for field, truth in zip(fields, whole, strict=True):
        assert relative(field(x, t), truth) < 1e-12
        assert field(x[:0], t[:0]).shape == truth[:0].shape
        assert field(x[:0], 0.5).shape == truth[:0].shape


def test_states_far_from_every_mode_are_safe(generator):
    """There the widest component along x speaks alone, at a hundred thousand deviations too."""
    means, covs = 2 * normals(generator, 3, 2), double([0.1, 0.5, 0.2])
    target = wb.Mixture(double([0.3, 0.3, 0.4]), means, covs)
    made = Interpolant(Linear(), standard(), target)
    widest = Interpolant(Linear(), standard(), wb.Gaussian(means[1], 0.5))
    x = 1e5 * normals(generator, 10, 2)
    t = uniform(generator, 0.2, 0.8)
    for name in ("velocity", "score", "noise", "divergence"):
        assert relative(getattr(made, name)(x, t), getattr(widest, name)(x, t)) < 1e-9, name
    off = made.log_prob(x, t) - widest.log_prob(x, t) - math.log(0.3)
    assert (off.abs() / made.log_prob(x, t).abs()).max() < 1e-12


# ---- the diffusion it contains -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian-full", "gaussian-rank-2", "mixture-full", "empirical"])
def test_a_one_sided_linear_path_is_the_rectified_flow_backwards(kind, generator):
    """b = -v at the time 1 - t, and epsilon is eta g2 / 2."""
    data = LAWS[kind](generator, 3)
    made = Interpolant(Linear("none"), standard(3), data)
    diffusion = wb.Diffusion(wb.RectifiedFlow(), data)
    t = uniform(generator, 0.02, 0.98)
    x = normals(generator, 8, 3)
    assert relative(made.velocity(x, t), -diffusion.velocity(x, 1 - t)) < 1e-10
    assert relative(made.score(x, t), diffusion.score(x, 1 - t)) < 1e-10
    assert relative(made.endpoints(x, t)[1], diffusion.denoised(x, 1 - t)) < 1e-10
    assert relative(made.endpoints(x, t)[0], diffusion.noise(x, 1 - t)) < 1e-10
    eta = uniform(generator, 0.1, 2)
    epsilon = 0.5 * eta * diffusion.process(1 - t).g2
    assert relative(made.drift(x, t, epsilon), -diffusion.drift(x, 1 - t, eta)) < 1e-10
    assert (made.log_prob(x, t) - diffusion.log_prob(x, 1 - t)).abs().max() < 1e-9
    # From pure noise on, and next to the data.
    assert relative(made.velocity(x, 0.0), -diffusion.velocity(x, 1.0)) < 1e-14
    late = 1 - 2.0**-20
    assert relative(made.velocity(x, late), -diffusion.velocity(x, 1 - late)) < 1e-6


def test_the_velocity_of_flow_matching_equals_the_reference():
    made = gaussians(Linear("none"))
    expected = double([-0.8446634740158531, 0.9396919570427528])
    assert relative(-made.velocity(double([0.2, 0.1]), 1 - 0.35), expected) < 1e-12


# ---- the ends ------------------------------------------------------------------------------------


def test_the_brownian_velocity_is_finite_at_both_ends(generator):
    """gamma's derivative is infinite there; the velocity has gamma times it, plus or minus 1/2."""
    made = Interpolant(
        Linear(),
        wb.Gaussian(normals(generator, 3), covariance(generator, 3, 0.3)),
        wb.Gaussian(normals(generator, 3), covariance(generator, 3, 0.3)),
    )
    x, eye = normals(generator, 5, 3), torch.eye(3, dtype=torch.float64)
    apart = made.target.mean - made.source.mean
    for t, law, sign in ((0.0, made.source, -1), (1.0, made.target, 1)):
        half_rate = sign * (law.cov - 0.5 * eye)
        expected = apart + (x - law.mean) @ torch.linalg.solve(law.cov, half_rate)
        assert relative(made.velocity(x, t), expected) < 1e-12
        inside = 1e-9 if t == 0 else 1 - 1e-9
        assert relative(made.velocity(x, inside), expected) < 1e-6


def test_a_trigonometric_path_between_equal_normals_stands_still(generator):
    made = Interpolant(Trigonometric(), standard(), standard())
    for t in (0.0, 1.0, uniform(generator, 0, 1)):
        assert made.velocity(normals(generator, 10, 2), t).abs().max() < 1e-14


def test_next_to_a_set_of_points_the_score_keeps_its_digits(generator):
    """A target of points: next to t = 1 the nearest point alone counts."""
    points = normals(generator, 6, 2)
    made = Interpolant(Linear("none"), standard(), wb.Empirical(points))
    for left in (2.0**-10, 2.0**-30, 2.0**-50):
        x = (1 - left) * points + left * normals(generator, 6, 2)
        z = (x - (1 - left) * points) / left
        assert relative(made.score(x, 1 - left), -z / left) < 1e-12
        assert relative(made.velocity(x, 1 - left), points - z) < 1e-12


@pytest.mark.parametrize(
    ("made", "t"),
    [
        (Interpolant(Linear(), standard(), wb.Empirical(torch.eye(2).double())), 1.0),
        (Interpolant(Linear(), wb.Gaussian(torch.zeros(2).double(), 0.0), standard()), 0.0),
        (Interpolant(Linear("none"), standard(), wb.Gaussian.fit(double([[0, 0], [1, 1]]))), 1.0),
        (
            Interpolant(
                Linear("none"),
                wb.Gaussian(torch.zeros(2).double(), double([1.0, 0.0])),
                wb.Gaussian(torch.zeros(2).double(), double([2.0, 0.0])),
            ),
            0.5,
        ),
        (
            Interpolant(
                Linear("none"),
                wb.Gaussian(torch.zeros(2).double(), double([[1.0, 1.0], [1.0, 1.0]])),
                wb.Gaussian(torch.zeros(2).double(), double([1.0, 2.0])),
            ),
            0.0,
        ),
    ],
    ids=["points", "a point", "rank 1", "rank 1 all the way", "rank 1, dense"],
)
def test_where_there_is_no_density_there_is_a_sentence(made, t):
    x = torch.zeros(3, 2).double()
    times = [t, torch.tensor([0.4, t, 0.4]).double()] if t != 0.5 else [t]
    for field in (made.velocity, made.score, made.noise, made.log_prob, made.divergence):
        for time in times:
            with pytest.raises(ValueError) as caught:
                field(x, time)
            sentence = str(caught.value)
            assert f"t was {t:g}, where x_t has no density: gamma is 0" in sentence
            assert "strictly between 0 and 1" in sentence
    if t != 0.5:
        assert made.velocity(x, abs(t - 1e-3)).isfinite().all()


# ---- the flow ------------------------------------------------------------------------------------


def integrated(made, x, t, s):
    """In two parts: at t = 1/2 the path of an encoder and decoder has no second derivative."""

    def rate(time, state):
        return made.velocity(torch.from_numpy(state).reshape(x.shape), time).flatten().numpy()

    state = x.flatten().numpy()
    for part in ((t, 0.5), (0.5, s)):
        state = solve_ivp(rate, part, state, "DOP853", rtol=1e-9, atol=1e-11).y[:, -1]
    return torch.from_numpy(state.copy()).reshape(x.shape)


@each_path
@pytest.mark.parametrize(
    "ends",
    [
        ("gaussian-scalar", "gaussian-full"),
        ("gaussian-rank-2-and-rest", "gaussian-scalar"),
        ("gaussian-diagonal", "gaussian-diagonal"),
    ],
    ids="-to-".join,
)
def test_the_flow_equals_its_integration_both_ways(ends, path, generator):
    made = Interpolant(PATHS[path], LAWS[ends[0]](generator, 3), LAWS[ends[1]](generator, 3))
    x = normals(generator, 2, 3)
    t, s = uniform(generator, 0.05, 0.4), uniform(generator, 0.6, 0.95)
    later = made.flow(x, t, s)
    assert relative(integrated(made, x, t, s), later) < 1e-7
    assert relative(made.flow(later, s, t), x) < 1e-12
    assert relative(made.flow(made.flow(x, t, 0.5), 0.5, s), later) < 1e-12


def test_the_flow_reaches_an_end_without_variance(generator):
    data = LAWS["gaussian-rank-2"](generator, 3)
    made = Interpolant(Linear("none"), standard(3), data)
    x = normals(generator, 4, 3)
    reached = made.flow(x, 0.0, 1.0) - data.mean
    assert relative(reached, x @ (data.basis * data.variances.sqrt()) @ data.basis.T) < 1e-12
    with pytest.raises(ValueError, match="t was 1, where x_t has no density"):
        made.flow(x, 1.0, 0.5)


def test_flows_without_a_closed_form_say_why(generator):
    x = torch.zeros(2, dtype=torch.float64)
    dense = Interpolant(
        Linear(), wb.Gaussian(x, double([1.0, 2.0])), wb.Gaussian(x, covariance(generator, 2))
    )
    with pytest.raises(NotImplementedError, match=r"do not commute.*Integrate"):
        dense.flow(x, 0.0, 1.0)
    with pytest.raises(NotImplementedError, match=r"mixtures has no closed-form flow.*Integrate"):
        Interpolant(Linear(), standard(), ring()).flow(x, 0.0, 1.0)


# ---- shapes, dtypes, mistakes --------------------------------------------------------------------


def test_images_and_batches_of_any_shape(generator):
    means = normals(generator, 3, 2, 2)
    target = wb.Mixture(double([0.2, 0.3, 0.5]), means, double([0.1, 0.2, 0.3]))
    made = Interpolant(Linear(), wb.Gaussian(torch.zeros(2, 2).double(), 1.0), target)
    flat = Interpolant(
        Linear(), standard(4), wb.Mixture(target.weights, means.flatten(1), target.covs)
    )
    x = normals(generator, 3, 5, 2, 2)
    t = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    for when in (0.4, t):
        for name in ("velocity", "score", "noise", "conditional"):
            got = getattr(made, name)(x, when)
            assert got.shape == x.shape
            assert relative(got.flatten(2), getattr(flat, name)(x.flatten(2), when)) < 1e-13
        for name in ("log_prob", "divergence"):
            got = getattr(made, name)(x, when)
            assert got.shape == (3, 5)
            assert relative(got, getattr(flat, name)(x.flatten(2), when)) < 1e-13
    assert made.drift(x, t, t).shape == x.shape
    assert made.marginal(0.3).event_shape == (2, 2)
    same = Interpolant(Linear(), made.source, wb.Gaussian(means[0], 0.3))
    assert same.flow(x, 0.1, 0.7).shape == x.shape


def test_single_precision_is_rounded_once(generator):
    made = Interpolant(EncoderDecoder(), LAWS["mixture-full"](generator, 3), standard(3))
    single = made.to(torch.float32)
    assert (single.dtype, single.device.type, made.dim) == (torch.float32, "cpu", 3)
    x, t = normals(generator, 20, 3).float(), uniform(generator, 0.1, 0.9)
    for name in ("velocity", "score", "divergence", "log_prob"):
        got = getattr(single, name)(x, t)
        assert got.dtype == torch.float32
        assert relative(got, getattr(made, name)(x.double(), t)) < 1e-4
    assert single.marginal(t).dtype == torch.float32
    when = torch.full((20,), t, dtype=torch.float64)
    assert single.drift(x, when, when.float()).dtype == torch.float32


def test_a_state_between_two_draws(generator):
    made = gaussians(Linear("brownian", 2.0))
    x0, x1, z = normals(generator, 3, 4, 2)
    expected = 0.75 * x0 + 0.25 * x1 + math.sqrt(2 * 0.1875) * z
    assert relative(made.interpolate(x0, x1, 0.25, z), expected) < 1e-15
    assert torch.equal(made.interpolate(x0, x1, 1.0, z), x1)


def test_what_to_know_and_what_it_is():
    made = Interpolant(Mirror(), standard(), ring())
    assert "source is not used" in made.notes[0] and gaussians(Linear()).notes == ()
    flat = wb.Gaussian.fit(double([[0, 0], [1, 1]]))
    said = Interpolant(Linear(), standard(), flat).notes
    assert flat.notes and said == tuple(f"Target: {note}" for note in flat.notes)
    assert repr(made) == f"Interpolant({Mirror()!r}, {standard()!r}, {ring()!r})"
    assert made.event_shape == (2,)


X = torch.zeros(2, 2).double()
FINE = Interpolant(Linear(), standard(), ring())


@pytest.mark.parametrize(
    ("call", "error", "pieces"),
    [
        (lambda: Interpolant(wb.VP(), standard(), ring()), TypeError, ["path was VP(", "a Path"]),
        (lambda: Interpolant(Linear, standard(), ring()), TypeError, ["call it first: Linear()"]),
        (lambda: Interpolant(Linear(), Linear(), ring()), TypeError, ["source was Linear("]),
        (lambda: Interpolant(Linear(), ring(), "data"), TypeError, ["target was 'data'"]),
        (
            lambda: Interpolant(Linear(), standard(3), ring()),
            ValueError,
            ["source has event_shape torch.Size([3]) and target torch.Size([2])"],
        ),
        (
            lambda: Interpolant(Linear(), standard().to(torch.float32), ring()),
            ValueError,
            ["source has dtype torch.float32", "must be the same"],
        ),
        (lambda: FINE.velocity(X, 1.5), ValueError, ["t was 1.5", "from 0", "to 1"]),
        (lambda: FINE.score(X, torch.tensor([0.5, -0.1])), ValueError, ["t was -0.1"]),
        (lambda: FINE.velocity(X, torch.rand(3)), ValueError, ["t has shape (3,)", "(2,)"]),
        (lambda: FINE.velocity(X[:, :1], 0.5), ValueError, ["x has shape (2, 1)", "(2,)"]),
        (lambda: FINE.score(X.float(), 0.5), TypeError, ["x is float32", "float64"]),
        (lambda: FINE.drift(X, 0.5, -1.0), ValueError, ["epsilon was -1", "at least 0"]),
        (lambda: FINE.drift(X, 0.5, lambda t: math.inf), ValueError, ["epsilon was inf"]),
        (lambda: FINE.drift(X, 0.5, torch.ones(3)), ValueError, ["epsilon has shape (3,)"]),
        (lambda: FINE.marginal(-0.5), ValueError, ["t was -0.5"]),
        (lambda: gaussians(Linear()).flow(X, 0.0, 1.2), ValueError, ["t was 1.2"]),
    ],
)
def test_mistakes_are_answered_with_sentences(call, error, pieces):
    with pytest.raises(error) as caught:
        call()
    for piece in pieces:
        assert piece in str(caught.value)
