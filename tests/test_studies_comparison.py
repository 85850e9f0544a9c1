"""The comparison of samplers as a page asks for it: names, options, spectra, files."""

import io

import numpy as np
import pytest
import torch
from helpers import log_uniform

import workbench as wb
from workbench.sampling import SAMPLERS
from workbench.studies import StudyError, build
from workbench.studies.comparison import (
    Comparing,
    compare,
    compare_grids,
    compare_orders,
    compare_paths,
    compare_stability,
    played,
    spectrum_of,
)
from workbench.studies.eigenvalues import BYTES, keep, known, parse
from workbench.studies.variants import sampler_of, variants

FEW = {"samplers": "DDIM,Heun,UniPC:order=3", "modes": 6, "most": 24}


def few(**options) -> Comparing:
    return Comparing.from_flat({**FEW, **options})


# ---- names of samplers ---------------------------------------------------------------------------


def test_a_variant_is_a_sampler_with_its_parameters():
    assert sampler_of("DDIM") == wb.DDIM()
    assert sampler_of("DPMSolverPP:order=1:sde=true") == wb.DPMSolverPP(order=1, sde=True)
    assert sampler_of("EDMStochastic:s_churn=7.5") == wb.EDMStochastic(s_churn=7.5)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("Foo", "it must be one of"),
        ("DDIM:order=2", "has no parameter 'order'"),
        ("DDIM:eta=7", "at most 1"),
        ("DDIM:eta=<b>", "'<b>'"),
        ("DPMSolverPP:corrected=false", "corrected was False with order=2, multistep=True"),
        ("", "it must be one of"),
    ],
)
def test_a_variant_that_is_none_is_told_in_a_sentence(variant, words):
    with pytest.raises(StudyError, match="samplers held") as told:
        sampler_of(variant)
    assert words in told.value.problems["samplers"]


def test_all_that_are_offered_are_linear_and_all_linear_ones_are_offered():
    offered, process = variants(), wb.VP()
    assert len(set(offered)) == len(offered)
    for variant in offered:
        assert sampler_of(variant).program(process, wb.Grid.log_snr(process, 4)).linear
    assert {"DDIM", "Heun", "DPMSolverPP:order=3", "UniPC:order=3", "DDIM:eta=1"} <= set(offered)
    known_linear = {"Euler", "Midpoint", "RK4", "DEIS", "IPNDM", "EulerMaruyama", "EDMStochastic"}
    assert known_linear <= {variant.partition(":")[0] for variant in offered} <= set(SAMPLERS)


# ---- options -------------------------------------------------------------------------------------


def test_options_and_address_are_one():
    options = few(grids="karras", start="exact", error="kl", exponent=1.5)
    flat = wb.Study.flat_of_query(options.to_query())
    assert Comparing.from_flat(flat) == options
    assert set(flat) == set(Comparing.keys())
    assert not set(flat) & set(wb.Study().to_flat())


def test_what_cannot_be_read_of_an_address_is_told_and_left_out():
    flat = {"samplers": "Foo,DDIM", "nfe": "0", "exponent": "x", "grids": "best", "modes": "9"}
    options, problems = Comparing.salvage({**flat, "most": "9" * 5000})
    assert options == Comparing(modes=9)
    assert "(5002 characters); it must be a whole number" in problems["most"]
    assert "'Foo'" in problems["samplers"]
    assert "at least 1" in problems["nfe"]
    assert "exponent was 'x'" in problems["exponent"]
    assert "grids held 'best'" in problems["grids"]
    with pytest.raises(StudyError, match="the page has no option 'colour'"):
        Comparing.from_flat({"colour": "blue"})
    with pytest.raises(StudyError, match="choose at least one"):
        Comparing(samplers=" , ")
    with pytest.raises(StudyError, match="focus was 'Foo'"):
        Comparing(focus="Foo")


# ---- spectra -------------------------------------------------------------------------------------


def test_a_power_law():
    found = spectrum_of(wb.Study(), few(exponent=1.5))
    np.testing.assert_allclose(found.variances, np.arange(1, 7) ** -1.5, rtol=1e-14)


