"""What is recorded is what was there, and recording changes nothing."""

from itertools import pairwise

import pytest
import torch
from helpers import KINDS, LAWS, PROCESSES, relative

import workbench as wb
from workbench.sampling import FIELDS
from workbench.sampling.record import REDUCTIONS, bands, recordable

SAMPLERS = [wb.Euler(), wb.Heun(), wb.Heun("t"), wb.DDIM(1.0), wb.EulerMaruyama()]


class Counting(wb.Diffusion):
    """Counts the evaluations of its denoiser."""

    def __init__(self, process, denoiser):
        super().__init__(process, denoiser)
        self.calls, plain = 0, denoiser.denoise

        def denoise(*args):
            self.calls += 1
            return plain(*args)

        denoiser.denoise = denoise


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("name", KINDS)
def test_every_field_is_that_of_the_recorded_state(name, sampler, generator, seed):
    process = PROCESSES[name]
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.log_snr(process, steps=9)
    run = wb.sample(diffusion, sampler, grid, range(seed, seed + 5), wb.Record(list(FIELDS)))
    assert run["x"].shape == (10, 5, 3)
    for i, t in enumerate(run.t):
        x, sigma = run["x"][i], process(t).sigma
        lost = 1e-13 * x.abs().max().item() / sigma  # x and alpha D cancel where sigma is small
        for field in ("denoised", "noise", "score", "velocity"):
            truth = getattr(diffusion, field)(x, t)
            atol = lost / sigma if field == "score" else lost
            torch.testing.assert_close(run[field][i], truth, rtol=1e-10, atol=atol)
    start = wb.sampling.NoiseSource(range(seed, seed + 5), (3,)).start()
    assert torch.equal(run["x"][0], start * process.prior_std(grid.t[0]))
    assert torch.equal(run["x"][-1], run.final)


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
def test_every_node_asked_for_and_both_ends(every, generator):
    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["gaussian-full"](generator, 2))
    grid = wb.Grid.uniform(process, steps=14, final="denoise")
    whole = wb.sample(diffusion, wb.Heun(), grid, range(3), wb.Record(["x", "denoised"]))
    some = wb.sample(diffusion, wb.Heun(), grid, range(3), wb.Record(["x", "denoised"], every))
    expected = sorted({*range(0, 15, every), 14})
    assert list(some.kept) == expected
    assert some.t == tuple(grid.t[i] for i in expected)
    assert some.rho == tuple(grid.rho[i] for i in expected)
    for field in ("x", "denoised"):
        assert relative(some[field], whole[field][expected]) < 1e-13


@pytest.mark.parametrize("final", ["stop", "denoise"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_recording_costs_one_evaluation_at_most_and_none_is_counted(sampler, final, generator):
    """All these samplers evaluate D(x) where they stand; only the last node needs one more."""
    process = wb.RectifiedFlow()
    grid = wb.Grid.log_snr(process, steps=16, final=final)
    finals = []
    for record, more in ((None, 0), (wb.Record(["x"]), 0), (wb.Record(["x", "denoised"]), 1)):
        diffusion = Counting(process, LAWS["gaussian-full"](torch.Generator().manual_seed(1), 2))
        run = wb.sample(diffusion, sampler, grid, range(3), record)
        assert run.nfe == sampler.nfe(grid) == diffusion.calls - more
        finals.append(run.final)
    assert max(relative(final, finals[0]) for final in finals) < 1e-13


def test_where_a_method_does_not_evaluate_it_is_done_for_the_record(generator, seed):
    """A method that looks only at other states than x still has D(x) recorded."""

    class Elsewhere(wb.Sampler):
        order, stochastic = 1, False

        def rows(self, process, a, b):
            from workbench.sampling import Combine, Evaluate

            return (
                Combine("y", {"x": 0.5}),
                Evaluate("D", "y", a),
                Combine("x", {"x": 0.9, "D": 0.1}),
            )

    process = wb.VP()
    diffusion = wb.Diffusion(process, LAWS["mixture-equal"](generator, 2))
    grid = wb.Grid.uniform(process, steps=5)
    run = wb.sample(diffusion, Elsewhere(), grid, [seed], wb.Record(["x", "denoised"], every=2))
    assert run.nfe == 5
    for i, t in enumerate(run.t):
        assert relative(run["denoised"][i], diffusion.denoised(run["x"][i], t)) < 1e-14


def test_a_record_is_a_value():
    assert wb.Record("x") == wb.Record(["x", "x"]) == wb.Record(("x",), 1)
    assert wb.Record(["x"]) != wb.Record(["x"], 2)
    assert repr(wb.Record(["x", "score"], 3)) == "Record(['x', 'score'], every=3)"


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: wb.Record(["x", "speed"]), ["field was 'speed'", "x, denoised, noise, score"]),
        (lambda: wb.Record([]), ["fields were empty", "x, denoised"]),
        (lambda: wb.Record(["x"], every=0), ["every was 0", "at least 1"]),
        (lambda: wb.Record(["x"], every=1.5), ["every was 1.5", "whole number"]),
        (lambda: wb.Record(["x"], every="2"), ["every was '2'", "whole number"]),
        (lambda: wb.Record(["x"], every=True), ["every was True", "whole number"]),
    ],
)
def test_bad_records_are_refused_with_a_sentence(make, pieces):
    with pytest.raises(ValueError) as caught:
        make()
    for piece in pieces:
        assert piece in str(caught.value)


