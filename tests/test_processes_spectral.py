"""Bases against scipy and NumPy; each mode in 50 digits; what the spectral processes promise."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from helpers import covariance, log_uniform, normals, uniform
from process_truth import assert_exact, assert_inverse, levels, times

from workbench.processes import (
    DCT,
    EDM,
    OUVE,
    SPECTRAL,
    VE,
    VP,
    Basis,
    Blurring,
    Columns,
    EqualSNR,
    Hartley,
    HeatDissipation,
    Mode,
    RectifiedFlow,
    ShortestPath,
    Spectral,
    power_law,
)
from workbench.testing import ConformanceError, check_process

SHAPES = [(9,), (6, 8), (5, 5), (3, 4, 7), (1,), (2, 1, 6)]


def random_columns(generator, shape) -> Columns:
    d = math.prod(shape)
    matrix = torch.linalg.qr(normals(generator, d, d)).Q
    return Columns(matrix, shape, frequency=normals(generator, *shape).abs())


KINDS = {
    "DCT": lambda generator, shape: DCT(shape),
    "Hartley": lambda generator, shape: Hartley(shape),
    "Columns": random_columns,
}


def random_spectral(name: str, generator, shape=(4, 5)) -> Spectral:
    """A spectral process of the given kind with parameters of its own."""
    basis = DCT(shape)
    variances = (3 * normals(generator, *shape)).exp()
    if name == "ShortestPath":
        return ShortestPath(variances, basis)
    if name == "EqualSNR":
        return EqualSNR(variances, basis, VP(0.1, uniform(generator, 5, 30)))
    if name == "Blurring":
        return Blurring(basis, log_uniform(generator, 2, 30), log_uniform(generator, 1e-4, 0.1))
    return HeatDissipation(basis, 0.5, uniform(generator, 2, 7), log_uniform(generator, 1e-3, 1))


# ---- bases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bases_are_orthonormal_and_have_their_matrix(kind, shape, generator):
    basis = KINDS[kind](generator, shape)
    x = normals(generator, 2, 3, *shape)
    c = basis.forward(x)
    assert c.shape == x.shape and basis.event_shape == shape and basis.dim == math.prod(shape)
    torch.testing.assert_close(basis.inverse(c), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(basis.forward(basis.inverse(x)), x, rtol=0, atol=1e-13)
    norms = c.flatten(2).square().sum(-1)  # Parseval
    torch.testing.assert_close(norms, x.flatten(2).square().sum(-1), rtol=1e-13, atol=0)
    matrix = basis.matrix
    assert matrix.dtype == torch.float64 and basis.frequency.shape == shape
    unit = torch.eye(basis.dim, dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix, unit, rtol=0, atol=1e-13)
    torch.testing.assert_close((x.flatten(2) @ matrix).reshape(x.shape), c, rtol=0, atol=1e-13)
    single = basis.forward(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), c, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_dct_is_that_of_scipy(shape, generator):
    x = normals(generator, 2, *shape)
    axes = (-1,) if len(shape) == 1 else (-2, -1)
    wanted = scipy.fft.dctn(x.numpy(), norm="ortho", axes=axes)
    torch.testing.assert_close(DCT(shape).forward(x), torch.from_numpy(wanted), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_hartley_is_the_real_part_of_numpys_fft_less_the_imaginary(shape, generator):
    x = normals(generator, 2, *shape)
    axes = (-1,) if len(shape) == 1 else (-2, -1)
    fourier = np.fft.fftn(x.numpy(), axes=axes, norm="ortho")
    basis = Hartley(shape)
    wanted = torch.from_numpy(fourier.real - fourier.imag)
    torch.testing.assert_close(basis.forward(x), wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(basis.forward(basis.forward(x)), x, rtol=0, atol=1e-13)


def test_a_long_dct_keeps_its_accuracy(generator):
    x = normals(generator, 1000)
    wanted = torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho"))
    torch.testing.assert_close(DCT(1000).forward(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "mode"), [(DCT, "reflect"), (Hartley, "wrap")])
@pytest.mark.parametrize("shape", [(24,), (18, 23)])
def test_gaussian_blur_is_diagonal_with_the_public_frequencies(kind, mode, shape, generator):
    """exp(-omega^2 s^2 / 2) per mode is a blur of s pixels, with mirrored or periodic edges."""
    x, s = normals(generator, *shape), uniform(generator, 1.9, 2.5)
    basis = kind(shape)
    blurred = basis.inverse(torch.exp(-0.5 * (basis.frequency * s) ** 2) * basis.forward(x))
    wanted = scipy.ndimage.gaussian_filter(x.numpy(), s, mode=mode, truncate=9)
    torch.testing.assert_close(blurred, torch.from_numpy(wanted), rtol=0, atol=1e-6)


def test_hartley_diagonalises_a_stationary_covariance(generator):
    n = 12
    half = normals(generator, n // 2 + 1).abs()
    first = torch.cat([half, half[1 : n // 2].flip(0)])  # even, as covariances are
    circulant = torch.stack([first.roll(i) for i in range(n)])
    matrix = Hartley(n).matrix
    wanted = torch.diag(torch.fft.fft(first).real)
    torch.testing.assert_close(matrix.T @ circulant @ matrix, wanted, rtol=0, atol=1e-12)


def test_frequencies_are_radians_per_pixel():
    assert DCT(4).frequency.tolist() == pytest.approx(
        [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
    )
    quarter = math.pi / 2
    assert Hartley(4).frequency.tolist() == pytest.approx([0, quarter, 2 * quarter, quarter])
    grid = DCT((2, 3, 4)).frequency
    assert grid[1, 2, 3].item() == pytest.approx(math.pi * math.hypot(2 / 3, 3 / 4))
    torch.testing.assert_close(grid[0], grid[1], rtol=1e-15, atol=0)


def test_columns_of_ones_own(generator):
    cov = covariance(generator, 12)
    variances, vectors = torch.linalg.eigh(cov)
    basis = Columns(vectors, (3, 4))
    torch.testing.assert_close(basis.matrix.T @ cov @ basis.matrix, torch.diag(variances))
    with pytest.raises(ValueError, match=r"Columns\(\(3, 4\)\) has no frequencies; give one per"):
        _ = basis.frequency
    with pytest.raises(ValueError, match="has no frequencies"):
        HeatDissipation(basis)
    rounded = Columns(vectors.float(), 12)  # orthonormal to float32
    assert rounded.matrix.dtype == torch.float64


@pytest.mark.parametrize("slope", [0.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("kind", [DCT, Hartley])
def test_power_law(kind, slope, generator):
    basis, variance = kind((8, 12)), uniform(generator, 0.1, 3)
    spectrum = power_law(basis, slope, variance)
    assert spectrum.mean().item() == pytest.approx(variance, rel=1e-14)
    frequency = basis.frequency
    logs = torch.stack([frequency.log(), spectrum.log()]).flatten(1)[:, 1:]
    fitted = np.polyfit(logs[0].numpy(), logs[1].numpy(), 1)
    assert fitted[0] == pytest.approx(-slope, abs=1e-12)
    assert spectrum[0, 0] == spectrum.max()


def test_power_laws_of_one_mode_or_without_sense():
    assert power_law(DCT(1), 2.0, 0.7).tolist() == [0.7]
    for slope, variance in ((math.nan, 1.0), (2.0, 0.0), (2.0, math.inf)):
        with pytest.raises(ValueError, match=r"slope was .* and variance"):
            power_law(DCT(4), slope, variance)


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: DCT((1, 2, 3, 4)), ["event_shape was (1, 2, 3, 4)", "(channels, height, width)"]),
        (lambda: Hartley(()), ["event_shape was ()", "at least 1"]),
        (lambda: DCT((3, 0)), ["event_shape was (3, 0)", "at least 1"]),
        (lambda: DCT((3, 4)).forward(torch.zeros(4, 3)), ["x has shape (4, 3)", "end in (3, 4)"]),
        (lambda: DCT(4).inverse(torch.zeros(())), ["c has shape ()", "end in (4,)"]),
        (lambda: Columns(torch.eye(3), 4), ["matrix has shape (3, 3)", "need (4, 4)"]),
        (lambda: Columns(2 * torch.eye(3), 3), ["not orthonormal", "off by 3", "torch.linalg.qr"]),
        (lambda: Columns(torch.full((2, 2), math.nan), 2), ["not orthonormal"]),
        (lambda: Columns(torch.eye(3), 3, torch.ones(2)), ["frequency has shape (2,)"]),
    ],
)
def test_what_bases_refuse(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


# ---- each mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRAL)
def test_modes_equal_those_of_50_digits(name, generator):
    process = random_spectral(name, generator)
    for place in ((0, 0), (1, 2), (3, 4)):
        mode = process.mode(place)
        for t in times(mode, generator):
            # The exponent of a blurred mode, up to hundreds, carries its rounding along.
            assert_exact(mode, t, rel=2e-12 if "B" in name or "H" in name else 2e-13)


@pytest.mark.parametrize("name", SPECTRAL)
def test_inverses_of_modes_in_50_digits(name, generator):
    process = random_spectral(name, generator)
    for place in ((0, 1), (1, 2), (3, 4)):
        mode = process.mode(place)
        for rho in levels(mode, generator):
            assert_inverse(mode, rho)


@pytest.mark.parametrize("variance", [1e-12, 1e-3, 1 - 1e-14, 1.0, 1 + 1e-9, 7.0, 1e12])
def test_shortest_path_of_extreme_variances(variance, generator):
    mode = ShortestPath(torch.tensor([variance], dtype=torch.float64), DCT(1)).mode(0)
    assert mode.own == variance
    for t in times(mode, generator):
        assert_exact(mode, t, rel=1e-12)
    for rho in levels(mode, generator):
        assert_inverse(mode, rho)
    c = mode(1.0)
    assert (c.alpha, c.sigma, c.f, c.g2) == (0.0, 1.0, -math.inf, math.inf)
    assert (c.d_alpha, c.rho, mode.time_of(math.inf)) == (-math.inf, math.inf, 1.0)
    c = mode(0.0)
    assert (c.alpha, c.sigma, c.d_sigma, mode.time_of(0.0)) == (1.0, 0.0, math.inf, 0.0)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)])
@pytest.mark.parametrize("name", SPECTRAL)
def test_the_kit(name, shape, generator):
    check_process(random_spectral(name, generator, shape))


def test_the_kit_with_defaults_and_other_bases():
    hartley = Hartley((6, 7))
    spectrum = power_law(hartley)
    for process in (
        ShortestPath(spectrum, hartley),
        HeatDissipation(hartley),
        Blurring(hartley),
        EqualSNR(spectrum, hartley),
        EqualSNR(spectrum, hartley, VE()),
        EqualSNR(spectrum, hartley, EDM()),
        EqualSNR(spectrum, hartley, RectifiedFlow()),
    ):
        check_process(process)


def test_the_kit_names_the_mode_that_is_wrong():
    class Wrong(EqualSNR):
        def mode_at(self, t, own):
            c = super().mode_at(t, own)
            return type(c)(**{**vars(c), "g2": c.g2 / own})

    spectrum = torch.tensor([4.0, 1.0, 0.25])
    with pytest.raises(ConformanceError, match=r"BROKEN g2 = d.* at mode \(\d,\), t = "):
        check_process(Wrong(spectrum, DCT(3)))


def test_the_kit_finds_a_basis_that_is_not_orthonormal():
    class Wrong(DCT):
        def _forward(self, x):
            return 1.001 * super()._forward(x)

    with pytest.raises(ConformanceError, match="BROKEN the basis is orthonormal"):
        check_process(EqualSNR(torch.ones(3), Wrong(3)))


# ---- all modes together --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", SPECTRAL)
def test_one_value_per_mode(name, shape, generator):
    process = random_spectral(name, generator, shape)
    assert process.event_shape == shape
    single, zero = process(0.3), process(torch.tensor(0.3, dtype=torch.float64))
    many = process(torch.tensor([[0.3, 0.9]]))
    for key in vars(single):
        value = getattr(single, key)
        assert value.shape == shape and value.dtype == torch.float64
        assert torch.equal(getattr(zero, key), value)
        got = getattr(many, key)
        assert got.shape == (1, 2, *shape) and got.dtype == torch.float32
        torch.testing.assert_close(got[0, 0].double(), value, rtol=1e-5, atol=1e-30)
    place = tuple(n // 2 for n in shape)
    one = process.mode(place)(0.3)
    assert one.sigma == pytest.approx(single.sigma[place].item(), rel=1e-12, abs=0)
    assert one.g2 == pytest.approx(single.g2[place].item(), rel=1e-12, abs=0)
    assert process.mode(0) == process.mode((0,) * len(shape))
    assert process.mode(-1) == process.mode(tuple(n - 1 for n in shape))


@pytest.mark.parametrize("name", SPECTRAL)
def test_distinct_modes(name, generator):
    process = random_spectral(name, generator, (5, 5))
    modes, index = process.distinct()
    assert index.dtype == torch.int64 and index.shape == (5, 5)
    blurs = isinstance(process, Blurring | HeatDissipation)
    assert len(modes) == (15 if blurs else 25)  # the two axes are alike
    rebuilt = torch.tensor([mode(0.4).g2 for mode in modes])[index]
    torch.testing.assert_close(rebuilt.double(), process(0.4).g2, rtol=1e-6, atol=1e-30)
    assert modes[index[2, 3]] == process.mode((2, 3))
    assert len({process.mode((2, 3)), modes[index[2, 3]]}) == 1


def test_times_of_spectral_processes():
    basis = DCT((2, 2))
    process = EqualSNR(power_law(basis), basis)
    for call in (process.time_of, process.inverse):
        with pytest.raises(NotImplementedError, match=r"one rho per mode.*Grid\.uniform"):
            call(1.0)
    for call in (process, process.prior_std):
        with pytest.raises(ValueError, match=r"t was 1.1; EqualSNR.* for t from 0 to 1"):
            call(1.1)
    for index in (4, (2, 0), (0,), (0, 0, 0), -5):
        with pytest.raises(IndexError, match=r"the place of one mode in \(2, 2\)"):
            process.mode(index)


# ---- what each promises --------------------------------------------------------------------------


def test_shortest_path_is_log_linear_in_the_variance(generator):
    """Data of the spectrum have variance lambda^(1-t), so each mode moves at a constant speed."""
    basis = DCT((4, 5))
    spectrum = (4 * normals(generator, 4, 5)).exp()
    process = ShortestPath(spectrum, basis)
    for t in (1e-9, 0.1, uniform(generator, 0.2, 0.9), 1 - 1e-9):
        c = process(t)
        variance = c.alpha**2 * spectrum + c.sigma**2
        torch.testing.assert_close(variance, spectrum ** (1 - t), rtol=1e-13, atol=0)
        torch.testing.assert_close(process.prior_std(t) ** 2, variance, rtol=1e-13, atol=0)
        speed = 2 * (c.alpha * c.d_alpha * spectrum + c.sigma * c.d_sigma) / variance
        torch.testing.assert_close(speed, -spectrum.log(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(4, 5).double())
    assert torch.equal(process.prior_std(1.0), torch.ones(4, 5).double())


def test_shortest_path_of_rational_powers_exactly():
    """lambda = 16, t = 1/2: alpha^2 = (4 - 1)/(16 - 1)."""
    c = ShortestPath(torch.tensor([16.0, 1 / 16]), DCT(2))(0.5)
    wanted = [Fraction(3, 15), Fraction(4 - 1, 4) / Fraction(16 - 1, 16)]
    assert c.alpha.square().tolist() == pytest.approx([float(w) for w in wanted], rel=1e-15)


def test_shortest_path_changes_strong_modes_first():
    basis = Hartley((8, 8))
    process = ShortestPath(power_law(basis, 2.0, 1.0), basis)
    order = process.spectrum.flatten().argsort(descending=True)
    alpha = process(0.5).alpha.flatten()[order]
    assert bool((alpha.diff() >= 0).all()) and alpha[0] < 0.7 * alpha[-1]


def test_heat_dissipation_blurs_and_keeps_the_mean(generator):
    basis = DCT((16, 16))
    process = HeatDissipation(basis, blur_min=0.5, blur_max=8.0, noise=0.02)
    x = normals(generator, 16, 16)
    c = process(0.5)  # sqrt(0.5 * 8) = 2 pixels
    wanted = scipy.ndimage.gaussian_filter(x.numpy(), 2.0, mode="reflect", truncate=9)
    blurred = basis.inverse(c.alpha * basis.forward(x))
    torch.testing.assert_close(blurred, torch.from_numpy(wanted), rtol=0, atol=1e-7)
    assert torch.equal(c.sigma, torch.full((16, 16), 0.02, dtype=torch.float64))
    assert process(1.0).alpha[0, 0] == 1.0
    assert (process.blur_min, HeatDissipation(basis).noise) == (0.5, 0.01)


def test_heat_dissipation_has_no_prior_and_says_so():
    process = HeatDissipation(DCT((4, 4)))
    assert not process.has_prior and not process.mode((1, 1)).has_prior
    assert "has_prior" in type(process).__doc__
    for call in (process.prior_std, process.mode((1, 1)).prior_std):
        with pytest.raises(NotImplementedError, match=r"no Gaussian prior.*diffusion\.diffuse"):
            call(1.0)
    with pytest.raises(ValueError, match=r"leaves the mode of frequency 0 alone: .*0\.01"):
        process.mode((0, 0)).time_of(0.01)
    others = [
        ShortestPath(torch.ones(4), DCT(4)),
        Blurring(DCT(4)),
        EqualSNR(torch.ones(4), DCT(4)),
    ]
    assert all(other.has_prior for other in others)


def test_heat_dissipation_of_vanished_modes_is_not_nan():
    """alpha underflows in fine modes; nothing else breaks."""
    process = HeatDissipation(DCT((64, 64)), blur_max=32.0)
    c = process(1.0)
    assert c.alpha[-1, -1] == 0.0 and c.rho[-1, -1] == math.inf
    assert not any(bool(value.isnan().any()) for value in vars(c).values())
    assert bool(c.g2.isfinite().all()) and bool(c.f.isfinite().all())


def test_blurring_is_the_published_schedule(generator):
    basis = DCT((6, 6))
    process = Blurring(basis)
    t = uniform(generator, 0.05, 0.95)
    frequency = np.pi * np.arange(6) / 6
    dissipation = (20 * np.sin(t * np.pi / 2) ** 2) ** 2 / 2
    scaling = np.exp(-np.add.outer(frequency**2, frequency**2) * dissipation) * (1 - 0.001) + 0.001
    c = process(t)
    wanted = torch.from_numpy(np.cos(np.pi * t / 2) * scaling)
    torch.testing.assert_close(c.alpha, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(c.sigma, torch.full((6, 6), math.sin(math.pi * t / 2)).double())
    end = process(1.0)
    assert torch.equal(end.alpha, torch.zeros(6, 6).double())
    assert torch.equal(end.sigma, torch.ones(6, 6).double())
    assert torch.equal(process.prior_std(1.0), torch.ones(6, 6).double())


def test_equal_snr_is_equal(generator):
    basis = Hartley((5, 6))
    spectrum = (2 * normals(generator, 5, 6)).exp()
    base = VP()
    process = EqualSNR(spectrum, basis, base)
    assert (process.t_min, process.t_max) == (base.t_min, base.t_max)
    for t in (0.01, 0.5, 1.0):
        c, one = process(t), base(t)
        snr = c.alpha**2 * spectrum / c.sigma**2
        wanted = torch.full_like(snr, one.alpha**2 / one.sigma**2) * spectrum.mean()
        torch.testing.assert_close(snr, wanted, rtol=1e-13, atol=0)
    assert process.prior_std(1.0).square().mean().item() == pytest.approx(1.0, rel=1e-13)


def test_a_spectrum_is_shared_by_channels():
    process = EqualSNR(torch.tensor([4.0, 1.0]), DCT((3, 2, 2)))
    assert process.spectrum.shape == (3, 2, 2) and process.spectrum.dtype == torch.float64
    assert len(process.distinct()[0]) == 2


def test_what_spectral_processes_refuse():
    basis = DCT((2, 2))
    good = torch.ones(2, 2)
    for bad in (0.0, -1.0, math.nan, math.inf):
        spectrum = torch.tensor([[1.0, 1.0], [bad, 1.0]])
        for kind in (ShortestPath, EqualSNR):
            with pytest.raises(ValueError) as caught:
                kind(spectrum, basis)
            assert f"{kind.__name__}: spectrum had a value of {bad:g}" in str(caught.value)
            assert "greater than 0" in str(caught.value)
    with pytest.raises(ValueError, match=r"spectrum was \(3, 2\); it must hold one variance per"):
        ShortestPath(torch.ones(3, 2), basis)
    with pytest.raises(ValueError, match="spectrum was 'flat'"):
        ShortestPath("flat", basis)
    with pytest.raises(TypeError, match=r"basis was \(2, 2\); it must be a Basis, such as DCT"):
        ShortestPath(good, (2, 2))
    for base in (OUVE(), Blurring(basis), VP, None):
        with pytest.raises(TypeError, match=r"base was .* such as VP\(\)"):
            EqualSNR(good, basis, base)
    with pytest.raises(ValueError, match=r"blur_max was 0.5; it must be greater than blur_min"):
        HeatDissipation(basis, blur_max=0.5)
    with pytest.raises(ValueError, match="floor was 0; it must be a finite number, at least 1e-06"):
        Blurring(basis, floor=0)
    with pytest.raises(ValueError, match="noise was 0"):
        HeatDissipation(basis, noise=0)


def test_they_read_well():
    basis = DCT((2, 2))
    process = ShortestPath(torch.tensor([[4.0, 1.0], [1.0, 0.5]]), basis)
    assert repr(process) == "ShortestPath(spectrum=4 values from 0.5 to 4, basis=DCT((2, 2)))"
    assert repr(process.mode(0)) == f"mode 4 of {process!r}"
    assert repr(Blurring(basis, 9.0)) == "Blurring(basis=DCT((2, 2)), blur_max=9.0)"
    assert isinstance(process.mode(0), Mode) and isinstance(basis, Basis)
