"""The lens of dimensions: each estimator against its authors' steps, its exact value, its null."""

import math

import numpy as np
import pytest
import torch
from helpers import LAWS, normals
from scipy import integrate

import workbench as wb
from workbench.exact.dimension import flipd, flipd_mean, lidl_mean, sphere_flipd, sphere_trace
from workbench.lenses.base import Subject, complete
from workbench.lenses.dimension import CURVES, Dimension, levina_bickel, neighbours, two_nn
from workbench.studies import Study
from workbench.studies.run import build

#: Known values of the digits, by the name of the estimator.
OF_DIGITS = {"mle_10": 7.419509910922281, "mle_20": 6.844815332043865}
OF_DIGITS |= {"twonn": 9.044249492474107, "twonn_fit": 8.908172764810415}


def looked(law, data=None, **parameters) -> tuple:
    """The lens, and all that it says of a law."""
    lens = Dimension(**parameters)
    return lens, complete(lens, Subject(wb.Diffusion(wb.VP(), law), data=data))


def flat(rank: int, d: int) -> wb.Gaussian:
    """A Gaussian of so many modes of variance 1."""
    return wb.Gaussian(torch.zeros(d).double(), (torch.arange(d) < rank).double())


@pytest.mark.parametrize(("rank", "d", "levels"), [(2, 5, 13), (20, 64, 7)])
def test_gaussians_of_known_rank(rank, d, levels):
    """Level at the rank, exact within the errors; the null band is at the space's dimension."""
    lens, found = looked(flat(rank, d), levels=levels, samples=16, points=300)
    quiet = found["rho"].values < 0.1 * math.sqrt(rank / d)
    for name in ("flipd", "trace", "lidl", "flow", "flow_values", "normal_bundle"):
        value, exact = found[name].values, found[f"{name}_exact"].values
        room = 5 * found[f"{name}_se"].values + 1e-3 * (name == "flow_values") + 1e-9
        there = np.isfinite(exact)
        if name == "normal_bundle":
            there &= quiet
        assert (np.abs(value - exact)[there] <= room[there]).all(), name
    for name in ("flipd", "lidl", "flow", "normal_bundle"):
        low, high = found[name].attrs["holds"]
        assert low < 0.02 * math.sqrt(rank / d) < 0.05 < high
        assert found[name].attrs["holds_at"] == pytest.approx(rank, rel=0.03)
    assert (found["flipd_null"].sel(bound="low").values[quiet] > 0.9 * d).all()
    assert f"level, FLIPD at {rank}" in lens.findings(found)[0].replace("1.99", "2")
    # As a curve, MLE goes from the dimension of the noise to that of the data.
    mle = found["mle"].values
    assert mle[0] > 1.4 * mle[-1] and found["mle_null"].values[0, 0] < mle[0]


def test_a_sphere_by_the_exact_field_and_by_networks():
    """4 dimensions of R^5 below a quarter of the radius; of the 2-sphere two networks agree."""
    data = wb.datasets.sphere(dimension=4)
    _, found = looked(data.law, data, levels=13, samples=8, points=300)
    for name in ("flipd", "trace"):
        np.testing.assert_allclose(found[name], found[f"{name}_exact"], rtol=1e-8)
    low, high = found["flipd"].attrs["holds"]
    assert (
        low < 0.01
        and 0.2 < high < 0.5
        and found["flipd"].attrs["holds_at"] == pytest.approx(4, abs=0.03)
    )
    for name, off in (("sphere", 0.12), ("sphere_conservative", 0.08)):
        asked = {"data": "sphere", "denoiser": "Neural", "denoiser.checkpoint": name}
        setup = build(Study().changed(asked))
        law, rho = setup.truth.denoiser.to(torch.float64), torch.tensor([0.3, 0.1, 0.03]).double()
        points = setup.data.points[:32]
        values = [flipd(law, points, r).mean().item() for r in rho.tolist()]
        exact = sphere_flipd(setup.data.law, rho)
        assert exact.tolist() == pytest.approx([2, 2, 2], abs=1e-9)
        assert values == pytest.approx([2, 2, 2], abs=off)


