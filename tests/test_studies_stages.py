"""What a sampler does within a step, beside the same by hand."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.studies import explore
from workbench.studies.run import build


def explored(**sections):
    common = {"data": "ring", "seeds": {"count": 16}, "device": "cpu", "dtype": "float64"}
    grid = {"name": "log_snr", "steps": 5}
    return explore(wb.Study(**(common | {"grid": grid} | sections)), within=True)


def test_the_predictor_of_heun_is_a_step_of_ddim():
    """Euler in rho is DDIM: x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D(x)."""
    run = explored(sampler={"name": "Heun", "axis": "rho"}).run
    assert run["stage"].values.tolist() == ["", "predictor"] * 5 + [""]
    assert run["step"].values.tolist() == [k / 2 for k in range(11)]
    x, d = run["x"].values, run["denoised"].values
    a, s = run["alpha"].values, run["sigma"].values
    for k in range(0, 10, 2):
        assert (a[k + 1], s[k + 1]) == (a[k + 2], s[k + 2])
        ratio = s[k + 1] / s[k]
        euler = ratio * x[k] + (a[k + 1] - a[k] * ratio) * d[k]
        np.testing.assert_allclose(x[k + 1], euler, rtol=1e-9, atol=1e-9)


def test_nodes_keep_their_values_and_the_model_is_asked_where_it_says():
    for sampler, names in (
        ("RK4", {"", "stage 1", "stage 2", "stage 3"}),
        ("PredictorCorrector", {"", "corrector"}),
        ("EDMStochastic", {"", "predictor", "noise added"}),
        ("DDIM", {""}),
    ):
        found = explored(sampler=sampler)
        run = found.run
        assert set(run["stage"].values.tolist()) == names
        assert (np.diff(run["step"].values) > 0).all()
        plain = build(found.study).sample().dataset
        at = run["stage"].values == ""
        for name in ("x", "denoised"):
            np.testing.assert_allclose(run[name].values[at], plain[name].values, rtol=1e-9)
        diffusion = build(found.study).diffusion
        for i in np.flatnonzero(~at):
            x, a, s = (
                torch.from_numpy(run["x"].values[i]),
                *map(float, (run.alpha[i], run.sigma[i])),
            )
            answer = diffusion.denoiser.denoise(x, a, s).numpy()
            np.testing.assert_allclose(run["denoised"].values[i], answer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"process": "Blurring", "data": "digits", "denoiser": "Gaussian", "grid": "uniform"},
            "one noise level",
        ),
        ({"record": {"every": 2}}, "every node"),
    ],
)
def test_where_it_cannot_be_had_a_note_says_why(sections, sentence):
    found = explored(**sections)
    assert "stage" not in found.run.coords
    assert any(sentence in note for note in found.notes), found.notes
