"""The closed forms against 50-digit arithmetic, and the ends where formulas break."""

import math

import pytest
import torch
from helpers import PROCESSES, random_process, uniform
from process_truth import assert_exact, assert_inverse, levels, times

import workbench as wb
from workbench.processes import OU, VE, Cosine, SubVP


@pytest.mark.parametrize("name", PROCESSES)
def test_coefficients_and_derivatives_equal_those_of_50_digits(name, generator):
    process = random_process(name, generator)
    for t in times(process, generator):
        assert_exact(process, t)


EXTREMES = {
    "VP, all the signal lost": wb.VP(1000.0, 1000.0),
    "VP without an initial rate": wb.VP(0.0, 20.0),
    "SubVP, all the signal lost": SubVP(1000.0, 1000.0),
    "SubVP without an initial rate": SubVP(0.0, 20.0),
    "Cosine without an offset": Cosine(0.0),
    "Cosine with the largest": Cosine(1.0),
    "OU for a long time": OU(theta=30.0, noise=0.01, t_max=20.0),
    "OU that hardly decays": OU(theta=1e-6, noise=3.0),
    "VE over twelve decades": VE(1e-6, 1e6),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_parameters(name, generator):
    process = EXTREMES[name]
    for t in times(process, generator):
        # An exponent of several hundred carries its rounding into what it is the exponent of, and
        # next to 1 what is lost of the signal is found in the 500th digit only.
        assert_exact(process, t, rel=1e-12, digits=700)
    for rho in levels(process, generator):
        assert_inverse(process, rho)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_inverse_of_extreme_levels_in_50_digits(name, generator):
    process = random_process(name, generator)
    for rho in levels(process, generator):
        assert_inverse(process, rho)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_of_inverts_rho_and_rho_grows(name, generator):
    process = random_process(name, generator)
    t = torch.tensor(sorted(times(process, generator)), dtype=torch.float64)
    rho = process(t).rho
    assert bool((rho.diff() > 0).all())
    # Next to a smallest level, what float64 keeps of t is absolute.
    least = 1e-15 if process(0.0).rho > 0 else 0.0
    torch.testing.assert_close(process.time_of(rho), t, rtol=1e-10, atol=least)
    back = process.time_of(rho[8].item())
    assert isinstance(back, float) and back == pytest.approx(t[8].item(), rel=1e-10)
    # Close to the noisy end it is the distance from the end that counts, as far as t can hold it.
    end = process.t_max
    torch.testing.assert_close(end - process.time_of(rho), end - t, rtol=1e-10, atol=4e-15 * end)


#: Values from the reference table (VP, EDM, rectified flow) and, of the others, from the published
#: formulas (VE, sub-VP: Song et al. 2021; cosine: Nichol & Dhariwal 2021; OU: Deveney et al. 2023).
TABLE = {
    "VP": {
        "t": [0.25, 0.5, 0.75],
        "alpha": [0.7236571850830864, 0.2811828807967524, 0.05866350301188082],
        "sigma": [0.6901596036263088, 0.9596542020680363, 0.9982778137444381],
        "f": [-2.5374999999999996, -5.0249999999999995, -7.512499999999999],
        "g2": [5.074999999999999, 10.049999999999999, 15.024999999999999],
    },
    "EDM": {
        "t": [0.1, 1.0, 20.0],
        "alpha": [1.0, 1.0, 1.0],
        "sigma": [0.1, 1.0, 20.0],
        "f": [0.0, 0.0, 0.0],
        "g2": [0.2, 2.0, 40.0],
    },
    "RectifiedFlow": {
        "t": [0.24975, 0.4995, 0.74925],
        "alpha": [0.75025, 0.5005, 0.25075000000000003],
        "sigma": [0.24975, 0.4995, 0.74925],
        "f": [-1.332889036987671, -1.9980019980019983, -3.9880358923230306],
        "g2": [0.6657780739753416, 1.9960039960039961, 5.976071784646061],
    },
}


def _published(name: str, t: float) -> dict[str, float]:
    integral, rate = 0.1 * t + 9.95 * t * t, 0.1 + 19.9 * t
    k, s = math.pi / (2 * 1.008), 0.008
    sigma = 0.01 * 5000**t
    cosine = math.cos(k * (t + s)) / math.cos(k * s)
    return {
        "SubVP": {
            "alpha": math.exp(-integral / 2),
            "sigma": 1 - math.exp(-integral),
            "f": -rate / 2,
            "g2": rate * (1 - math.exp(-2 * integral)),
        },
        "VE": {"alpha": 1.0, "sigma": sigma, "f": 0.0, "g2": 2 * math.log(5000) * sigma**2},
        "Cosine": {
            "alpha": cosine,
            "sigma": math.sqrt(1 - cosine**2),
            "f": -k * math.tan(k * (t + s)),
            "g2": 2 * k * math.tan(k * (t + s)),
        },
        "OU": {
            "alpha": math.exp(-t),
            "sigma": math.sqrt((1 - math.exp(-2 * t)) / 2),
            "f": -1.0,
            "g2": 1.0,
        },
    }[name]


@pytest.mark.parametrize("name", TABLE)
def test_the_reference_table(name):
    table = TABLE[name]
    c = PROCESSES[name](torch.tensor(table["t"], dtype=torch.float64))
    for key in ("alpha", "sigma", "f", "g2"):
        wanted = torch.tensor(table[key], dtype=torch.float64)
        torch.testing.assert_close(getattr(c, key), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["SubVP", "VE", "Cosine", "OU"])
def test_the_published_formulas(name):
    for t in (0.05, 0.25, 0.5, 0.75, 0.99):
        c = PROCESSES[name](t)
        for key, value in _published(name, t).items():
            assert getattr(c, key) == pytest.approx(value, rel=1e-12, abs=0), (key, t)


def test_published_ranges():
    ranges = {name: (process.t_min, process.t_max) for name, process in PROCESSES.items()}
    assert ranges["VP"] == ranges["SubVP"] == ranges["Cosine"] == (1e-3, 1.0)
    assert ranges["VE"] == (1e-5, 1.0)
    assert ranges["EDM"] == (0.002, 80.0)
    assert ranges["OU"] == (1e-5, 10.0)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "VE"])
