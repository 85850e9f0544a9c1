"""The loop walks rows: nothing more, and nothing in place."""

from types import SimpleNamespace

import pytest
import torch
from helpers import normals, relative

import workbench as wb
from workbench import trajectory
from workbench.sampling import Combine, Evaluate, Node, NoiseSource, Program, Step, walk
from workbench.sampling.loop import bind
from workbench.sampling.plan import planned

GRID = wb.Grid.log_snr(wb.VP(), 12)
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


LINEAR = [
    name
    for name, kind in wb.SAMPLERS.items()
    if kind().program(wb.VP(), GRID).linear and name != "GENIE"  # which asks for slopes
]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("count", [5, 1100])
def test_a_program_on_one_buffer_is_the_rows_it_stands_for(name, count, generator):
    """Products, a softmax or powers of two, D never formed: the same run of few and of many."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    law = wb.Mixture(weights, normals(generator, 4, 2), torch.full((4,), 0.1).double())
    x = normals(generator, count, 2)
    program, ends = wb.SAMPLERS[name]().program(wb.VP(), GRID), []
    for states_alone in (False, True):
        bound = bind(program, law, x, states_alone)
        ends.append(walk(bound, law, x, NoiseSource(range(count), (2,))))
    assert bound.straight.few == (count == 5) and ends[0][1] == ends[1][1] == program.nfe

    class Shaken:
        """The last digit of every evaluation is anyone's: some samplers carry it far."""

        @staticmethod
        def denoise(x, alpha, sigma):
            last = 2e-15 * (x / alpha).abs() * normals(generator, *x.shape)
            return law.denoise(x, alpha, sigma) + last

    shaken = walk(program, Shaken, x, NoiseSource(range(count), (2,)))[0]
    assert relative(ends[1][0], ends[0][0]) < 1e-12 + relative(shaken, ends[0][0])


@pytest.mark.parametrize("count", [5, 1100])
def test_one_buffer_holds_pure_noise_a_condition_and_levels_that_single_precision_cannot(
    count, generator
):
    means, weights = normals(generator, 4, 2), torch.full((4,), 0.25).double()
    law = wb.Mixture(weights, 3 * means, torch.full((4,), 1e-4).double())
    process, x = wb.IRSDE(), 3 + normals(generator, count, 2)
    affine = wb.Diffusion(process, law, condition=torch.ones(2).double())
    heun = wb.Heun(axis="t")
    plain = wb.Diffusion(wb.RectifiedFlow(), law)
    for diffusion, sampler in ((affine, heun), (plain, wb.Heun()), (plain, wb.DDPM())):
        grid = wb.Grid.uniform(diffusion.process, 8, final="denoise")
        assert planned(diffusion, sampler, grid, x, True).bound.straight
        run = wb.sample(diffusion, sampler, grid, range(count), x=x)
        rows = wb.sample(diffusion, sampler, grid, range(count), wb.Record("denoised"), x=x)
        assert relative(run.final, rows.final) < 1e-11 and run.nfe == rows.nfe
    short = wb.sample(plain.to(torch.float32), wb.Heun(), grid, range(count), x=x.float())
    long = wb.sample(plain, wb.Heun(), grid, range(count), x=x.float().double())
    # A sample half way between two components may go to either.
    assert (short.final - long.final).abs().quantile(0.95) < 1e-3 * long.final.abs().max()


def test_states_too_far_out_for_powers_of_the_logits_are_walked_row_by_row(generator):
    """As long as components are less than 36 nats apart no maximum is taken off: a state at 1e4
    standard deviations overflows then.
    """
    law = wb.Mixture(torch.full((4,), 0.25), normals(generator, 4, 2).float(), torch.ones(4))
    diffusion, grid = wb.Diffusion(wb.VP(), law), wb.Grid.log_snr(wb.VP(), 8)
    x = normals(generator, 1100, 2).float()
    x[3] *= 1e4
    given = (diffusion, wb.Heun(), grid, range(1100))
    run = wb.sample(*given, wb.Record(["x"]), x=x)
    rows = wb.sample(*given, wb.Record(["x", "denoised"]), x=x)
    assert planned(diffusion, wb.Heun(), grid, x, True).bound.straight
    assert relative(run.final, rows.final) < 1e-5 and relative(run["x"], rows["x"]) < 1e-5


@pytest.mark.parametrize("count", [20, 3000])
@pytest.mark.parametrize("sampler", [wb.Heun(), wb.EulerMaruyama()], ids=repr)
def test_states_that_go_far_are_told_however_they_are_looked_at(
    sampler, count, generator, monkeypatch
):
    """All at once at the end, or their ends after each step; kept in the record, or not."""
    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    law = wb.Mixture(weights, 2 * normals(generator, 8, 2), 0.01 * torch.ones(8).double())
    diffusion, grid = wb.Diffusion(wb.VP(), law), wb.Grid.karras(wb.VP(), 16)
    assert planned(diffusion, sampler, grid, normals(generator, count, 2), True).bound.straight
    monkeypatch.setattr(trajectory, "FAR", 0.5)
    runs = []
    for held in (trajectory.HELD, 0):
        monkeypatch.setattr(trajectory, "HELD", held)
        runs += [
            wb.sample(diffusion, sampler, grid, range(count), one) for one in (None, wb.Record())
        ]
    notes = {run.attrs["notes"] for run in runs}
    assert len(notes) == 1 and trajectory.FAR_NOTE in notes.pop()
    assert all(relative(run.final, runs[0].final) < 1e-12 for run in runs)
    peak = runs[1]["x"][1:].abs().max().item()
    assert f"the farthest of the run is at {peak:.3g}" in runs[0].attrs["notes"]
