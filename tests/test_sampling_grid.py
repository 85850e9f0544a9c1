"""Grids by their formulas, their exact ends, and the counting of steps."""

import math

import mpmath
import pytest
import torch
from helpers import PROCESSES, log_uniform, random_process, uniform

import workbench as wb

FINALS = ["stop", "denoise"]


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("name", wb.GRIDS)
@pytest.mark.parametrize("kind", PROCESSES)
def test_every_grid_has_its_steps_and_both_ends(kind, name, final, generator):
    for steps in (1, 2, 3, 48):
        process = random_process(kind, generator)
        grid = wb.GRIDS[name](process, steps=steps, final=final)
        assert grid.steps == steps and len(grid) == len(grid.t) == steps + 1
        assert grid.final == final and grid.name == name
        assert all(a > b for a, b in zip(grid.t, grid.t[1:], strict=False))
        assert all(a > b for a, b in zip(grid.rho, grid.rho[1:], strict=False))
        assert grid.t[0] == process.t_max
        if final == "denoise":
            assert grid.nodes[-1] == (0.0, 1.0, 0.0) and grid.rho[-1] == 0.0
        if steps > (final == "denoise"):
            assert grid.t[-1 - (final == "denoise")] == process.t_min
        for node in grid.nodes[: len(grid) - (final == "denoise")]:
            c = process(node.t)
            assert node.alpha == pytest.approx(c.alpha, rel=1e-15)
            assert node.sigma == pytest.approx(c.sigma, rel=1e-15)
            assert node.rho == pytest.approx(c.rho, rel=1e-12)
        assert repr(grid) == f"Grid.{name}({steps} steps, t {process.t_max:g} to {grid.t[-1]:g})"


def test_karras_is_equation_5(generator):
    """sigma_i = (s_max^(1/7) + i/(n-1) (s_min^(1/7) - s_max^(1/7)))^7, then 0: 18 steps of EDM."""
    grid = wb.Grid.karras(wb.EDM(), steps=18, final="denoise")
    for i in range(18):
        high, low = (
            mpmath.mpf(80.0) ** (mpmath.mpf(1) / 7),
            mpmath.mpf(0.002) ** (mpmath.mpf(1) / 7),
        )
        expected = (high + mpmath.mpf(i) / 17 * (low - high)) ** 7
        assert grid.sigma[i] == pytest.approx(float(expected), rel=1e-13)
    exponent = uniform(generator, 1, 10)
    for process in (wb.VP(), wb.EDM()):
        grid = wb.Grid.karras(process, steps=50, exponent=exponent)
        roots = torch.tensor(grid.rho, dtype=torch.float64) ** (1 / exponent)
        gaps = roots.diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(50), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", PROCESSES)
def test_spacings(kind, generator):
    """Equal steps in t, in the root of t, in log rho; there a first step, of many one in 14 more,
    leave pure noise."""
    process = random_process(kind, generator)
    lead = math.isinf(process(process.t_max).rho)
    spaced = {"uniform": lambda node: node.t, "quadratic": lambda node: math.sqrt(node.t)}
    spaced["log_snr"] = lambda node: math.log(node.rho)
    for name, axis in spaced.items():
        for steps, ahead in ((40, 0), (140, 10)):
            grid = wb.GRIDS[name](process, steps=steps)
            nodes, leads = grid.nodes, name == "log_snr" and lead
            parts = (nodes[1 + ahead :], nodes[1 : 2 + ahead]) if leads else (nodes,)
            for part in parts:
                gaps = torch.tensor([axis(node) for node in part], dtype=torch.float64).diff()
                torch.testing.assert_close(gaps, gaps.mean().expand(len(gaps)), rtol=1e-9, atol=0)
            if leads:
                assert grid.t[0] == 1.0 and grid.t[1 + ahead] == 1.0 - process.t_min
                shorter = (35 / 140) ** 2 if ahead else 1.0
                assert 1 - grid.t[1] == pytest.approx(shorter * process.t_min, rel=1e-9)


@pytest.mark.parametrize("name", ["log_snr", "karras"])
@pytest.mark.parametrize("kind", ["Cosine", "RectifiedFlow", "Resfusion"])
def test_the_error_of_leaving_pure_noise_is_no_plateau(kind, name):
    """On Gaussian data, where the law of the output is exact; a first step of one length for all
    numbers of steps left 1e-5 to 3e-4 of the data's spread."""
    variances = torch.tensor([9.0, 1.0, 0.2, 0.01], dtype=torch.float64)
    data = wb.Gaussian(torch.tensor([0.5, -1.0, 2.0, 0.3]).double(), variances)
    affine = wb.processes.AFFINE.get(kind)
    process = affine() if affine else wb.PROCESSES[kind]()
    diffusion = wb.Diffusion(process, data, data.mean - 0.1 if affine else None)
    errors, firsts = [], []
    for steps in (100, 400):
        grid = wb.GRIDS[name](process, steps)
        firsts.append(grid.t[0] - grid.t[1])
        law = wb.exact.law(diffusion, wb.UniPC(3), grid)
        errors.append(wb.exact.w2(law, diffusion.marginal(grid.t[-1])))
    assert firsts[1] == pytest.approx(firsts[0] / 16, rel=1e-6)
    assert errors[1] < errors[0] / 4**2.8  # of order 3