def test_without_noise_at_time_zero(name):
    c = PROCESSES[name](0.0)
    assert (c.alpha, c.sigma, c.rho, c.log_snr) == (1.0, 0.0, 0.0, math.inf)
    assert PROCESSES[name].time_of(0.0) == 0.0


def test_ve_starts_at_its_smallest_noise_and_ends_at_its_largest_exactly(generator):
    low, high = uniform(generator, 0.001, 0.1), uniform(generator, 1, 100)
    process = VE(low, high)
    assert (process(0.0).sigma, process(1.0).sigma) == (low, high)
    assert (process.time_of(low), process.time_of(high)) == (0.0, 1.0)
    with pytest.raises(ValueError) as caught:
        VE().time_of(0.005)
    sentence = "rho was 0.005; VE(sigma_min=0.01, sigma_max=50.0, t_min=1e-05) is defined for rho"
    assert str(caught.value) == sentence + " from 0.01 to 50."


@pytest.mark.parametrize(
    "process", [wb.RectifiedFlow(), Cosine(), Cosine(0.0), Cosine(1.0)], ids=repr
)
def test_pure_noise(process):
    c = process(1.0)
    assert (c.alpha, c.sigma) == (0.0, 1.0)
    assert (c.f, c.g2, c.rho, c.log_snr) == (-math.inf, math.inf, math.inf, -math.inf)
    assert -math.inf < c.d_alpha < 0 and 0 <= c.d_sigma < math.inf
    assert process.time_of(math.inf) == 1.0
    assert process.time_of(torch.tensor([math.inf, 0.0])).tolist() == [1.0, 0.0]


