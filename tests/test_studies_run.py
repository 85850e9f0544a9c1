"""A study carried out is the library called by hand, to the bit."""

import json
import platform

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import registry
from workbench.studies import Study, StudyError, available_devices, build

SMALL = {"seeds": {"first": 40, "count": 7}, "device": "cpu"}


def equal(ds, run) -> None:
    for name, value in {**run.fields, "final": run.final}.items():
        assert ds[name].dtype == value.numpy().dtype
        assert np.array_equal(ds[name].values, value.numpy()), name
    assert ds.attrs["nfe"] == run.nfe


def test_the_default_study_by_hand():
    ds = wb.run(Study(**SMALL))
    diffusion = wb.Diffusion(wb.VP(), wb.datasets.ring().law).to(torch.float32)
    grid = wb.Grid.log_snr(wb.VP(), steps=32)
    record = wb.Record(["x", "denoised"])
    equal(ds, wb.sample(diffusion, wb.Heun(), grid, range(40, 47), record))
    assert ds["seed"].values.tolist() == list(range(40, 47))
    assert Study(**json.loads(ds.attrs["study"])) == Study(**SMALL)


@pytest.mark.parametrize(
    ("sections", "states"),
    [
        ({}, [-0.030558553242239585, -1.4441620103642197, -0.9600118517274914,
              -0.8551418461874213, 1.4332736534071608, -0.054514187390601244]),
        ({"data": "checkerboard", "denoiser": {"name": "Empirical", "points": 100},
          "process": "Cosine", "grid": {"name": "uniform", "steps": 9, "final": "denoise"}},
         [0.5220336826814547, -1.4244755805637304, -0.7938062802127634,
          -0.8263564797323212, 1.6853493534150406, -0.48558193313791564]),
    ],
    ids=["default", "checkerboard"],
)  # fmt: skip
def test_a_study_of_version_1_gives_the_states_it_gave(sections, states):
    study = Study(study=1, dtype="float64", device="cpu", seeds={"count": 3}, **sections)
    np.testing.assert_allclose(wb.run(study)["final"].values.ravel(), states, rtol=0, atol=1e-12)


def test_every_section_reaches_the_run():
    study = Study(
        data={"name": "moons", "noise": 0.1, "size": 60, "seed": 5},
        denoiser={"name": "Empirical", "points": 30},
        process={"name": "RectifiedFlow", "t_min": 0.01},
        sampler={"name": "EulerMaruyama", "eta": 0.5},
        grid={"name": "karras", "steps": 9, "final": "denoise", "exponent": 3.0},
        record={"fields": ["denoised", "x"], "every": 4},
        dtype="float64",
        **SMALL,
    )
    ds = wb.run(study)
    process = wb.RectifiedFlow(0.01)
    points = wb.datasets.moons(noise=0.1, size=60, seed=5).points[:30]
    grid = wb.Grid.karras(process, steps=9, final="denoise", exponent=3.0)
    record = wb.Record(["denoised", "x"], every=4)
    diffusion = wb.Diffusion(process, wb.Empirical(points))
    equal(ds, wb.sample(diffusion, wb.EulerMaruyama(0.5), grid, range(40, 47), record))
    assert set(ds.data_vars) == {"denoised", "x", "final"} and ds["step"].values.tolist() == [
        0,
        4,
        8,
        9,
    ]


@pytest.mark.parametrize("denoiser", ["Gaussian", "Mixture", "Empirical"])
@pytest.mark.parametrize("data", [d for d in wb.DATASETS if d not in ("patches", "points")])
def test_every_data_set_goes_with_every_denoiser(data, denoiser):
    """The mean of many samples by one step from pure noise to the denoised state is the data's."""
    study = Study(
        data=data,
        denoiser=denoiser,
        process="RectifiedFlow",
        sampler="DDIM",
        grid={"name": "uniform", "steps": 1, "final": "denoise"},
        dtype="float64",
        seeds={"count": 3},
    )
    if (data, denoiser) == ("sphere", "Mixture"):
        with pytest.raises(StudyError, match="sphere is neither a mixture nor labelled"):
            build(study)
        return
    setup = build(study)
    law = setup.diffusion.denoiser
    assert type(law) is wb.DENOISERS[denoiser]
    expected = law.mean if setup.data.law is not None else setup.data.points.mean(0)
    final = wb.run(study)["final"].values
    np.testing.assert_allclose(final, expected.expand(3, *law.event_shape).numpy(), atol=1e-12)


