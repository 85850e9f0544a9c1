"""The loop walks rows: nothing more, and nothing in place."""

from types import SimpleNamespace

import pytest
import torch
from helpers import normals, relative

import workbench as wb
from workbench.sampling import Combine, Evaluate, Node, NoiseSource, Program, Step, walk
from workbench.sampling.fusing import Fused
from workbench.sampling.loop import bind

A, B, C = Node(1.0, 0.5, 0.8), Node(0.5, 0.8, 0.5), Node(0.0, 1.0, 0.0)


def denoise(x, alpha, sigma):
    return alpha * x - sigma


MODEL = SimpleNamespace(denoise=denoise)


def two_steps() -> Program:
    """Every kind of row: copies, sums, noise, an empty sum, a register kept over a step."""
    first = (
        Evaluate("D", "x", A),
        Combine("y", {"x": 2.0, "D": -1.0}, noise=0.5),
        Combine("zero", {"x": 0.0}),
        Evaluate("E", "y", B),
        Combine("x", {"y": 1.0, "E": 0.25, "zero": 3.0}),
    )
    second = (Combine("x", {"x": 1.0, "D": 0.125}, noise=0.25), Combine("x", {"x": 1.0}, noise=1.0))
    return Program((Step(A, B, first), Step(B, C, second)))


def test_rows_are_what_they_say(generator, seed):
    x, noise = normals(generator, 4, 3), NoiseSource(range(seed, seed + 4), (3,))
    z = [noise.step(draw) for draw in range(3)]
    kept, steps = x.clone(), []
    final, count = walk(
        two_steps(), MODEL, x, noise, on_step=lambda done, of: steps.append((done, of))
    )
    d = denoise(x, A.alpha, A.sigma)
    y = 2 * x - d + 0.5 * z[0]
    state = y + 0.25 * denoise(y, B.alpha, B.sigma)
    state = state + 0.125 * d + 0.25 * z[1]
    torch.testing.assert_close(final, state + z[2], rtol=1e-14, atol=1e-14)
    assert torch.equal(x, kept), "the state given is not written to"
    assert steps == [(1, 2), (2, 2)] and count == 2


def test_a_denoiser_that_hands_back_its_input_is_not_written_to(generator, seed):
    """Registers may share memory."""
    rows = (Evaluate("D", "x", A), Combine("x", {"x": 1.0}, noise=1.0), Combine("x", {"D": 2.0}))
    x = normals(generator, 2, 3)
    same, _ = walk(
        Program((Step(A, B, rows),)),
        SimpleNamespace(denoise=lambda x, alpha, sigma: x),
        x,
        NoiseSource([seed, 1], (3,)),
    )
    assert torch.equal(same, 2 * x)


def test_what_on_step_raises_ends_the_run(generator, seed):
    calls = []

    def stop(done, total):
        calls.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(two_steps(), MODEL, normals(generator, 2, 3), NoiseSource([1, 2], (3,)), on_step=stop)
    assert calls == [1]


def test_no_graph_is_kept(generator):
    x = normals(generator, 2, 3).requires_grad_()
    assert not walk(two_steps(), MODEL, x, NoiseSource([1, 2], (3,)))[0].requires_grad


@pytest.mark.parametrize("name", ["Heun", "RK4", "DDPM", "DPMSolver", "IPNDM", "DEIS"])
def test_fused_rows_are_the_rows_they_stand_for(name, generator):
    """An evaluation and the combination after it in one go: the same run, D never formed."""
    law = wb.Mixture(
        torch.full((4,), 0.25).double(), normals(generator, 4, 2), torch.full((4,), 0.1).double()
    )
    grid, x = wb.Grid.log_snr(wb.VP(), 12), normals(generator, 5, 2)
    program = wb.SAMPLERS[name]().program(wb.VP(), grid)
    ends = []
    for fuse in (False, True):
        bound = bind(program, law, x, fuse)
        ends.append(walk(bound, law, x, NoiseSource(range(5), (2,))))
    kinds = [row[0] for step in bound.steps for row in step.rows]
    assert kinds.count(Fused) >= 11
    assert relative(ends[1][0], ends[0][0]) < 1e-12 and ends[0][1] == ends[1][1] == program.nfe
