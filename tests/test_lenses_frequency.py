"""Emergence of bands: against closed form, Monte Carlo and published tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normals

import workbench as wb
from workbench.lenses.base import Subject
from workbench.lenses.frequency import Frequency, crossings, predicted
from workbench.lenses.spectrum import Spectrum, seam, slope_of
from workbench.processes import EqualSNR
from workbench.processes.bases import DCT
from workbench.sampling.bands import rings, wavelets
from workbench.studies import StudyError
from workbench.studies.banded import Looking, banded
from workbench.views.frequency import packed
from workbench.views.panels import header_of

REFERENCE = json.loads(
    (Path(__file__).with_name("reference") / "lenses.json").read_text(encoding="utf-8")
)

#: Half-power noise levels of the octaves of the digits, Gaussian in closed form; and those of 256
#: paths from one noise: of that Gaussian, and of the ideal denoiser of the 1797 images.
GAUSSIAN = [0.671, 1.214, 1.140, 0.697, 0.2415]
SAME_NOISE = {
    kind: REFERENCE["emergence_digits"][f"{kind}_sim"]["half_power_rho"]
    for kind in ("gauss", "ideal")
}

#: Noise levels from 80 down, close together where bands of photographs emerge.
CLOSE = [80, 40, 24, 16, 11.5, 8.5, *np.geomspace(6.2, 1.5, 14), 1.0, 0.5, 0.25]

RECORD = wb.Record(["x.rings", "denoised.rings"])


@pytest.fixture(scope="module")
def digits():
    return wb.datasets.digits()


def walked(process, denoiser, count, steps=48):
    diffusion = wb.Diffusion(process, denoiser)
    grid = wb.Grid.log_snr(process, steps, final="denoise")
    return wb.sample(diffusion, wb.Heun(), grid, range(count), RECORD)


def test_the_gaussian_s_bands_emerge_where_they_must(digits):
    """Prediction, the sampler's own exact value and the samples; the same under each process."""
    law, lenses = wb.Gaussian.fit(digits.points), {}
    for process, count in (
        (wb.VP(), 1600),
        (wb.VP(), 300),
        (wb.EDM(), 300),
        (wb.RectifiedFlow(), 300),
    ):
        lens = wb.measure("frequency", walked(process, law, count))
        at = lens.sel(fraction=0.5)
        np.testing.assert_allclose(at["rho_power_gaussian"], GAUSSIAN, rtol=6e-4)
        np.testing.assert_allclose(at["rho_power_exact"], GAUSSIAN, rtol=0.01)  # 32 steps
        apart = abs(lens["emerged"] - lens["emerged_exact"]) / lens["emerged_se"].where(
            lens["emerged_se"] > 1e-9
        )
        assert float(apart.max()) < 5
        lenses[process, count] = at
        if count == 1600:
            assert "or later" in Frequency().findings(lens)[1]
    first, *rest = lenses.values()
    np.testing.assert_allclose(first["rho_power"], GAUSSIAN, rtol=0.03)
    for one in rest:
        np.testing.assert_allclose(one["rho_power"], rest[0]["rho_power"], rtol=0.02)


def from_same_noise(denoiser, sampler, grid):
    """Measured from the 256 starts that the reference was made with: sampling error in common."""
    event = denoiser.event_shape
    start = np.random.default_rng(0).standard_normal((256, event.numel()))
    start = torch.from_numpy(80 * start).reshape(-1, *event).to(denoiser.dtype)
    run = wb.sample(wb.Diffusion(wb.EDM(), denoiser), sampler, grid, range(256), RECORD, x=start)
    return wb.measure("frequency", run)