@pytest.mark.parametrize("field", ["noise", "score", "velocity"])
def test_what_needs_noise_cannot_be_recorded_without(field, generator):
    diffusion = wb.Diffusion(wb.EDM(), LAWS["gaussian-full"](generator, 2))
    grid = wb.Grid.karras(wb.EDM(), steps=4, final="denoise")
    with pytest.raises(ValueError, match=rf"{field} cannot be recorded at sigma = 0.*stop"):
        wb.sample(diffusion, wb.Heun(), grid, [1], wb.Record(["x", field]))


# -- reduced over samples ------------------------------------------------------------------------


def test_reductions_are_those_of_the_recorded_fields(generator, seed):
    """White noise has power 1 in each band; the power of all modes is that of the pixels."""
    process, shape = wb.VP(), (2, 5, 6)
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(shape).double(), 0.5))
    grid, seeds = wb.Grid.log_snr(process, 5), range(seed, seed + 300)
    names = [f"{field}.{how}" for field in FIELDS for how in ("spectrum", "moments")]
    run = wb.sample(diffusion, wb.Heun(), grid, seeds, wb.Record([*FIELDS, *names], every=2))
    alone = wb.sample(diffusion, wb.Heun(), grid, seeds, wb.Record(names, every=2))
    torch.testing.assert_close(run.final, alone.final, rtol=1e-13, atol=1e-13)
    assert run.nfe == alone.nfe and not alone.fields
    labels, _ = bands(torch.Size(shape))
    assert labels == (0, 1, 2, 3)
    for field in FIELDS:
        values, moments = run[field], alone[f"{field}.moments"]
        torch.testing.assert_close(moments.mean, values.mean(1))
        torch.testing.assert_close(moments.variance, values.var(1))
        power = torch.fft.fft2(values, norm="ortho").abs().square().mean(2)
        down, across = (torch.fft.fftfreq(n, 1 / n).double() for n in (5, 6))
        radius = (5 * torch.hypot(down[:, None] / 5, across / 6)).round()
        spectrum = run[f"{field}.spectrum"]
        for band in labels:
            mean = power[..., radius == band].mean(-1)
            torch.testing.assert_close(spectrum.mean[:, band], mean.mean(1))
            error = mean.std(1) / 300**0.5
            torch.testing.assert_close(spectrum.standard_error[:, band], error)
        torch.testing.assert_close(
            spectrum.mean, alone[f"{field}.spectrum"].mean, rtol=1e-12, atol=0
        )
    start = run["x.spectrum"]
    assert ((start.mean[0] - 1) / start.standard_error[0]).abs().max() < 5


def test_vectors_have_their_power_by_coordinate(generator):
    diffusion = wb.Diffusion(wb.EDM(), LAWS["mixture-full"](generator, 3))
    grid = wb.Grid.karras(wb.EDM(), 4)
    record = wb.Record(["x", "x.spectrum"])
    run = wb.sample(diffusion, wb.EulerMaruyama(), grid, range(20), record)
    torch.testing.assert_close(run["x.spectrum"].mean, run["x"].square().mean(1))
    ds = run.dataset
    assert ds["x.spectrum"].dims == ds["x.spectrum_se"].dims == ("time", "band")
    assert ds["band"].values.tolist() == [0, 1, 2]


def test_chunks_merge_to_the_whole(generator, seed):
    diffusion = wb.Diffusion(wb.VP(), LAWS["mixture-full"](generator, 3))
    grid, record = wb.Grid.log_snr(wb.VP(), 3), wb.Record(["denoised.moments", "x.spectrum"])
    cut = [seed, seed + 1, seed + 8, seed + 30]  # a chunk of one has no variance of its own
    runs = [wb.sample(diffusion, wb.Heun(), grid, range(a, b), record) for a, b in pairwise(cut)]
    whole = wb.sample(diffusion, wb.Heun(), grid, range(cut[0], cut[-1]), record)
    assert runs[0]["x.spectrum"].variance.isnan().all()
    for name in record.fields:
        merged = runs[0][name].merged(runs[1][name]).merged(runs[2][name])
        assert merged.count == 30
        torch.testing.assert_close(merged.mean, whole[name].mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(merged.variance, whole[name].variance, rtol=1e-9, atol=1e-14)


def test_reductions_are_of_the_state_itself(generator):
    """Not of the core variable, where a process moves the mean or works in a basis."""
    from workbench.processes import DCT, EqualSNR
    from workbench.processes.affine import OUVE

    condition, shape = torch.randn(3, generator=generator).double(), torch.Size((3, 4))
    spectral = EqualSNR(torch.full(shape, 0.7).double(), DCT(shape), wb.VP())
    cases = [
        wb.Diffusion(OUVE(), LAWS["mixture-full"](generator, 3), condition),
        wb.Diffusion(spectral, wb.Gaussian(torch.ones(shape).double(), 0.3)),
    ]
    fields = ["x", "velocity"]
    for diffusion in cases:
        grid = wb.Grid.uniform(diffusion.process, 4)
        record = wb.Record([*fields, *(f"{name}.moments" for name in fields)])
        run = wb.sample(diffusion, wb.Heun(), grid, range(9), record)
        for name in fields:
            torch.testing.assert_close(run[f"{name}.moments"].mean, run[name].mean(1))


def test_what_a_reduction_is_called():
    with pytest.raises(
        ValueError, match=r"'x\.power'; .*over samples: x\.moments, x\.rings, x\.spec"
    ):
        wb.Record(["x.power"])
    assert set(recordable()) - set(FIELDS) == {f"{f}.{how}" for f in FIELDS for how in REDUCTIONS}
    with pytest.raises(ValueError, match="score cannot be recorded at sigma = 0"):
        wb.Record(["score.moments"]).check(wb.Grid.uniform(wb.VP(), 2, final="denoise"))
