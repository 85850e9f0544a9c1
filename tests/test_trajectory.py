"""What a run leaves and what it refuses."""

import math

import numpy as np
import pytest
import torch
from helpers import LAWS, normals, relative, ring

import workbench as wb
from workbench.lenses.portrait import display_scale
from workbench.processes import DCT, EqualSNR, HeatDissipation
from workbench.processes.affine import OUVE
from workbench.sampling import NoiseSource
from workbench.studies import Study, build, keep

FINE = wb.Diffusion(wb.VP(), ring())
GRID = wb.Grid.log_snr(wb.VP(), steps=4)


def test_starting_states_are_those_given_or_the_prior_by_seed(generator, seed):
    seeds = [seed, seed + 5, 0]
    z = NoiseSource(seeds, (2,)).start()
    for process, scale in ((wb.VP(), 1.0), (wb.EDM(), 80.0), (wb.RectifiedFlow(), 1.0)):
        diffusion, grid = wb.Diffusion(process, ring()), wb.Grid.karras(process, steps=3)
        run = wb.sample(diffusion, wb.Heun(), grid, seeds, wb.Record("x"))
        assert torch.equal(run["x"][0], scale * z)
    later = wb.Grid.times(wb.EDM(), [3.0, 1.0])
    run = wb.sample(wb.Diffusion(wb.EDM(), ring()), wb.Heun(), later, seeds, wb.Record("x"))
    assert torch.equal(run["x"][0], 3.0 * z), "the prior is that of the first node"
    x = normals(generator, 3, 2)
    assert torch.equal(wb.sample(FINE, wb.Heun(), GRID, seeds, wb.Record("x"), x=x)["x"][0], x)


def test_a_run_whose_states_go_too_far_says_so():
    """At which step and t, and how many samples; of one that comes back at the end too."""
    points = wb.Empirical(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).double())
    normal = wb.Gaussian(torch.zeros(2).double(), 1.0)
    for data, sampler, steps, final, far in (
        (normal, wb.Heun(), 2, "stop", True),
        (points, wb.Heun(), 2, "denoise", True),
        (normal, wb.Heun(), 20, "stop", False),
        (points, wb.DDIM(1.0), 2, "denoise", False),
    ):
        diffusion = wb.Diffusion(wb.OU(), data)
        grid = wb.Grid.log_snr(diffusion.process, steps, final)
        run = wb.sample(diffusion, sampler, grid, range(30), wb.Record(["x"]))
        start, prior = run["x"][0].square().mean().sqrt().item(), math.sqrt(0.5)
        scale = max(start, prior, data.std, data.mean.abs().max().item())
        beyond = (run["x"].abs().amax(2) > 100 * scale).sum(1).tolist()
        assert any(beyond) == far and (not far or final == "stop" or not beyond[-1])
        if not far:
            assert "notes" not in run.attrs
            continue
        first = next(i for i, count in enumerate(beyond) if count)
        note = run.attrs["notes"]
        assert f"({scale:.3g}): after step {first} of {steps}, at t = {grid.t[first]:g}" in note
        assert f"{beyond[first]} of 30 samples are beyond {100 * scale:.3g}" in note
        assert f"at {run['x'].abs().max().item():.3g}. Take more steps" in note
        asked = []
        again = wb.sample(
            diffusion, sampler, grid, range(30), on_step=lambda k, n, to=asked: to.append((k, n))
        )
        assert asked == [(k + 1, steps) for k in range(steps)]
        assert again.nfe == run.nfe and again.attrs["notes"] == note


def test_notes_of_chunks_are_kept_and_that_of_far_states_once():
    from workbench.studies.run import with_notes
    from workbench.trajectory import FAR_NOTE

    one, two = {"nfe": 1, "notes": f"A.\n{FAR_NOTE} (1)."}, {"nfe": 2, "notes": "A.\nB."}
    assert with_notes({}, two) == two and with_notes({"notes": "A."}, {"nfe": 3})["notes"] == "A."
    both = with_notes(one, {**two, "notes": f"B.\n{FAR_NOTE} (7)."})
    assert both == {"nfe": 2, "notes": f"A.\n{FAR_NOTE} (1).\nB."}


