"""The closed-form entries of the lenses' table of numbers, through the public functions.

`reference/lenses.json` holds what was printed when the table was made. Numbers printed to four
digits are compared to half a unit of the fourth; those printed in full to 1e-9, unless it is said
why not.
"""

import json
import math
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.exact import critical, distances, fisher, flow, reverse, seeds

TABLE = json.loads(
    (Path(__file__).with_name("reference") / "lenses.json").read_text(encoding="utf-8")
)
THEORY, EMERGENCE = TABLE["theory"], TABLE["emergence_digits"]
VP, EDM = wb.VP(), wb.EDM()


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def printed(got, wanted, digits: int | None = None):
    """Equal to ``digits`` significant digits, or to 1e-9."""
    got, wanted = tensor(got), tensor(wanted)
    assert got.shape == wanted.shape
    if digits is None:
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
        return
    unit = 10.0 ** (wanted.abs().log10().floor() - digits + 1)
    error = ((got - wanted).abs() / unit).max().item()
    assert error <= 0.5 + 1e-6, f"{got.tolist()} is not {wanted.tolist()}: off by {error:.2f} units"


@pytest.fixture(scope="module")
def digits() -> wb.datasets.Data:
    return wb.datasets.digits()


@pytest.fixture(scope="module")
def law(digits) -> wb.Gaussian:
    return wb.Gaussian.fit(digits.points)


@pytest.fixture(scope="module")
def centred(law) -> wb.Gaussian:
    return law.translated(-law.mean)


def eigenvectors(law: wb.Gaussian) -> torch.Tensor:
    """All of them, in the order of ``law.spectrum``."""
    return torch.linalg.eigh(law.cov).eigenvectors


def fourier_weights(law: wb.Gaussian, bands: list[tuple[int, int]]) -> torch.Tensor:
    """Energy of each eigenvector in each band of rings of spatial frequency, nearest integer."""
    side = law.event_shape[0]
    f = torch.fft.fftfreq(side, dtype=torch.float64) * side
    rings = torch.hypot(f[:, None], f).round()
    images = eigenvectors(law).T.reshape(-1, side, side)
    energy = torch.fft.fft2(images, norm="ortho").abs().square()
    within = [(rings >= low) & (rings <= high) for low, high in bands]
    return torch.stack([(energy * mask).sum((1, 2)) for mask in within])


BANDS = [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8)]


# ---- spectra and emergence -----------------------------------------------------------------------


def test_spectrum_of_the_digits(digits, law):
    row, lam = TABLE["eigen_spectra"]["digits8"], law.spectrum.flip(0)
    assert (len(digits.points), law.dim) == (row["n"], row["d"])
    printed(lam.sum(), row["trace"])
    printed(law.std, row["sigma_data_rms_centered"])
    printed(lam[:20], row["top20_eig"], 4)
    printed(lam.sum() ** 2 / lam.square().sum(), row["participation_ratio"])
    shares = lam.cumsum(0) / lam.sum()
    for percent in (90, 95, 99):
        assert int((shares < percent / 100).sum()) + 1 == row[f"n{percent}"]
    assert int((lam > 1e-10).sum()) == row["rank_1e-10"]
    weights = fourier_weights(law, BANDS)
    power = weights @ law.spectrum
    assert weights.sum(1).round().int().tolist() == row["band_modes"]
    printed(power, row["band_variance_total"], 4)
    printed(power / weights.sum(1), row["band_variance_per_mode"], 4)
    printed((power / weights.sum(1)).sqrt(), EMERGENCE["sqrt_mean_lambda_per_band"], 4)


def test_emergence_of_the_digits(law):
    weights = fourier_weights(law, BANDS)
    rows = (EMERGENCE["gauss_half_power_rho"], *EMERGENCE["gauss_10_90_rho"])
    for fraction, wanted in zip((0.5, 0.1, 0.9), rows, strict=True):
        printed(flow.band_emergence(law.spectrum, weights, fraction), wanted, 4)
    times = flow.band_emergence(law.spectrum, weights, process=VP)
    printed(times, EMERGENCE["gauss_half_power_tVP"], 4)


@pytest.mark.parametrize("slope", ["1.9", "2", "2.5", "3"])
def test_emergence_of_power_laws(slope):
    rows = THEORY["powerlaw_emergence"]
    row, a = rows["alpha"][slope], float(slope)
    lam = power_law(a)
    printed(lam[0, 1], row["lam_k1"])
    at = [lam[0, k] for k in rows["k"]]
    printed(flow.emergence(torch.stack(at), of="power"), row["rho_half"], 4)
    printed(flow.emergence(torch.stack(at), of="power", process=VP), row["t_VP"], 4)