@pytest.mark.parametrize(("data", "denoiser"), [("ring", "Mixture"), ("digits", "Gaussian")])
def test_the_spectrum_of_data_is_that_of_their_covariance(data, denoiser):
    study = wb.Study(data=data, denoiser=denoiser)
    found = spectrum_of(study, few(spectrum="data"))
    points = build(study).data.points.flatten(1)
    mean, cov = points.mean(0), torch.cov(points.T, correction=0)
    values = torch.linalg.eigvalsh(cov).flip(0)
    np.testing.assert_allclose(found.variances, values, rtol=1e-4, atol=1e-6)
    assert found.mean.norm() == pytest.approx(mean.norm().item(), rel=1e-5, abs=1e-6)


# ---- files of eigenvalues ------------------------------------------------------------------------


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda v: npy(v),
        lambda v: npy(v[:, None]),
        lambda v: npy(np.asfortranarray(v[None, :])),
        lambda v: "\n".join(map(repr, v.tolist())).encode(),
        lambda v: ("﻿eigenvalue\r\n" + "\r\n".join(map(repr, v.tolist()))).encode(),
        lambda v: ", ".join(map(repr, v.tolist())).encode(),
        lambda v: "; ".join(map(repr, v.tolist())).encode(),
    ],
)
def test_eigenvalues_are_read_to_the_last_digit(make, generator):
    values = np.array([log_uniform(generator, 1e-6, 1e3) for _ in range(12)])
    np.testing.assert_array_equal(parse(make(values)), np.sort(values)[::-1])