@pytest.mark.parametrize("t_min", [0.3, 0.4, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["log_snr", "karras"])
def test_pure_noise_is_left_even_when_the_end_is_near(name, t_min):
    """With t_min past the middle, 1 - t_min would lie beyond it: times must still decrease."""
    for steps in (1, 2, 3, 10):
        grid = wb.GRIDS[name](wb.RectifiedFlow(t_min=t_min), steps=steps)
        assert all(a > b for a, b in zip(grid.t, grid.t[1:], strict=False)), grid.t
        assert (grid.t[0], grid.t[-1], grid.steps) == (1.0, t_min, steps)


def test_times_are_kept_as_given(generator):
    times = sorted((uniform(generator, 0.001, 1) for _ in range(6)), reverse=True)
    grid = wb.Grid.times(wb.VP(), times)
    assert grid.t == tuple(times) and grid.final == "stop"
    ended = wb.Grid.times(wb.VP(), torch.tensor(times, dtype=torch.float64), final="denoise")
    assert ended.nodes == (*grid.nodes, (0.0, 1.0, 0.0))
    assert wb.Grid.times(wb.EDM(), [1.0], final="denoise").sigma == (1.0, 0.0)
    assert wb.Grid.times(wb.EDM(), [80.0, 1.0, 0.0]).sigma == (80.0, 1.0, 0.0)


def test_the_smallest_of_steps_are_still_steps(generator):
    """10,000 of them, on a range of one part in a thousand."""
    t_min = 1 - log_uniform(generator, 1e-3, 1e-2)
    grid = wb.Grid.uniform(wb.VP(t_min=t_min), steps=10_000)
    assert all(a > b for a, b in zip(grid.t, grid.t[1:], strict=False))


@pytest.mark.parametrize(
    ("make", "error", "pieces"),
    [
        (lambda: wb.Grid.uniform(wb.VP(), steps=0), ValueError, ["steps was 0", "at least 1"]),
        (lambda: wb.Grid.log_snr(wb.VP(), steps=2.5), ValueError, ["steps was 2.5", "whole"]),
        (lambda: wb.Grid.karras(wb.VP(), steps=True), ValueError, ["steps was True", "whole"]),
        (lambda: wb.Grid.karras(wb.VP(), steps=10**400), ValueError, ["steps was 1000", "10000"]),
        (lambda: wb.Grid.quadratic(wb.VP(), final="end"),
         ValueError, ["final was 'end'", "'stop', 'denoise'"]),
        (lambda: wb.Grid.karras(wb.VP(), exponent=0.0), ValueError, ["exponent was 0.0", "than 0"]),
        (lambda: wb.Grid.times(wb.VP(), [0.5]), ValueError, ["t was [0.5]", "at least two"]),
        (lambda: wb.Grid.times(wb.VP(), []), ValueError, ["t was []", "at least two"]),
        (lambda: wb.Grid.times(wb.VP(), [0.5, 0.7]), ValueError, ["0.5 to 0.7", "must decrease"]),
        (lambda: wb.Grid.times(wb.VP(), [0.5, 0.5]), ValueError, ["0.5 to 0.5", "must decrease"]),
        (lambda: wb.Grid.times(wb.VP(), [0.5, math.nan]), ValueError, ["each a finite number"]),
        (lambda: wb.Grid.times(wb.VP(), [0.5, 0.0], final="denoise"),
         ValueError, ["0 to 0", "must decrease"]),
        (lambda: wb.Grid.times(wb.VP(), [2.0, 0.5]), ValueError, ["t was 2", "from 0 to 1"]),
        (lambda: wb.Grid.times(wb.VP(), [1.0, -0.5]), ValueError, ["t was -0.5", "from 0 to 1"]),
        (lambda: wb.Grid.times(wb.VP(), [1.0, 0.5], final="end"),
         ValueError, ["final was 'end'", "'stop', 'denoise'"]),
        (lambda: wb.Grid.log_snr(wb.VP), TypeError, ["process was", "a Process", "call it first"]),
        (lambda: wb.Grid.uniform("VP"), TypeError, ["process was 'VP'", "a Process"]),
        (lambda: wb.Grid.times(wb.VP, [1.0, 0.5]), TypeError, ["process was", "call it first"]),
    ],
)  # fmt: skip
def test_bad_grids_are_refused_with_a_sentence(make, error, pieces):
    with pytest.raises(error) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)