def test_a_basis_with_equal_levels_changes_nothing(generator):
    """EqualSNR of a flat spectrum is the base process in other coordinates: one run, two ways."""
    shape = torch.Size((2, 2))
    law = LAWS["mixture-full"](generator, 4)
    law = wb.Mixture(law.weights, law.means.reshape(-1, *shape), law.covs)
    flat = torch.full(shape, 0.7).double()
    fields, x = ["x", "denoised", "noise", "score", "velocity"], normals(generator, 5, *shape)
    for base in (wb.VP(), wb.RectifiedFlow()):
        spectral = EqualSNR(flat, DCT(shape), base)
        for sampler in (wb.DDIM(), wb.Heun(), wb.Heun("t"), wb.RK4()):
            runs = [
                wb.sample(
                    wb.Diffusion(process, law),
                    sampler,
                    wb.Grid.uniform(process, 9),
                    range(5),
                    wb.Record(fields, every=2),
                    x=x,
                )
                for process in (base, spectral)
            ]
            for name in fields:
                assert relative(runs[1][name], runs[0][name]) < 1e-8, (base, sampler, name)
            assert runs[0].nfe == runs[1].nfe
            assert set(runs[0].dataset.coords) == set(runs[1].dataset.coords)


def test_an_affine_run_is_shown_where_the_state_is(generator, seed):
    """The sampler walks x - m mu; what is recorded and returned is x, its velocity dx/dt."""
    condition = normals(generator, 3)
    diffusion = wb.Diffusion(OUVE(), LAWS["mixture-full"](generator, 3), condition)
    grid = wb.Grid.log_snr(OUVE(), 12)
    run = wb.sample(
        diffusion, wb.Heun(), grid, range(seed, seed + 6), wb.Record(["x", "velocity", "denoised"])
    )
    prior = NoiseSource(range(seed, seed + 6), (3,)).start() * OUVE().prior_std(grid.t[0])
    assert relative(run["x"][0], condition + prior) < 1e-12  # SGMSE+ starts about the condition
    for i, t in enumerate(grid.t):
        assert relative(run["velocity"][i], diffusion.velocity(run["x"][i], t)) < 1e-11
        assert relative(run["denoised"][i], diffusion.denoised(run["x"][i], t)) < 1e-11
    assert torch.equal(run["x"][-1], run.final)
    again = wb.sample(diffusion, wb.Heun(), grid, range(6), x=run["x"][0])
    assert relative(again.final, run.final) < 1e-12


def test_a_process_without_a_prior_asks_for_the_states(generator):
    shape = torch.Size((3, 4))
    process = HeatDissipation(DCT(shape))
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(shape).double(), 1.0))
    grid = wb.Grid.uniform(process, 4)
    with pytest.raises(ValueError, match="keeps part of the data at t = 1"):
        wb.sample(diffusion, wb.DDIM(), grid, range(2))
    begin = diffusion.diffuse(normals(generator, 2, *shape), 1.0, normals(generator, 2, *shape))
    assert wb.sample(diffusion, wb.DDIM(), grid, range(2), x=begin).final.isfinite().all()
    with pytest.raises(ValueError, match="one rho per mode"):
        wb.Grid.log_snr(process, 4)


def test_precision_is_that_asked_for(generator, seed):
    """Noise is drawn in float64 and rounded; a float32 run is near the float64 one."""
    seeds = range(seed, seed + 20)
    double = wb.sample(FINE, wb.DDIM(1.0), GRID, seeds)
    single = wb.sample(FINE, wb.DDIM(1.0), GRID, seeds, dtype=torch.float32)
    assert single.final.dtype == torch.float32 and single.attrs["dtype"] == "float32"
    torch.testing.assert_close(single.final.double(), double.final, rtol=0, atol=1e-4)


def test_progress_and_a_way_out():
    steps = []
    wb.sample(FINE, wb.Heun(), GRID, [1], on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done, total):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        wb.sample(FINE, wb.Heun(), GRID, [1], on_step=stop)