def power_law(a: float) -> torch.Tensor:
    """Variances k^-a of the Fourier modes of 32 x 32 pixels of variance 1/4; DC as k = 1."""
    f = torch.fft.fftfreq(32, dtype=torch.float64) * 32
    lam = torch.hypot(f[:, None], f).clamp_min(1) ** -a
    return 0.25 * lam / lam.mean()


def test_perturbations_of_the_digits(law):
    """0.2 of white noise in the variance-preserving state, carried to the data."""
    for rho, row in EMERGENCE["perturbation_VP_fixed_0.2"].items():
        gain = flow.perturbation_gain(VP, law.spectrum, VP.time_of(float(rho)))
        # The noise levels are printed to six digits.
        assert 0.2 * gain.square().mean().sqrt().item() == pytest.approx(
            row["gauss_pred_rms"], rel=3e-6
        )


@pytest.mark.parametrize("name", ["digits", "powerlaw2_32_var0.25"])
def test_explained_variance_without_sampling(name, law):
    lam = law.spectrum if name == "digits" else power_law(2.0)
    row = THEORY["traj_EV_timeGram_prediction_cum123"][name]
    uniform = torch.linspace(1, 1e-3, 200, dtype=torch.float64)
    karras = tensor(wb.Grid.karras(EDM, 119).t)
    late = karras[karras <= 5]
    for key, process, times, centred in (
        ("VP_tuniform200_centered", VP, uniform, True),
        ("VP_tuniform200_uncentered", VP, uniform, False),
        ("EDM_karras120_centered", EDM, karras, True),
        ("EDM_karras_sigma<=5_centered", EDM, late, True),
    ):
        got = wb.exact.expected_explained_variance(process, lam, times, centred=centred)
        torch.testing.assert_close(got, tensor(row[key]), rtol=0, atol=5.1e-5)


# ---- classes and collapse ------------------------------------------------------------------------


def test_class_retention():
    """Two entries were made with too few nodes: phi(3) and h(0.99); see test_exact_critical."""
    for h, wanted in THEORY["phi_of_h"].items():
        assert critical.phi(float(h)).item() == pytest.approx(wanted, abs=6e-7)
    for phi, wanted in THEORY["h_at_phi"].items():
        tolerance = 2.1e-5 if phi == "0.99" else 6e-6
        assert critical.h_at(float(phi)).item() == pytest.approx(wanted, abs=tolerance)


def ou_time(rho: float) -> float:
    """On the clock alpha = exp(-t) of a variance-preserving process."""
    return 0.5 * math.log1p(rho**2)


@pytest.mark.parametrize("d", [16, 64, 256, 1024])
def test_speciation_of_two_classes(d):
    row, offset = THEORY["speciation_times_OU_s2=1_|m|2=d"][str(d)], math.sqrt(d)
    found = critical.speciation(1 + d, by="published")
    printed(ou_time(found.rho), row["tS_half_log_Lambda"])
    printed(ou_time(critical.bimodality(offset, 1.0).rho), row["t_bimodal_marginal(alpha^2 m^2=v)"])
    key = "t_reverseSDE_drift_instability(2alpha^2m^2=1)"
    printed(ou_time(critical.instability(VP, offset, 1.0).rho), row[key])
    for phi in ("0.9", "0.75"):  # h = exp(-t) |m|
        got = math.log(offset / critical.h_at(float(phi)).item())
        assert got == pytest.approx(row[f"t_phi{phi}"], abs=1e-7)


def test_speciation_of_two_points():
    row = THEORY["pm1_pointmass"]
    c = VP(critical.instability(VP, 1.0, 0.0).t)
    assert c.alpha**2 == pytest.approx(row["alpha2_SDEdrift_exact_sqrt2-1"], abs=1e-12)
    c = VP(critical.bimodality(1.0, 0.0, VP).t)
    printed(c.alpha**2, row["alpha2_bimodal_marginal"])


@pytest.mark.parametrize("name", THEORY["collapse_isotropic"])
def test_collapse_of_a_ball(name):
    row = THEORY["collapse_isotropic"][name]
    d, n = (int(part[1:]) for part in name.split("_"))
    for found in (critical.isotropic_collapse(1.0, d, n), critical.collapse(torch.ones(d), n)):
        printed(found.rho, row["rho_C_REM"])
        printed(ou_time(found.rho), row["t_C_OU"])