def test_of_a_sphere_everything_is_an_integral():
    """FLIPD and trace of a circle, by the posterior over its angle."""
    law = wb.datasets.sphere(dimension=1, ambient=2, radius=1.5).law
    for rho in (0.4, 1.0):
        k = (1.5 / rho) ** 2
        weight = [
            integrate.quad(lambda a: f(a) * math.exp(k * (math.cos(a) - 1)), 0, math.pi)[0]  # noqa: B023
            for f in (math.cos, lambda a: 1.0)
        ]
        mean = weight[0] / weight[1]
        spread = 1.5**2 / rho**2 * (1 - mean**2)  # trace of the posterior covariance over rho^2
        lag = 1.5**2 / rho**2 * (1 - mean) ** 2
        assert sphere_trace(law, rho).item() == pytest.approx(spread)
        assert sphere_flipd(law, rho).item() == pytest.approx(spread + lag)


def test_normal_bundle_is_the_authors_iteration():
    """Stanczuk et al., algorithm 1: K = 4 d scores at x_eps ~ N(x0, sigma^2), their SVD, and d less
    the place of the largest difference of its singular values."""
    law = flat(2, 4)
    lens = Dimension(levels=2, samples=3, points=20, neighbours=3)
    subject = Subject(wb.Diffusion(wb.VP(), law))
    found = lens.measure(subject)
    points, rho = lens._points(subject), found["rho"].values
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    draw(20, 4)
    eps = draw(3, 16, 4)
    for i, sigma in enumerate(rho):
        dims = []
        for x0, noise in zip(points, eps, strict=True):
            x_eps = x0 + sigma * noise
            score_matrix = law.score(x_eps, 1.0, float(sigma))
            s = torch.linalg.svdvals(score_matrix)
            dims.append(4 - ((s[:-1] - s[1:]).argmax().item() + 1))
        assert found["normal_bundle"].values[i] == pytest.approx(np.mean(dims))


def test_flipd_and_lidl_are_the_authors_estimators(generator):
    """Kamkari et al.: d + sigma tr(grad eps_hat) + |eps_hat|^2 with score = eps_hat / sigma; and
    Tempczyk et al.: d plus the slope of a linear regression of log-likelihoods over log delta."""
    law = LAWS["mixture-full"](generator, 3)
    points = law.mean + normals(generator, 8, 3)
    data = wb.Data("eight", points, law=law)
    found = Dimension(levels=3, samples=8, points=8, neighbours=3).measure(
        Subject(wb.Diffusion(wb.VP(), law), data=data)
    )
    for i, delta in enumerate(found["rho"].values.tolist()):
        deltas = np.array([delta / 2, delta / 2**0.5, delta, delta * 2**0.5, delta * 2])
        ll = np.stack([law.log_prob(points, 1.0, float(r)).numpy() for r in deltas])
        slope = np.polyfit(np.log(deltas), ll, 1)[0]
        assert found["lidl"].values[i] == pytest.approx((3 + slope).mean())
        score_net = delta * law.score(points, 1.0, delta)
        trace = law.hessian(points, 1.0, delta).diagonal(dim1=1, dim2=2).sum(1) * delta
        value = 3 + delta * trace + score_net.square().sum(1)
        assert found["flipd"].values[i] == pytest.approx(value.mean().item())


def test_lidl_of_what_has_no_density_is_the_integral_of_flipd():
    """The heat equation: on a fine grid the same as by the density."""
    law = flat(2, 4)
    subject = Subject(wb.Diffusion(wb.VP(), law))
    known = Dimension(levels=60, samples=4, points=20, neighbours=3).measure(subject)["lidl"]
    from workbench.lenses.dimension import _lidl

    class Unknown(wb.Denoiser):
        event_shape, std = torch.Size([4]), law.std

        def posterior_mean(self, x, alpha, sigma):
            return law.denoise(x, alpha, sigma)

    lens = Dimension(levels=60, samples=4)
    rho, points = lens._rho(subject), lens._points(subject)
    each = torch.stack([flipd(law, points, r) for r in rho.tolist()])
    got = _lidl(Unknown(), points, rho, each).mean(1).numpy()
    there = np.isfinite(got)
    assert 45 < there.sum() < 60  # NaN only where a line would end beyond the levels
    np.testing.assert_allclose(got[there], known.values[there], rtol=4e-3)