def test_progress():
    calls = []
    study = Study(grid={"name": "log_snr", "steps": 3}, **SMALL)
    wb.run(study, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("study", "path", "pieces"),
    [
        ({"process": {"name": "VP", "beta_min": 9, "beta_max": 5}}, "process",
         ["process: VP: beta_max was 5.0", "at least beta_min (9.0)"]),
        ({"process": {"name": "EDM", "sigma_min": 90}}, "process", ["sigma_max was 80.0"]),
        ({"denoiser": {"name": "Gaussian", "rank": 3}}, "denoiser",
         ["denoiser: denoiser rank was 3", "2 dimensions"]),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together(study, path, pieces):
    with pytest.raises(StudyError) as caught:
        build(Study(**study))
    assert list(caught.value.problems) == [path]
    for piece in pieces:
        assert piece in str(caught.value)


def test_unlabelled_data_without_a_law_make_no_mixture():
    """Gaussian and Empirical they do."""
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    with registry.kept():
        wb.register(lambda: wb.Data("cloud", points), kind="data", name="cloud")
        with pytest.raises(
            StudyError, match=r"denoiser: .*neither a mixture nor labelled.*Empirical"
        ) as e:
            build(Study(data="cloud", denoiser="Mixture"))
        assert list(e.value.problems) == ["denoiser"]
        for name in ("Gaussian", "Empirical"):
            setup = build(Study(data="cloud", denoiser=name, dtype="float64"))
            assert setup.diffusion.denoiser.mean.tolist() == [1, 0]


def test_a_device_that_is_not_here(monkeypatch):
    assert available_devices()[:2] == ("auto", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StudyError, match=r"device was 'cuda'; on this machine it may be auto, cpu"):
        build(Study(device="cuda"))


def test_what_has_no_value_without_noise_cannot_be_recorded_there():
    study = Study(
        grid={"name": "log_snr", "steps": 3, "final": "denoise"}, record={"fields": ["score"]}
    )
    with pytest.raises(ValueError, match="score cannot be recorded at sigma = 0"):
        wb.run(study)


def test_a_result_says_where_it_is_from():
    study = Study(grid={"name": "log_snr", "steps": 2}, **SMALL)
    attrs = wb.run(study).attrs
    assert attrs["study_hash"] == study.hash and attrs["format"] == 1 and attrs["nfe"] == 4
    assert (attrs["workbench"], attrs["torch"]) == (wb.__version__, torch.__version__)
    assert (attrs["numpy"], attrs["python"]) == (np.__version__, platform.python_version())
    assert attrs["device"] == "cpu" and attrs["seconds"] > 0


def test_reductions_are_asked_for_by_name():
    fields = ["x", "x.spectrum", "denoised.moments"]
    ds = wb.run(Study(record={"fields": fields}, grid={"name": "log_snr", "steps": 2}, **SMALL))
    kept = {"x", "x.spectrum", "x.spectrum_se", "final"}
    kept |= {f"denoised.moments{end}" for end in ("", "_se", "_var")}
    assert set(ds.data_vars) == kept
    assert ds["x.spectrum"].dims == ("time", "band") and ds["denoised.moments_var"].dims == (
        "time",
        "dim",
    )
    np.testing.assert_allclose(ds["x.spectrum"], np.square(ds["x"].astype(float)).mean("sample"))
    with pytest.raises(StudyError, match=r"record\.fields\.0 was 'x\.power'"):
        Study(record={"fields": ["x.power"]})
