"""Steps saved by beginning in closed form: exact on a Gaussian, dear on rings, most on digits."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.lenses.two_sample import compare_paired


def shortened(law, sampler, grid, count=64, data=None, **options):
    process = wb.EDM()
    run = wb.sample(wb.Diffusion(process, law), sampler, grid(process), range(count))
    return wb.measure("shortcut", run, data=data or wb.Data("draws", run.final), **options)


def test_on_a_gaussian_only_the_sampler_s_own_error_is_left():
    variances = torch.tensor([2.0, 0.1], dtype=torch.float64)
    law = wb.Gaussian(torch.tensor([1.0, -2.0]).double(), variances)
    found = shortened(law, wb.Heun(), lambda process: wb.Grid.karras(process, 10), skips=9)
    assert found["skipped"].values.tolist() == list(range(10))
    assert found["nfe"].values.tolist() == [20 - 2 * k for k in range(10)]
    np.testing.assert_array_less(abs(found["rms"] - found["rms_exact"]), 5 * found["rms_se"] + 1e-4)
    assert found["rms"][-1] < 0.1 * found["rms"][0]  # what is skipped makes no error
    said = wb.lenses.Shortcut().findings(found)
    assert "a run takes 2 evaluations instead of 20 (90% saved)" in said[0]


def test_on_a_ring_a_skip_is_free_to_its_radius_and_no_farther():
    data = wb.DATASETS["ring"]()
    found = shortened(
        data.law, wb.DPMSolverPP(2), lambda p: wb.Grid.karras(p, 14), 320, data, samples=320
    )
    free = found["change"] <= found["change_null"].sel(bound="high")
    rho = found["rho"].values
    assert free.values[rho > 3].all() and not free.values[rho < 0.05].any()
    assert found["change"][-1] > 3 * found["change_se"][-1]
    last = found["nfe"].values[free.values].min()
    assert (
        f"a run takes {last} evaluations instead of 14" in wb.lenses.Shortcut().findings(found)[0]
    )


def test_a_network_s_run_begins_with_the_gaussian_of_its_data():
    digits = wb.DATASETS["digits"]()
    network = wb.Neural.from_data(digits, checkpoint="digits_slim")
    grid = lambda process: wb.Grid.karras(process, 8)  # noqa: E731
    found = shortened(network, wb.DPMSolverPP(2), grid, 48, digits, samples=48, skips=3)
    near, far = found["rms"].values[[1, -1]]
    assert near < 0.5 * far
    assert found["nfe"].values.tolist() == [8, 6, 3, 1]
    moved = wb.measure(
        "teleportation",
        wb.sample(wb.Diffusion(wb.EDM(), network), wb.Heun(), grid(wb.EDM()), range(4)),
        data=digits,
        samples=4,
        levels=3,
        steps=6,
    )
    assert (np.diff(moved["rms"]) > 0).all()  # the farther the skip, the dearer


def test_pairs_are_told_apart_only_where_their_laws_differ(generator):
    missed = 0
    for trial in range(100):
        x, more, reference = torch.randn(3, 48, 4, generator=generator, dtype=torch.float64)
        other = (x + 0.3 * more) / (1 + 0.3**2) ** 0.5  # of the same law
        one = compare_paired(x, other, reference, 0.1, seed=trial)
        missed += not one.low <= one.value <= one.high
    assert 0 < missed <= 25  # 10 expected; beyond with probability 1e-5
    wider = compare_paired(2 * x, x, reference)
    assert wider.value > wider.high and wider.p < 0.05 and wider.value > 2 * wider.error


def test_what_is_refused():
    law = wb.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    karras = lambda process: wb.Grid.karras(process, 4)  # noqa: E731
    with pytest.raises(NotImplementedError, match="the run has 8 samples and 4 steps; it needs 16"):
        shortened(law, wb.Heun(), karras, 8)
    with pytest.raises(NotImplementedError, match="no run to shorten"):
        data = wb.Data("draws", torch.randn(20, 2).double())
        wb.measure("shortcut", wb.Diffusion(wb.EDM(), law), data=data)