def bomb() -> bytes:
    """A header that promises more than there is."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 16


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "1 to"),
        (b"one two", "1 to"),
        (b"1 2 x", "'x' in place 3"),
        (b"1\n-2\n", "-2 in place 2"),
        (b"1\nnan\n", "nan in place 2"),
        (b"1e400", "inf in place 1"),
        (b"0 0", "above 0"),
        (b"1e300", "at most 1e12"),
        (b"1,2\n3,4\n", "several columns"),
        (b"\xff\xfe\x00", "neither text nor"),
        (b"1 " * BYTES, "bytes"),
        (npy(np.array([{}], dtype=object)), "cannot be read as a NumPy array"),
        (npy(np.ones((2, 2))), "shape"),
        (npy(np.ones(3, complex)), "not real numbers"),
        (npy(np.ones(3))[:-4], "length"),
        (bomb(), "length"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
    ],
)
def test_another_file_is_refused_in_a_sentence(content, words):
    with pytest.raises(StudyError) as told:
        parse(content, "mine.csv")
    assert words in told.value.problems["file"]


def test_a_file_is_kept_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FILES", str(tmp_path))
    options = Comparing().uploaded("file", b"3 1 2", "mine.txt")
    assert options.spectrum == "file"
    found = spectrum_of(wb.Study(), options)
    assert found.variances.tolist() == [3, 2, 1]
    assert found.name == f"3 modes of the file {options.file[:8]}"
    assert [path.name for path in tmp_path.iterdir()] == [options.file] == [keep(b"3 1 2")]
    (tmp_path / options.file).unlink()
    with pytest.raises(StudyError, match="the eigenvalues are not here: the file"):
        known(options.file)
    with pytest.raises(StudyError, match="no eigenvalues are here yet"):
        known("")


# ---- what is computed ----------------------------------------------------------------------------


def test_each_point_names_the_run_it_is_of():
    study = wb.Study(grid={"name": "karras", "exponent": 5.0})
    told = []
    found = compare(
        study,
        few(grids="uniform", nfe=10, modes=9),
        lambda stage, share: told.append((stage, share)),
    )
    lens = found.lens
    assert lens["grid"].values.tolist() == ["karras", "uniform"]
    assert 10 in lens["budget"].values
    for sampler in lens["sampler"].values.tolist():
        for grid in ("karras", "uniform"):
            one = lens.sel(sampler=sampler, grid=grid, budget=10)
            setup = build(wb.Study.from_query(one["play"].item()))
            assert setup.sampler == sampler_of(sampler)
            assert setup.grid.name == grid
            assert setup.grid.steps == int(one["steps"])
            assert setup.sampler.nfe(setup.grid) == int(one["nfe"])
            assert np.allclose(setup.diffusion.denoiser.spectrum.flip(0), lens["variance"])
    assert build(wb.Study.from_query(lens["play"].values[0, 0, 3])).study.grid.exponent == 5.0
    assert told[-1] == ("exact laws", 1.0)


@pytest.mark.parametrize("options", [{"modes": 5}, {"modes": 1}, {"spectrum": "file"}])
def test_where_no_data_set_has_the_spectrum_there_is_no_run_to_play(options):
    options = few(**options)
    assert played(wb.Study(), options) is None
    if options.spectrum == "power":
        assert "play" not in compare(wb.Study(), options).lens


def test_too_large_a_comparison_is_refused():
    options = Comparing(modes=16_384, samplers=",".join(variants()), grids="karras,uniform")
    with pytest.raises(StudyError, match="too much for one picture"):
        compare(wb.Study(), options)


def test_the_parts_beneath():
    study, options = wb.Study(), few(focus="Heun", nfe=8)
    stable = compare_stability(study, options)
    assert stable["sampler"].values.tolist() == ["DDIM", "Heun", "UniPC:order=3"]
    assert float(stable["variance"].min()) == pytest.approx(6**-2 / 10)
    assert float(stable["variance"].max()) == pytest.approx(10)
    measured = compare_orders(study, options)
    np.testing.assert_allclose(measured["slope"].isel(pair=1)[:2], [1, 2], atol=0.25)
    grids = compare_grids(study, options)
    assert grids.attrs["sampler"] == "Heun"
    assert set(grids["nfe"].values.tolist()) == {8}
    w2 = dict(zip(grids["grid"].values.tolist(), grids["w2"].values, strict=True))
    assert w2["tuned"] <= 1.02 * min(w2.values())


def test_paths_leave_out_what_draws_noise():
    study = wb.Study(seeds={"count": 3})
    found = compare_paths(study, few(samplers="EulerMaruyama,Heun", most=12))
    assert found["sampler"].values.tolist() == ["Heun"]
    assert found.attrs["left_out"] == "EulerMaruyama"
    assert found.attrs["samples"] == 3
    with pytest.raises(StudyError, match="draw fresh noise"):
        compare_paths(study, few(samplers="EulerMaruyama"))


# ---- one noise level per mode --------------------------------------------------------------------

#: The modes of this data set are those of the basis, so that its Gaussian is compared as it is.
PER_MODE = {"data": "field", "data.side": 3, "denoiser": "Gaussian", "process": "EqualSNR"}


def test_under_one_noise_level_per_mode_the_laws_are_those_of_the_runs():
    study = wb.Study.from_flat({**PER_MODE, "grid": "uniform", "grid.steps": 9})
    options = few(spectrum="data", samplers="Heun,DDIM", nfe=9)
    found = compare(study, options).lens
    setup = build(study.changed({"dtype": "float64"}))
    for place, sampler in enumerate((wb.Heun(), wb.DDIM())):
        for budget in (9, 24):
            one = found.isel(sampler=place, grid=0).sel(budget=budget)
            grid = wb.Grid.uniform(setup.diffusion.process, int(one["steps"]))
            law = wb.exact.law(setup.diffusion, sampler, grid)
            exact = wb.exact.w2(law, setup.diffusion.marginal(grid.t[-1]))
            assert float(one["w2"]) == pytest.approx(float(exact), rel=1e-7)
    assert played(study, options) is None and "play" not in found
    assert list(compare_grids(study, options)["grid"].values) == ["uniform"]


def test_seed_by_seed_a_process_without_a_prior_starts_from_noised_data():
    flat = {**PER_MODE, "process": "HeatDissipation", "grid": "uniform", "seeds.count": 6}
    options = few(spectrum="data", samplers="Heun", most=24)
    rms = compare_paths(wb.Study.from_flat(flat), options)["rms"].values.ravel()
    assert rms[-1] < 0.2 * rms[0]


@pytest.mark.parametrize(
    ("call", "changes", "options", "words"),
    [
        (compare, {}, {}, "take the spectrum of the data"),
        (compare_stability, {}, {"spectrum": "data"}, "one per mode of a basis"),
        (compare, {"grid": "log_snr"}, {"spectrum": "data"}, "grid: "),
    ],
)
def test_what_one_noise_level_per_mode_has_no_meaning_for_is_told(call, changes, options, words):
    study = wb.Study.from_flat({**PER_MODE, "grid": "uniform", **changes})
    with pytest.raises(StudyError, match=words):
        call(study, few(**options))