@pytest.mark.parametrize(
    ("event", "dims"),
    [
        ((2,), ("dim",)),
        ((3, 4), ("row", "column")),
        ((2, 3, 4), ("channel", "row", "column")),
        ((1, 2, 3, 4), ("event_0", "event_1", "event_2", "event_3")),
    ],
)
def test_the_dataset_is_labelled(event, dims, generator, seed):
    process = wb.RectifiedFlow()
    diffusion = wb.Diffusion(process, wb.Gaussian(normals(generator, *event), 0.3))
    grid = wb.Grid.log_snr(process, steps=6, final="denoise")
    record = wb.Record(["x", "denoised"], every=2)
    run = wb.sample(diffusion, wb.Heun(), grid, range(seed, seed + 5), record)
    ds = run.dataset
    assert ds["x"].dims == ds["denoised"].dims == ("time", "sample", *dims)
    assert ds["final"].dims == ("sample", *dims)
    for name in ("x", "denoised"):
        assert np.array_equal(ds[name].values, run[name].numpy())
    assert np.array_equal(ds["final"].values, run.final.numpy())
    kept = [0, 2, 4, 6]
    assert ds["step"].values.tolist() == kept
    for name in ("t", "alpha", "sigma", "rho"):
        assert ds[name].values.tolist() == [getattr(grid, name)[i] for i in kept]
    assert (ds["log_snr"].values[0], ds["log_snr"].values[-1]) == (-math.inf, math.inf)
    assert ds["log_snr"].values[1] == pytest.approx(process(grid.t[2]).log_snr, rel=1e-12)
    assert ds["seed"].values.tolist() == list(range(seed, seed + 5)) == list(run.seeds)
    assert ds.attrs["nfe"] == run.nfe == 10
    expected = {"process": repr(process), "sampler": "Heun(axis='rho')", "grid": repr(grid)}
    expected |= {"stochastic": 0, "dtype": "float64", "device": "cpu", "workbench": wb.__version__}
    assert expected.items() <= ds.attrs.items()
    assert ds.attrs["data_std"] == pytest.approx(math.sqrt(0.3)) and ds.attrs["seconds"] >= 0
    assert all(ds[name].attrs["long_name"] for name in [*ds.data_vars, *ds.coords])


def test_arrays_are_not_copied():
    run = wb.sample(FINE, wb.Heun(), GRID, range(3), wb.Record("x"))
    assert np.shares_memory(run.dataset["x"].values, run["x"].numpy())


def test_without_a_record_only_the_end_is_kept():
    run = wb.sample(FINE, wb.Heun(), GRID, range(3))
    assert list(run.dataset.data_vars) == ["final"] and run.kept == (0, 4)
    with pytest.raises(
        KeyError, match=r"'x' was not recorded \(nothing was\).*wb\.Record\(\['x'\]\)"
    ):
        run["x"]


X = torch.zeros(2, 2).double()