def test_lidl_of_one_delta_is_flipd(generator):
    spectrum = torch.tensor([1.3, 0.2, 0.0]).double()
    near = torch.tensor([0.3 * (1 - 1e-4), 0.3 * (1 + 1e-4)]).double()
    assert lidl_mean(spectrum, near).item() == pytest.approx(flipd_mean(spectrum, 0.3).item())


def test_known_values_of_points():
    apart = neighbours(wb.datasets.digits().points.flatten(1), 20)
    got = {"mle_10": levina_bickel(apart[:, :10])[0], "mle_20": levina_bickel(apart)[0]}
    got |= {"twonn": two_nn(apart)[0], "twonn_fit": two_nn(apart, fit=True)[0]}
    assert got == pytest.approx(OF_DIGITS, rel=1e-9)


def test_errors_of_points_are_their_spread():
    """Over 40 sets of an even Gaussian."""
    generator = torch.Generator().manual_seed(5)
    values, errors = [], []
    for _ in range(40):
        apart = neighbours(normals(generator, 300, 4), 10)
        each = [levina_bickel(apart), two_nn(apart), two_nn(apart, fit=True)]
        values.append([v for v, _ in each])
        errors.append([e for _, e in each])
    values, errors = np.array(values), np.array(errors)
    ratio = values.std(0, ddof=1) / errors.mean(0)
    assert ((ratio > 0.7) & (ratio < 1.4)).all(), ratio


def test_null_bands_hold_where_there_is_nothing_to_see():
    """16 sets of an even Gaussian: every estimator is mostly within its band of 95 %."""
    law, lens = flat(3, 3), Dimension(levels=2, samples=16, points=40, neighbours=4)
    band, outside = None, {}
    for seed in range(16):
        points = normals(torch.Generator().manual_seed(seed + 11), 40, 3)
        data = wb.Data("even", points, law=law)
        subject = Subject(wb.Diffusion(wb.VP(), law), data=data)
        band = lens.null(subject) if band is None else band
        found = lens.measure(subject)
        for name in band:
            low, high = band[name].values.T
            value = found[name].values
            outside.setdefault(name, []).append(np.mean((value < low) | (value > high)))
    missed = {name: np.mean(each) for name, each in outside.items()}
    assert len(missed) == len(CURVES) and np.mean(list(missed.values())) < 0.1
    assert max(missed.values()) < 0.25, missed


def test_a_finite_set_has_no_dimension_and_noise_no_normals():
    """Below the collapse FLIPD is 0; scores about a point then show no gap, and say so."""
    points = normals(torch.Generator().manual_seed(2), 40, 3)
    data = wb.Data("few", points)
    lens, found = looked(wb.Empirical(points), data, levels=9, samples=8, points=40)
    assert found["flipd"].attrs["holds_at"] == pytest.approx(0, abs=0.01)
    assert found["normal_bundle"].attrs["holds"] == []
    assert "FLIPD at 0.00" in lens.findings(found)[0]
    assert "Nowhere level: the normal bundle." in lens.findings(found)


def test_power_law_data_have_a_curve_and_no_number():
    data = wb.datasets.field(exponent=4.0)
    lens, found = looked(data.law, data, levels=9, samples=8, points=60)
    assert found["flipd"].attrs["holds"] == found["flow"].attrs["holds"] == []
    assert any("a curve and no number (FLIPD" in one for one in lens.findings(found))


def test_bad_input_is_a_sentence():
    law = flat(2, 4)
    few = wb.Data("few", torch.zeros(5, 4).double())
    with pytest.raises(NotImplementedError, match="5 data points were given; 10 neighbours"):
        looked(law, few)

    class Wide(wb.Denoiser):
        event_shape, std = torch.Size([2000]), 1.0

        def posterior_mean(self, x, alpha, sigma):
            return 0.5 * x

    many = wb.Data("wide", torch.zeros(20, 2000).double())
    with pytest.raises(NotImplementedError, match="2000 products of this Wide at each point"):
        looked(Wide(), many)
    # Points that coincide have no ratio; where all do, no dimension.
    apart = neighbours(torch.zeros(30, 4).double(), 10)
    assert math.isnan(levina_bickel(apart)[0]) and math.isnan(two_nn(apart)[0])