def test_critical_levels_of_the_digits(digits, law):
    n = len(digits.points)
    printed(math.log(n), EMERGENCE["log_n"])
    found = critical.collapse(law.variances, n, VP)
    printed(found.rho, EMERGENCE["collapse_rho_gauss_REM"])
    printed(found.t, EMERGENCE["collapse_tVP_gauss_REM"])
    found = critical.isotropic_collapse(law.std, law.dim, n)
    printed(found.rho, EMERGENCE["collapse_rho_isotropic"])
    top = law.variances.max().item()
    found = critical.speciation(top, VP)
    printed(found.rho, EMERGENCE["speciation_rho_sqrt_top_eig"])
    printed(found.t, EMERGENCE["speciation_tVP"])
    found = critical.speciation(top, by="published")
    printed(ou_time(found.rho), EMERGENCE["speciation_tOU_half_log_Lambda"])


# ---- seeds ---------------------------------------------------------------------------------------


def test_retention():
    for row in THEORY["seed_retention_VE_rhoT80"]:
        printed(reverse.retention(EDM, tensor(row["lam"]), 80.0, row["kappa"]), row["pred"])
    for row in THEORY["seed_retention_EM_check_lam1_rT5"]:
        printed(reverse.retention(EDM, tensor(1.0), 5.0, row["kappa"]), row["pred"])


def test_variance_components_of_the_digits(digits):
    laws = [wb.Gaussian.fit(digits.points[digits.labels == label]) for label in range(10)]
    row, got = TABLE["seeds"]["gauss_pred_varcomp"], seeds.variance_components(laws)
    # Square roots of eigenvalues that are zero but for rounding.
    wanted = (row["class"], row["seed"], row["inter"], 0.0, row["ICC_seed"])
    assert (*got.shares, got.icc) == pytest.approx(wanted, abs=1e-8)


# ---- distances -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [key for key in TABLE["distances"] if "eps" in key])
def test_distances_of_balls(name):
    row = TABLE["distances"][name]
    d, epsilon, n = (part.lstrip("depsn") for part in name.split("_"))
    ball, grown = (wb.Gaussian(torch.zeros(int(d)).double(), s**2) for s in (1, 1 + float(epsilon)))
    assert distances.w2(ball, grown) ** 2 == pytest.approx(row["true_W2sq"], rel=1e-9)
    null = row["bures_null_bias_formula(2d+d(d+1)/2)/n"]
    assert distances.w2_null(int(n), ball) == pytest.approx(null, rel=1e-12)


@pytest.mark.parametrize("n", ["10", "18", "40", "100", "400"])
def test_exact_laws_of_the_digits(n, centred):
    row = TABLE["distances"]["digits_gauss_W2_exact_vs_N_karras"][n]
    diffusion, grid = wb.Diffusion(EDM, centred), wb.Grid.karras(EDM, int(n), "denoise")
    for sampler, name in ((wb.Euler(), "euler"), (wb.Heun(), "heun")):
        got = distances.w2(wb.exact.law(diffusion, sampler, grid), centred)
        assert got == pytest.approx(row[name], rel=1e-7), name


def test_the_floor_of_heun_on_the_digits(centred):
    rows, diffusion = TABLE["heun_floor_digits"], wb.Diffusion(EDM, centred)
    mismatch = rows["prior_mismatch_pred_sqrt(sum lam^3)/(2*80^2)"]  # to first order
    assert reverse.initialisation_error(diffusion, s=0.0) == pytest.approx(mismatch, rel=1e-3)
    for n in (100, 400):
        grid = wb.Grid.karras(EDM, n, "denoise")
        starts = {"start_N(0,80^2)": None, "start_exact_marginal": diffusion.marginal(80.0)}
        for key, start in starts.items():
            got = distances.w2(wb.exact.law(diffusion, wb.Heun(), grid, start), centred)
            assert got == pytest.approx(rows[f"heun_N{n}"][key], rel=1e-6)


def test_fisher_length_of_the_digits(law, record_property):
    """The path's own number was a sum over a grid that leaves its ends out: 5e-4 too short."""
    row = TABLE["estimator_checks"]["fisher_length_digits"]
    lam = law.variances[law.variances > 1e-6]
    printed(fisher.fisher_distance(lam), row["geodesic"])
    got = fisher.fisher_length(wb.RectifiedFlow(), lam), fisher.fisher_length(VP, lam)
    full = fisher.fisher_length(wb.PROCESSES["Cosine"](), lam)  # variance preserving, to pure noise
    assert full == pytest.approx(27.458501197, abs=1e-8)
    assert row["VP_path(any schedule)"] < full < row["VP_path(any schedule)"] * 1.001
    assert full - 3e-4 < got[1] < full < got[0]  # VP stops short of pure noise; a detour
    record_property("measured", f"Fisher lengths: shortest {row['geodesic']:.3f}, VP {full:.6f}")