@pytest.mark.parametrize("count", ["n4096", "n256"])
def test_patches_of_photographs_emerge_at_the_reference_s_levels(count):
    """The Gaussian in closed form, to the digits that were printed; the ideal denoiser of the
    patches within 3 %, most of which is that of 23 evaluations instead of 240."""
    pytest.importorskip("skimage", reason="needs scikit-image: pip install -e '.[pictures]'")
    patches = wb.DATASETS["patches"](each=int(count[1:]) // 8)
    ideal = wb.Empirical(patches.points).to(torch.float32)
    grid = wb.Grid.times(wb.EDM(), [float(rho) for rho in CLOSE], final="denoise")
    at = from_same_noise(ideal, wb.DPMSolverPP(order=3), grid).sel(fraction=0.5)
    assert at["band"].values.tolist() == ["DC", "1", "2", "3-4", "5-8", "9-16", "17-32"]
    row = REFERENCE["emergence_patches"][count]
    np.testing.assert_allclose(at["rho_power_gaussian"], row["gauss_half_power_rho"], rtol=1.5e-3)
    np.testing.assert_allclose(at["rho_power"], row["ideal_half_power_rho"], rtol=0.03)
    assert (at["rho_power"] > at["rho_power_gaussian"]).all()


def test_a_remembered_set_emerges_earlier(digits):
    """Within 1 % of the reference, from the same noise, and where the data have it when noised."""
    ideal, levels = wb.Empirical(digits.points), [80.0, *np.geomspace(40, 0.005, 60).tolist()]
    far, grid = (wb.Grid.times(wb.EDM(), levels[:end], final="denoise") for end in (61, 40))
    lens = from_same_noise(ideal, wb.Heun(), grid)
    at = lens.sel(fraction=0.5)
    np.testing.assert_allclose(at["rho_power"], SAME_NOISE["ideal"], rtol=0.01)
    plain = from_same_noise(wb.Gaussian.fit(digits.points), wb.Heun(), far)
    np.testing.assert_allclose(plain["rho_power"].sel(fraction=0.5), SAME_NOISE["gauss"], rtol=0.01)
    np.testing.assert_allclose(at["rho_power_gaussian"], GAUSSIAN, rtol=6e-4)
    assert (at["lead"] - 3 * at["lead_se"] > 0.1).all()
    assert "remembers single pictures" in Frequency().findings(lens)[1]
    turned = wb.measure("uturn", wb.Diffusion(wb.EDM(), ideal), data=digits, samples=400)
    noised = crossings(turned["rho"].values, turned["denoised"].values)[:, 1]
    error = at["rho_power_se"] / at["rho_power"]  # of 256 paths; that of 400 points is alike
    assert (
        abs(np.log(at["rho_power"] / noised)) < 4.5 * 1.4 * error
    ).all()  # what emerges of the data themselves, noised


def test_no_band_is_first_under_equal_signal_to_noise(generator):
    """The control: with noise shaped like the data, all bands emerge at once."""
    shape = torch.Size((8, 8))
    basis = DCT(shape)
    variances = (1 + basis.frequency) ** -2.0
    matrix = basis.inverse(torch.eye(64, dtype=torch.float64).reshape(-1, *shape)).flatten(1)
    law = wb.Gaussian(torch.zeros(shape).double(), (matrix.T * variances.flatten()) @ matrix)
    whens = {}
    for process in (EqualSNR(variances, basis, wb.VP()), wb.VP()):
        grid = wb.Grid.uniform(process, 40, final="denoise")
        run = wb.sample(wb.Diffusion(process, law), wb.Heun(), grid, range(384), RECORD)
        lens = wb.measure("frequency", run)
        whens[process] = lens["rho_power_gaussian"].sel(fraction=0.5).values
        measured = lens["rho_power"].sel(fraction=0.5).values
        np.testing.assert_allclose(measured, whens[process], rtol=0.08)
    equal, plain = whens.values()
    assert equal.max() / equal.min() < 1 + 1e-9
    assert plain.max() / plain.min() > 2


#: A process with one noise level, and those with one for each mode that draw bands elsewhere.
KINDS = {
    "VP": lambda spectrum, basis: wb.VP(),
    "ShortestPath": wb.ShortestPath,
    "Blurring": lambda spectrum, basis: wb.Blurring(basis, blur_max=2.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_is_that_of_many_noised_pictures(kind, generator):
    shape = torch.Size((4, 4))
    root = normals(generator, 16, 16) / 4
    law = wb.Gaussian(normals(generator, *shape), root @ root.T)
    spectrum = torch.rand(shape, generator=generator).double() + 0.2
    process = KINDS[kind](spectrum, DCT(shape))
    diffusion, times = wb.Diffusion(process, law), np.array([0.9, 0.4, 0.05])
    count = 4000
    clean = law.mean + (normals(generator, count, 16) @ root.T).reshape(-1, *shape)
    for bands in (rings(shape), wavelets(shape)):
        found = predicted(law, bands, process, times)
        np.testing.assert_allclose(found.final, bands.energy(clean - law.mean).mean(0), rtol=0.15)
        for k, t in enumerate(times.tolist()):
            x = diffusion.diffuse(clean, t, normals(generator, count, *shape))
            centre = diffusion.diffuse(law.mean[None], t, torch.zeros(1, *shape).double())
            denoised = diffusion.denoised(x, t) - law.mean
            for got, values in (
                (found.denoised, bands.energy(denoised)),
                (found.state, bands.energy(x - centre)),
                (found.both, bands.covariance(denoised, x - centre)),
            ):
                error = values.std(0) / count**0.5
                assert ((torch.from_numpy(got[k]) - values.mean(0)).abs() < 5 * error).all()
        assert (found.coherence <= 1 + 1e-12).all()


def test_crossings_are_interpolated_in_log_rho():
    rho = np.array([np.inf, 100.0, 10.0, 1.0, 0.1, 0.0])
    shares = np.array([0.0, 0.0, 0.2, 0.6, 1.0, 1.0])[:, None]
    found = crossings(rho, shares, (0.4, 0.5, 0.8))[0]
    odds = lambda p: np.log(p / (1 - p))  # noqa: E731
    between = (odds(0.5) - odds(0.2)) / (odds(0.6) - odds(0.2))
    assert np.log10(found[1]) == pytest.approx(1 - between, rel=1e-12)
    mode = 1 / (1 + rho[:, None] ** 2 / np.array([0.3, 7.0]))  # exact, however far apart
    np.testing.assert_allclose(crossings(rho, mode)[:, 1], np.sqrt([0.3, 7.0]), rtol=1e-12)
    late = crossings(rho, np.array([0.0, 0.7, 0.8, 0.9, 0.95, 1.0])[:, None])[0]
    assert np.isnan(late[:2]).all()  # it had emerged before the run was looked at


def test_one_sample_has_no_interval_and_points_have_no_bands(digits):
    law = wb.Gaussian.fit(digits.points)
    lens = wb.measure("frequency", walked(wb.VP(), law, 1, 8))
    assert lens["rho_power_interval"].sel(bound="low").max() == 0
    assert np.isinf(lens["rho_power_interval"].sel(bound="high")).all()
    assert "One sample says nothing of the spread" in Frequency().findings(lens)[-1]
    point = wb.Gaussian(torch.zeros(4, 4).double(), 0.0)
    with pytest.raises(NotImplementedError, match="no band has emerged"):
        wb.measure("frequency", walked(wb.VP(), point, 4, 4))


# ---- spectra -------------------------------------------------------------------------------------

#: Slopes measured of crops of periodic fields by the true one: without a window, and under Hann's.
#: Means of twenty sets of fields, which differ by 0.007.
CROPS = {2.0: (1.98, 2.02), 2.5: (2.46, 2.53), 3.0: (2.75, 3.06), 3.5: (2.78, 3.60)}


def fields(exponent: float, side: int, count: int, generator) -> torch.Tensor:
    f = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    size = torch.hypot(f[:, None], f).clamp_min(1) ** (-exponent / 2)
    white = torch.fft.fft2(normals(generator, count, side, side))
    return torch.fft.ifft2(white * size).real


@pytest.mark.parametrize("exponent", CROPS)
def test_slopes_of_crops_have_the_bias_that_is_stated(exponent, generator):
    whole = fields(exponent, 256, 12, generator)
    crops = whole.unfold(1, 32, 32).unfold(2, 32, 32).reshape(-1, 32, 32)
    pictures = torch.arange(12).repeat_interleave(64)
    for window, expected in zip(("none", "hann"), CROPS[exponent], strict=True):
        value, low, high = slope_of(crops, pictures, window)
        assert -value == pytest.approx(expected, abs=0.04)
        assert low <= value <= high


def test_a_window_on_periodic_pictures_is_a_sentence(generator):
    """The law of a periodic field against that of its crops, of which half the columns are seen."""
    whole = fields(3.0, 16, 3000, generator)
    crops = fields(3.0, 48, 340, generator).unfold(1, 16, 16).unfold(2, 16, 16).reshape(-1, 16, 16)
    said = {}
    for kind, pictures in (("periodic", whole), ("crops", crops)):
        jump = seam(pictures)
        assert jump < 1.3 if kind == "periodic" else jump > 4
        run = wb.sample(
            wb.Diffusion(wb.VP(), wb.Gaussian.fit(pictures)),
            wb.DDIM(),
            wb.Grid.log_snr(wb.VP(), 12, final="denoise"),
            range(64),
        )
        for window in ("none", "hann"):
            lens = Spectrum(window=window)
            said[kind, window] = " ".join(lens.findings(wb.measure(lens, run)))
    assert "there the window is wrong" in said["periodic", "hann"]
    assert "window" not in said["periodic", "none"]
    assert "come out steeper by" in said["crops", "hann"]
    assert "as crops do" in said["crops", "none"]


def test_crops_of_a_picture_are_alike(generator):
    """Four copies of each picture say what one says: drawn by picture the interval is that of the
    pictures, drawn one by one half as wide, to the 5 % by which 400 draws know each of the two."""
    alone, copied = fields(2.0, 32, 60, generator), torch.arange(60).repeat_interleave(4)
    value, lower, higher = slope_of(alone)
    crops = alone[copied]
    np.testing.assert_allclose(slope_of(crops, copied), (value, lower, higher), rtol=1e-10)
    _, low, high = slope_of(crops)
    assert (high - low) / (higher - lower) == pytest.approx(0.5, rel=0.3)
    assert slope_of(crops[:1])[1:] == (-np.inf, np.inf)


def test_the_spectrum_of_samples_against_the_law_of_the_output(digits):
    law = wb.Gaussian.fit(digits.points)
    diffusion = wb.Diffusion(wb.VP(), law)
    grid = wb.Grid.log_snr(diffusion.process, 10, final="denoise")
    for sampler in (wb.Heun(), wb.DDIM(eta=1.0)):
        run = wb.sample(diffusion, sampler, grid, range(1500))
        for bands in ("rings", "octaves", "wavelets"):
            lens = wb.measure("spectrum", run, bands=bands)
            assert lens.attrs["parseval"] < 1e-12
            apart = abs(lens["energy"] - lens["energy_exact"]) / lens["energy_se"]
            assert float(apart.max()) < 5
            total = float(lens["energy_exact"].sum())
            made = wb.exact.law(diffusion, sampler, grid)
            off = (made.mean - law.mean).square().mean().item()
            assert total == pytest.approx(made.spectrum.mean().item() + off, rel=1e-12)
    short = float(lens["deficit_exact"].sel(band="D1"))
    assert "D1" in Spectrum().findings(lens)[0] or abs(short) < 0.1


def test_what_a_spectrum_cannot_say(digits):
    subject = Subject.of(walked(wb.VP(), wb.Gaussian.fit(digits.points), 1, 4))
    lens = wb.measure("spectrum", subject)
    assert np.isnan(lens["slope_se"]) and np.isnan(lens["energy_se"]).all()
    assert "One sample" in Spectrum().findings(lens)[-1]
    assert "nan" not in " ".join(Spectrum().findings(lens))
    few = wb.Gaussian(torch.zeros(4, 5).double(), 1.0)
    small = wb.sample(wb.Diffusion(wb.VP(), few), wb.Heun(), wb.Grid.uniform(wb.VP(), 3), range(3))
    told = Spectrum().findings(wb.measure("spectrum", small))[-1]
    assert told.startswith("Pictures of 4 x 5 pixels have no two rings from 2 cycles")
    with pytest.raises(ValueError, match="a window has no meaning for wavelets"):
        Spectrum(bands="wavelets", window="hann")
    plane = wb.sample(
        wb.Diffusion(wb.VP(), wb.Gaussian(torch.zeros(2).double(), 1.0)),
        wb.Heun(),
        wb.Grid.uniform(wb.VP(), 3),
        range(3),
    )
    with pytest.raises(NotImplementedError, match="a window is for images"):
        wb.measure("spectrum", plane, window="hann")
    with pytest.raises(ValueError, match="no two rings"):
        slope_of(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="one for each of the 2 images"):
        slope_of(torch.zeros(2, 8, 8), [1])
    same = torch.full((5, 8, 8), 0.3, dtype=torch.float64)
    constant = wb.Diffusion(wb.VP(), wb.Empirical(same))
    run = wb.sample(constant, wb.Heun(), wb.Grid.uniform(wb.VP(), 3, final="denoise"), range(3))
    found = wb.measure("spectrum", run)
    assert "no energy at all" in Spectrum().findings(found)[-1]


def test_what_the_page_draws_is_what_was_measured():
    """The bytes, read as the browser reads them; and each sample's own pictures in each band."""
    flat = {"data": "digits", "denoiser": "Gaussian", "grid.steps": 6, "seeds.count": 5}
    found = banded(wb.Study.from_flat(flat), Looking())
    np.testing.assert_allclose(found.passed.sum(2), found.denoised, atol=1e-12)
    content = packed(found)
    header, begin = header_of(content), 4 + int.from_bytes(content[:4], "little")

    def read(name):
        about = header["arrays"][name]
        kind, begins = "u1" if about.get("bytes") else "<f4", begin + 4 * about["at"]
        count = int(np.prod(about["shape"]))
        return np.frombuffer(content, kind, count, begins).reshape(about["shape"])

    assert header["bands"] == ["DC", "1", "2", "3-4", "5-8"]
    emerged = found.lens["emerged"].values[found.times].T
    np.testing.assert_allclose(read("emerged"), emerged, rtol=1e-6)
    assert read("passed").shape == (len(found.times), 5, 5, 8, 8)
    low, high = header["bounds"]
    np.testing.assert_allclose(
        low + (high - low) * read("final") / 255, found.final, atol=(high - low) / 500
    )
    with pytest.raises(StudyError, match="bands was wavelets: the values have the shape"):
        banded(wb.Study.from_flat({"data": "ring"}), Looking(bands="wavelets"))