@pytest.mark.parametrize(
    ("call", "error", "pieces"),
    [
        (lambda: wb.sample(FINE, wb.Heun, GRID, [1]),
         TypeError, ["sampler was", "a Sampler", "call it first", "wb.Heun()"]),
        (lambda: wb.sample(wb.VP(), wb.Heun(), GRID, [1]),
         TypeError, ["diffusion was VP(", "a Diffusion"]),
        (lambda: wb.sample(FINE, wb.Heun(), [1.0, 0.5], [1]),
         TypeError, ["grid was [1.0, 0.5]", "a Grid"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1], record=["x"]),
         TypeError, ["record was ['x']", "a Record"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1], wb.Record),
         TypeError, ["record was", "a Record", "call it first", "wb.Record()"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1, 2], x=[[0.0, 0.0], [1.0, 1.0]]),
         TypeError, ["x was [[0.0", "a Tensor"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, []), ValueError, ["seeds was empty"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1, -2]), ValueError, ["a seed was -2"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1, 2, 3], x=X),
         ValueError, ["x has shape (2, 2)", "3 seeds", "(3, 2)"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1, 2], x=X.float()),
         TypeError, ["x is torch.float32", "torch.float64"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1, 2], x=X * math.nan),
         ValueError, ["x holds 4 values that are not finite"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [10**5000]),
         ValueError, ["a seed was a number of too many digits", "from 0 to 2^63 - 1"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1], dtype=torch.complex64),
         TypeError, ["dtype was torch.complex64", "floating", "torch.float64"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1], dtype="float32"),
         TypeError, ["dtype was 'float32'", "floating dtype of torch"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1], device="gpu"),
         ValueError, ["device was 'gpu'", "may be cpu"]),
        (lambda: wb.sample(FINE, wb.Heun(), GRID, [1], device="cuda:99"),
         ValueError, ["device was 'cuda:99'", "may be cpu"]),
        (lambda: wb.sample(FINE, wb.Heun(), wb.Grid.log_snr(wb.VP(0.2), steps=4), [1]),
         ValueError, ["Grid.log_snr(4 steps", "another process than VP(beta_min=0.1"]),
        (lambda: wb.sample(FINE, wb.Heun(), wb.Grid.log_snr(wb.RectifiedFlow(), steps=4), [1]),
         ValueError, ["made for another process than VP("]),
        (lambda: wb.sample(FINE, wb.Heun(), wb.Grid.karras(wb.EDM(), steps=4), [1]),
         ValueError, ["made for another process than VP("]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(call, error, pieces):
    with pytest.raises(error) as caught:
        call()
    for piece in pieces:
        assert piece in str(caught.value)


def test_a_grid_of_the_same_coefficients_will_do(generator):
    """t_min is where grids stop; it does not make another process."""
    grid = wb.Grid.log_snr(wb.VP(t_min=0.01), steps=4)
    assert wb.sample(FINE, wb.Heun(), grid, [1]).grid is grid
    law = LAWS["gaussian-full"](generator, 2)
    ends = wb.Grid.times(wb.EDM(sigma_max=200.0), [70.0, 0.0])
    diffusion = wb.Diffusion(wb.EDM(), law)
    assert wb.sample(diffusion, wb.Heun(), ends, [1], x=X[:1]).nfe == 1


class _Breaks(wb.Denoiser):
    """A Gaussian that loses some samples below a noise level."""

    def __init__(self, below: float, rows: int, once: bool = False) -> None:
        self.law, self.below, self.rows, self.once = (
            wb.Gaussian(torch.zeros(2).double(), 1.0),
            below,
            rows,
            once,
        )
        self.event_shape, self.dtype, self.device = (
            self.law.event_shape,
            torch.float64,
            self.law.device,
        )
        self.mean = self.law.mean

    @property
    def std(self) -> float:
        return self.law.std

    def posterior_mean(self, x, alpha, sigma):
        out = self.law.denoise(x, alpha, sigma).clone()
        if sigma / alpha < self.below:
            out[: self.rows] = math.nan
            self.below = 0.0 if self.once else self.below
        return out


def test_numbers_that_are_not_finite_are_named_and_the_run_until_then_is_kept():
    process = wb.EDM()
    grid = wb.Grid.log_snr(process, 12)
    bad = next(i for i, rho in enumerate(grid.rho) if rho < 1.0)
    diffusion = wb.Diffusion(process, _Breaks(1.0, 3))
    with pytest.raises(wb.RunError) as raised:
        wb.sample(diffusion, wb.DDIM(), grid, range(7), record=wb.Record(["x", "denoised"]))
    sentence, run = str(raised.value), raised.value.run
    assert f"step {bad + 1}," in sentence and f"rho = {grid.rho[bad]:.4g}" in sentence
    assert "3 of 7 samples" in sentence and "the denoiser answered" in sentence
    assert run.attrs["incomplete"] == sentence
    good = wb.sample(
        wb.Diffusion(process, diffusion.denoiser.law),
        wb.DDIM(),
        grid,
        range(7),
        record=wb.Record(["x"]),
    )
    assert run.kept == tuple(range(bad + 1))
    assert torch.equal(run["x"], good["x"][: bad + 1]) and torch.equal(run.final, good["x"][bad])
    assert run.dataset.sizes["time"] == bad + 1


def test_a_denoiser_that_breaks_only_once_is_told_apart():
    process = wb.EDM()
    diffusion = wb.Diffusion(process, _Breaks(1.0, 1, once=True))
    with pytest.raises(wb.RunError, match="not give the same answer"):
        wb.sample(diffusion, wb.DDIM(), wb.Grid.log_snr(process, 12), range(4))


class _Answers(wb.Denoiser):
    """Knows nothing of its data but an answer."""

    event_shape, dtype, device = torch.Size((2,)), torch.float64, torch.device("cpu")

    def __init__(self, answer) -> None:
        self._answer = answer

    @property
    def std(self):
        raise RuntimeError("never measured")

    def posterior_mean(self, x, alpha, sigma):
        return self._answer(x)


def test_a_denoiser_that_knows_only_its_answer_is_sampled_to_the_end():
    diffusion = wb.Diffusion(wb.VP(), _Answers(lambda x: 0.5 * x))
    run = wb.sample(
        diffusion, wb.Heun(), GRID, range(50), wb.Record("x"), dtype=torch.float64, device="cpu"
    )
    dataset = run.dataset
    assert "data_std" not in dataset.attrs and dataset.attrs["seconds"] >= 0
    spread = math.sqrt(dataset["final"].var("sample").mean())  # what is known of the data's size
    scale = np.hypot(dataset["alpha"], dataset["sigma"] / spread)
    np.testing.assert_allclose(display_scale(dataset), scale, rtol=1e-14)
    short = wb.sample(diffusion, wb.Heun(), GRID, [1], dtype=torch.float32)
    assert short.final.dtype == torch.float32


def test_an_answer_of_the_wrong_shape_or_dtype_is_refused_with_a_sentence():
    class Whole(_Answers):
        def denoise(self, x, alpha, sigma):
            return self._answer(x)

    for answer, told in (
        (lambda x: x[:, :1], "(3, 1)"),
        (lambda x: x.T.contiguous(), "(2, 3)"),
        (lambda x: x[0], "(2,)"),
        (lambda x: x.float(), "(3, 2) in float32"),
    ):
        for kind in (_Answers, Whole):
            with pytest.raises(ValueError) as caught:
                wb.sample(wb.Diffusion(wb.VP(), kind(answer)), wb.Heun(), GRID, range(3))
            assert f"answered with shape {told}" in str(caught.value)
            assert "states of shape (3, 2)" in str(caught.value)


def test_an_order_above_what_the_grid_allows_is_said(seed):
    diffusion = wb.Diffusion(wb.VP(), ring())
    for sampler in (wb.DPMSolverPP(3), wb.UniPC(3), wb.DEIS(3), wb.DPMSolverV3(3)):
        short, enough = (wb.Grid.log_snr(wb.VP(), n, "denoise") for n in (3, 4))
        notes = wb.sample(diffusion, sampler, short, [seed]).attrs["notes"]
        assert "looks back over 3 evaluations" in notes and "2 steps of its kind" in notes
        assert "notes" not in wb.sample(diffusion, sampler, enough, [seed]).attrs


def test_a_run_is_asked_for_by_time_noise_level_step_and_seed(generator):
    """The nearest recorded nodes; with the class and the condition that its samples were given."""
    run = wb.sample(FINE, wb.Heun(), GRID, range(5, 9), wb.Record(["x"]))
    ds, (high, *_, low) = run.dataset, GRID.t
    xr = pytest.importorskip("xarray")
    for asked, place in (({"t": GRID.t[2] * 1.01}, 2), ({"rho": GRID.rho[3] * 1.1}, 3)):
        xr.testing.assert_identical(run.sel(**asked), ds.isel(time=place))
    xr.testing.assert_identical(run.sel(t=[high, low]), ds.isel(time=[0, 4]))
    xr.testing.assert_identical(run.sel(step=slice(1, 3)), ds.isel(time=[1, 2, 3]))
    xr.testing.assert_identical(run.sel(t=slice(None, GRID.t[3])), ds.isel(time=[3, 4]))
    xr.testing.assert_identical(run.sel(rho=GRID.rho[1], seed=7), ds.isel(time=1, sample=2))
    xr.testing.assert_identical(run.sel(seed=[8, 5]), ds.isel(sample=[3, 0]))
    for asked, sentence in (
        ({"t": 2.0}, "t was 2; this run was recorded from t = 1 to"),
        ({"t": 0.5, "rho": 1.0}, "t and rho were given"),
        ({"seed": [5, 9]}, "seed 9 is not in this run of 4 samples, of seeds 5 to 8"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run.sel(**asked)
    mu = normals(generator, 2)
    plain = wb.Gaussian(torch.zeros(2).double(), 1.0)
    given = wb.Diffusion(OUVE(), wb.Conditional({"a": ring(), "b": plain}, label="b"), mu)
    grid = wb.Grid.uniform(given.process, 2)
    ds = wb.sample(given, wb.DDIM(), grid, range(3)).dataset
    assert ds["label"].values.tolist() == ["b"] * 3
    assert ds["condition"].dims == ("dim",) and ds["condition"].values.tolist() == mu.tolist()


def test_samples_towards_a_condition_each_are_those_of_runs_of_one(tmp_path):
    """Sample i of a study has the condition of place seed modulo their number."""
    study = Study(
        data={"name": "ring", "modes": 3, "size": 10},
        process={"name": "OUVE", "condition": "every_point"},
        seeds={"first": 4, "count": 7},
        grid={"name": "uniform", "steps": 4},
        record={"fields": ["x"]},
        lenses=["flow"],
        denoiser="Gaussian",
        dtype="float64",
        device="cpu",
    )
    run, setup = wb.run(study), build(study)
    assert run["condition"].dims == ("sample", "dim")
    kept = keep(study, tmp_path / "run.zarr")
    np.testing.assert_allclose(kept["x"], run["x"], rtol=1e-12)
    np.testing.assert_array_equal(kept["condition"], run["condition"])
    flows = []
    for i, seed in enumerate(range(4, 11)):
        mu = setup.data.points[seed % 10]
        one = wb.Diffusion(setup.diffusion.process, setup.diffusion.denoiser, mu)
        alone = wb.sample(one, setup.sampler, setup.grid, [seed], setup.record)
        np.testing.assert_allclose(run["x"][:, i], alone["x"][:, 0], rtol=1e-12)
        np.testing.assert_array_equal(run["condition"][i], mu)
        flows.append(wb.measure("flow", alone)["rms"].values ** 2)
    np.testing.assert_allclose(run["flow.rms"], np.sqrt(np.mean(flows, 0)), rtol=1e-9, atol=1e-12)
    given = (setup.diffusion, setup.sampler, setup.grid, [1, 2])
    with pytest.raises(ValueError, match="there are 10 conditions and 2 seeds"):
        wb.sample(*given, conditions=setup.data.points)
    with pytest.raises(ValueError, match=r"conditions has shape \(2, 1\); it must be"):
        wb.sample(*given, conditions=setup.data.points[:2, :1])


def test_samples_of_several_classes_are_those_of_runs_of_one(tmp_path):
    """In any order and however they are kept; each with its label."""
    study = Study(
        data={"name": "ring", "modes": 3, "size": 60},
        denoiser={"name": "Conditional", "each": True},
        seeds={"first": 4, "count": 7},
        grid={"name": "uniform", "steps": 4},
        record={"fields": ["x", "x.moments"]},
        dtype="float64",
        device="cpu",
    )
    run = wb.run(study)
    assert run["label"].values.tolist() == [seed % 3 for seed in range(4, 11)]
    kept = keep(study, tmp_path / "run.zarr")
    assert kept["label"].values.tolist() == run["label"].values.tolist()
    np.testing.assert_allclose(kept["x"], run["x"], rtol=1e-12)
    setup = build(study)
    whole = setup.diffusion
    for label in range(3):
        one = wb.Diffusion(whole.process, whole.denoiser.given(label))
        seeds = [seed for seed in range(4, 11) if seed % 3 == label]
        alone = wb.sample(one, setup.sampler, setup.grid, seeds, setup.record)
        mine = run.isel(sample=run["label"].values == label)
        assert mine["seed"].values.tolist() == seeds
        np.testing.assert_allclose(mine["x"], alone["x"], rtol=1e-12)
    np.testing.assert_allclose(run["x.moments"], run["x"].mean("sample"), rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match=r"has no classes; take wb\.Conditional"):
        wb.sample(one, setup.sampler, setup.grid, [1, 2], labels=[0, 1])
    with pytest.raises(ValueError, match="there are 1 labels and 2 seeds"):
        wb.sample(whole, setup.sampler, setup.grid, [1, 2], labels=[0])