def test_vp_keeps_its_small_noise_in_float32():
    """1 - exp(-B) in float32 would be 0 at t = 1e-5."""
    t = torch.tensor([1e-5, 1e-4], dtype=torch.float32)
    c, truth = wb.VP()(t), wb.VP()(t.double())
    assert c.sigma.dtype == torch.float32
    torch.testing.assert_close(c.sigma.double(), truth.sigma, rtol=1e-7, atol=0)
    torch.testing.assert_close(c.rho.double(), truth.rho, rtol=1e-7, atol=0)


@pytest.mark.parametrize("low", [0.0, 0.1, 3.0])
def test_vp_without_slope_or_without_an_initial_rate(low, generator):
    """beta_min = beta_max has B linear in t, beta_min = 0 has it quadratic: both invert."""
    for high in (3.0, 20.0):
        for kind in (wb.VP, SubVP):
            process = kind(low, high)
            for t in (1e-6, uniform(generator, 0.1, 0.9), 1.0):
                assert process.time_of(process(t).rho) == pytest.approx(t, rel=1e-10)


def test_rates_of_sigma_at_time_zero():
    """Infinite where sigma starts as a square root, else its slope."""
    for process in (wb.VP(), Cosine(), OU()):
        assert process(0.0).d_sigma == math.inf
    assert wb.VP(0.0, 18.0)(0.0).d_sigma == pytest.approx(3.0, rel=1e-12)
    assert SubVP(0.3, 5.0)(0.0).d_sigma == 0.3
    assert Cosine(0.0)(0.0).d_sigma == pytest.approx(math.pi / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: wb.VP(beta_min=-1.0), ["VP: beta_min was -1.0", "at least 0"]),
        (lambda: wb.VP(beta_max=math.nan), ["VP: beta_max was nan", "a finite number"]),
        (lambda: wb.VP(5.0, 2.0), ["VP: beta_max was 2.0", "at least beta_min (5.0)"]),
        (lambda: SubVP(5.0, 2.0), ["SubVP: beta_max was 2.0", "at least beta_min (5.0)"]),
        (lambda: wb.VP(t_min=1.0), ["t_min was 1.0", "below 1"]),
        (lambda: wb.EDM(sigma_min=-0.1), ["EDM: sigma_min was -0.1", "greater than 0"]),
        (lambda: wb.EDM(2.0, 1.0), ["sigma_max was 1.0", "greater than sigma_min (2.0)"]),
        (lambda: wb.EDM(sigma_max="80"), ["sigma_max was '80'", "a finite number"]),
        (lambda: VE(1.0, 1.0), ["VE: sigma_max was 1.0", "greater than sigma_min (1.0)"]),
        (lambda: VE(sigma_min=0), ["VE: sigma_min was 0", "greater than 0"]),
        (lambda: Cosine(offset=-0.1), ["Cosine: offset was -0.1", "at least 0 and at most 1"]),
        (lambda: OU(theta=0.0), ["OU: theta was 0.0", "greater than 0"]),
        (lambda: OU(t_min=2.0, t_max=1.0), ["OU: t_max was 1.0", "greater than t_min (2.0)"]),
        (lambda: wb.RectifiedFlow(t_min=0.0), ["t_min was 0.0", "greater than 0 and below 1"]),
    ],
)
def test_parameters_out_of_range_are_named(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


def test_prior_std():
    """As published: unit variance for those that keep it, the stationary law, else the noise."""
    for process in (wb.VP(), SubVP(), Cosine()):
        assert process.prior_std(0.3) == 1.0
    assert OU(theta=2.0, noise=3.0).prior_std(10.0) == 1.5
    assert OU().prior_std(10.0) == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert VE().prior_std(1.0) == 50.0
    assert wb.EDM().prior_std(80.0) == 80.0
    assert wb.RectifiedFlow().prior_std(0.75) == 0.75
