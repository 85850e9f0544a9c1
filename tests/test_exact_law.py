"""The exact output law against closed forms, independent recursions and Monte Carlo."""

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from helpers import relative

import workbench as wb
from workbench.exact import transfer
from workbench.processes import DCT, EqualSNR, Hartley, HeatDissipation, ShortestPath
from workbench.processes.affine import OUVE, RDDM, Resfusion
from workbench.sampling import Apply, Combine, Evaluate, Node, Program, Step, walk

PROCESSES = [wb.VP(), wb.EDM(), wb.RectifiedFlow()]
SAMPLERS = [
    wb.Euler(),
    wb.Heun(),
    wb.Heun(axis="t"),
    wb.DDIM(eta=0.6),
    wb.EulerMaruyama(),
    wb.EulerMaruyama(eta=2.0),
    wb.Midpoint(),
    wb.RK4(axis="t"),
    wb.ExponentialSDE(),
    wb.ExponentialSDE("score"),
    wb.EDMStochastic(s_noise=1.1),
    wb.DPMSolver(3),
    wb.DPMSolverPP(3),
    wb.DPMSolverPP(sde=True),
    wb.UniPC(3),
    wb.DEIS(),
]


def random_gaussian(generator, d=3) -> wb.Gaussian:
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return wb.Gaussian(torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_against_simulation(sampler, generator):
    """Mean and covariance of 20 000 samples lie within 5.5 standard errors of the exact law.

    Under one process after the other: that a program's law is its linear map is known exactly.
    """
    n, process = 20_000, PROCESSES[SAMPLERS.index(sampler) % len(PROCESSES)]
    diffusion = wb.Diffusion(process, random_gaussian(generator))
    grid = wb.Grid.log_snr(process, 10, "denoise")
    law = wb.exact.law(diffusion, sampler, grid)
    first = int(torch.randint(2**40, (), generator=generator))
    final = wb.sample(diffusion, sampler, grid, seeds=range(first, first + n)).final
    variances = law.cov.diag()
    of_mean = (final.mean(0) - law.mean) / (variances / n).sqrt()
    of_cov = (torch.cov(final.T) - law.cov) / (
        (law.cov**2 + variances[:, None] * variances) / n
    ).sqrt()
    assert of_mean.abs().max() < 5.5
    assert of_cov.abs().max() < 5.5


def linear_samplers() -> dict:
    """Every registered sampler whose program is linear, with its defaults."""
    data = wb.Gaussian(torch.ones(3).double(), torch.tensor([2.0, 0.3, 0.02]).double())
    diffusion = wb.Diffusion(wb.VP(), data)
    grid = wb.Grid.log_snr(diffusion.process, 4)
    made = {name: kind() for name, kind in wb.SAMPLERS.items() if name != "InverseHeat"}
    return {
        name: sampler
        for name, sampler in made.items()
        if sampler.prepared(diffusion, grid).program(diffusion.process, grid).linear
    }


LINEAR = linear_samplers()
#: These and the one of order 0.
PLAIN = {*LINEAR, "InverseHeat"}


def test_most_samplers_are_linear():
    assert {"Heun", "DPMSolverPP", "UniPC", "DEIS", "EulerMaruyama", "EDMStochastic"} <= set(LINEAR)


@pytest.mark.parametrize("name", LINEAR)
def test_every_linear_sampler_against_a_hundred_thousand_samples(name, generator, record_property):
    """Means and variances per mode; the bound holds for all of them at once but once in 10^4."""
    n, sampler = 100_000, LINEAR[name]
    variances = torch.tensor([2.0, 0.3, 0.02], dtype=torch.float64)
    mean = torch.randn(3, generator=generator, dtype=torch.float64)
    diffusion = wb.Diffusion(wb.VP(), wb.Gaussian(mean, variances))
    grid = wb.Grid.karras(diffusion.process, 5)
    law = wb.exact.law(diffusion, sampler, grid)
    first = int(torch.randint(2**40, (), generator=generator))
    final = wb.sample(diffusion, sampler, grid, seeds=range(first, first + n)).final
    of_mean = (final.mean(0) - law.mean) / (law.variances / n).sqrt()
    of_variance = (final.var(0) / law.variances - 1) / math.sqrt(2 / n)
    bound = -NormalDist().inv_cdf(0.5e-4 / (6 * len(LINEAR)))
    largest = torch.cat([of_mean, of_variance]).abs().max().item()
    record_property("measured", f"{name}: largest z {largest:.2f} of {bound:.2f}")
    assert largest < bound


class OneByOne:
    """Noise in which draw j is 1 for sample j and 0 for all others."""

    def __init__(self, draws: int) -> None:
        self.unit = torch.eye(draws + 2, draws, dtype=torch.float64)

    def step(self, draw: int, interval=None) -> torch.Tensor:
        return self.unit[:, draw, None].expand(-1, 4)


def random_program(generator, rows: int = 24) -> Program:
    """Rows at random: registers read and overwritten, or never used; all kinds of evaluation."""

    def number() -> float:
        return torch.randn((), generator=generator, dtype=torch.float64).item()

    def one_of(names):
        return names[int(torch.randint(len(names), (), generator=generator))]

    names, made = ["x", "mu"], []
    for _ in range(rows):
        out = one_of(["x", "a", "b", "c"])
        if one_of([True, False]):
            of = one_of(["denoised", "score", "slope"])
            node = Node(0.5, 0.2 + abs(number()), 0.2 + abs(number()))
            made.append(Evaluate(out, one_of(names), node, of))
        else:
            terms = {name: number() for name in names if one_of([True, False])}
            made.append(Combine(out, terms, one_of([0.0, 1.0]) * number()))
        names = list(dict.fromkeys([*names, out]))
    made.append(Combine("x", dict.fromkeys(names, 0.5), 0.1))
    return Program((Step(Node(1, 1, 1), Node(0, 1, 0.1), tuple(made)),))


def test_transfer_is_the_linear_map_of_the_run(generator):
    """Random programs: gain, response, pull of the condition and every noise by impulses."""
    variances = torch.tensor([3.0, 0.5, 0.01, 0.0], dtype=torch.float64)
    for _ in range(20):
        program = random_program(generator)
        gain, response, noise, pull = transfer(program, variances)
        source = OneByOne(program.draws)
        x = torch.zeros(program.draws + 2, 4, dtype=torch.float64)
        x[-1] = 1.0  # one sample starts from 1, one from 0 without any noise

        def run(mean, mu, x=x, program=program, source=source):
            law = wb.Gaussian(torch.full((4,), mean).double(), variances)
            held = {"mu": torch.full_like(x, mu)}
            return walk(program, law, x, source, registers=held)[0]

        still, moved, drawn = run(0.0, 0.0), run(1.0, 0.0), run(0.0, 1.0)
        scale = 1e-11 * (1 + still.abs().max() + moved.abs().max() + drawn.abs().max())
        assert (gain - (still[-1] - still[-2])).abs().max() < scale
        assert (response - moved[-2]).abs().max() < scale
        assert (pull - drawn[-2]).abs().max() < scale
        assert (noise.sqrt() - still[:-2].norm(dim=0)).abs().max() < scale


def test_transfer_of_several_programs_at_once(generator):
    variances = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    process = wb.EDM()
    grids = [wb.Grid.karras(process, 7, "denoise", exponent=e) for e in (3.0, 7.0, 9.0)]
    for sampler in (wb.DPMSolverPP(3), wb.EDMStochastic(), wb.Heun()):  # churn: other rows each
        programs = [sampler.program(process, grid) for grid in grids]
        for together, *single in zip(
            transfer(programs, variances),
            *(transfer(program, variances) for program in programs),
            strict=True,
        ):
            torch.testing.assert_close(together, torch.stack(single), rtol=1e-13, atol=0)


def test_a_program_that_is_not_linear_has_no_law():
    row = Apply("x", ("x",), lambda run, x: x.sin())
    program = Program((Step(Node(1, 1, 1), Node(0, 1, 0.1), (row,)),))
    with pytest.raises(TypeError, match="not linear, so it has no exact law; sample"):
        transfer(program, torch.ones(2))
    with pytest.raises(ValueError, match="variances held -1"):
        transfer(program, -torch.ones(2))
    nonlinear = [kind() for name, kind in wb.SAMPLERS.items() if name not in PLAIN]
    data = wb.Gaussian(torch.ones(3).double(), torch.tensor([2.0, 0.3, 0.02]).double())
    diffusion = wb.Diffusion(wb.EDM(), data)
    for sampler in nonlinear:
        with pytest.raises(TypeError, match="is not linear, so it has no exact law; sample"):
            wb.exact.law(diffusion, sampler, wb.Grid.karras(diffusion.process, 4))


def test_euler_maruyama_is_the_published_recursion():
    """Pierret & Galerne (arXiv:2405.14250): v -> (1 + h b (1 - 2/l))^2 v + 2 h b per eigenvalue."""
    variances = torch.tensor([4.0, 1.0, 0.1, 1e-3], dtype=torch.float64)
    process = wb.VP()
    grid = wb.Grid.uniform(process, 50)
    v = torch.ones_like(variances)
    for t, s in zip(grid.t, grid.t[1:], strict=False):
        b = 0.5 * process(t).g2  # their beta is half of ours
        level = process(t).alpha ** 2 * variances + process(t).sigma ** 2
        v = (1 + (t - s) * b * (1 - 2 / level)) ** 2 * v + 2 * (t - s) * b
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(4).double(), variances))
    law = wb.exact.law(diffusion, wb.EulerMaruyama(), grid)
    torch.testing.assert_close(law.variances, v, rtol=1e-12, atol=0)


def test_edm_heun_with_eighteen_steps_over_disperses():
    """The known 18-step variances of N(0, diag(4, 1, .25, .01, 1e-4)) with a perfect score."""
    variances = torch.tensor([4.0, 1.0, 0.25, 0.01, 1e-4], dtype=torch.float64)
    diffusion = wb.Diffusion(wb.EDM(), wb.Gaussian(torch.zeros(5).double(), variances))
    grid = wb.Grid.karras(wb.EDM(), 18, "denoise")
    start = diffusion.marginal(80.0)
    law = wb.exact.law(diffusion, wb.Heun(), grid, start)
    got = law.cov.diag()
    wanted = torch.tensor([4.296, 1.0916, 0.27840, 0.011885, 1.3526e-4], dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=0)
    churned = wb.exact.law(diffusion, wb.EDMStochastic(s_noise=1.003), grid, start)
    wanted = [4.789652815822041, 1.2311674856435955, 0.31815229405631923, 0.014270830708441049]
    assert churned.variances[:4].tolist() == pytest.approx(wanted, rel=1e-12)


def test_edm_with_its_default_churn_over_disperses():
    """18 steps on N(0, I/4), from the prior and with a perfect score: 27 % too much variance."""
    diffusion = wb.Diffusion(wb.EDM(), wb.Gaussian(torch.zeros(2).double(), 0.25))
    law = wb.exact.law(
        diffusion, wb.EDMStochastic(), wb.Grid.karras(diffusion.process, 18, "denoise")
    )
    assert law.variances.tolist() == pytest.approx([0.3162543309360133] * 2, rel=1e-12)
    law = wb.exact.law(diffusion, wb.EDMStochastic(), wb.Grid.karras(diffusion.process, 18))
    assert law.variances.tolist() == pytest.approx([0.3100986579125006] * 2, rel=1e-12)


#: Printed 2-Wasserstein distances to N(0, Sigma), started from N(0, I); N time nodes. The columns
#: are N = 50, 250, 500, 1000. Pierret & Galerne 2024, arXiv:2405.14250, table for CIFAR-10.
PIERRET = {
    ("EM", 0.0): ("4.77", ".65", ".31", ".16"),
    ("EI", 0.0): ("2.81", ".57", ".30", ".16"),
    ("Euler", 0.0): ("1.78", ".44", ".26", ".17"),
    ("Heun", 0.0): ("7.09", ".73", ".22", ".09"),
    ("Heun", 1e-5): ("6.48", ".65", ".20", ".09"),
    ("Heun", 1e-3): (".57", ".15", ".18", ".19"),
    ("Heun", 1e-2): ("1.38", "1.36", "1.36", "1.36"),
}
SCHEMES = {
    "EM": wb.EulerMaruyama(),
    "EI": wb.ExponentialSDE(holds="score"),
    "Euler": wb.Euler(axis="t"),
    "Heun": wb.Heun(axis="t"),
}


@pytest.mark.parametrize(("scheme", "end"), PIERRET)
def test_the_cifar_table_of_pierret_and_galerne(scheme, end):
    """To print precision, on the 3072 eigenvalues of CIFAR-10, down to t = 0 itself."""
    stored = np.load(Path(__file__).parent / "reference" / "cifar10_eigenvalues.npy")
    variances = torch.from_numpy(stored).double()
    process = wb.VP()  # their beta from 0.05 to 10 is half of ours
    diffusion = wb.Diffusion(process, wb.Gaussian(torch.zeros(3072).double(), variances))
    for count, printed in zip((50, 250, 500, 1000), PIERRET[scheme, end], strict=True):
        grid = wb.Grid.times(process, np.linspace(1, end, count))
        law = wb.exact.law(diffusion, SCHEMES[scheme], grid)
        digits = len(printed.partition(".")[2])
        assert abs(wb.exact.w2(law, diffusion.denoiser) - float(printed)) <= 0.5 * 10**-digits


@pytest.mark.parametrize("kind", ["shortest", "heat", "equal"])
def test_spectral_processes_by_impulses(kind, generator):
    """Every coefficient of every mode: the law against the run's own linear map."""
    shape, rows = torch.Size((3, 4)), 12
    spectrum = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.05
    basis = {"shortest": Hartley(shape), "heat": DCT(shape), "equal": DCT(shape)}[kind]
    process = {
        "shortest": lambda: ShortestPath(spectrum, basis),
        "heat": lambda: HeatDissipation(basis, blur_max=1.0),
        "equal": lambda: EqualSNR(spectrum, basis, wb.VP()),
    }[kind]()
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    data = wb.Gaussian(mean, spectrum).transformed(basis.matrix.T)  # diagonal in the basis
    diffusion = wb.Diffusion(process, data)
    grid = wb.Grid.uniform(process, 6)
    start = wb.Gaussian(mean, 0.7)
    samplers = [wb.DDIM(), wb.Midpoint(axis="rho"), wb.Euler(axis="t"), wb.Heun(axis="t")]
    if kind == "shortest":  # whose alpha starts with an infinite slope
        with pytest.raises(ValueError, match="changes infinitely fast at t = 1"):
            wb.exact.law(diffusion, samplers.pop(), grid, start)
        samplers[-1] = wb.Heun()
    for sampler in samplers:
        law = wb.exact.law(diffusion, sampler, grid, start)

        def final(x, sampler=sampler):
            return wb.sample(diffusion, sampler, grid, seeds=range(len(x)), x=x).final.flatten(1)

        origin = final(torch.zeros(1, *shape).double())
        matrix = (final(torch.eye(rows).double().reshape(rows, *shape)) - origin).T
        assert relative(law.cov, 0.7 * matrix @ matrix.T) < 1e-9
        assert relative(law.mean.flatten(), origin[0] + matrix @ mean.flatten()) < 1e-9


@pytest.mark.parametrize("process", [OUVE(), RDDM(), Resfusion()], ids=lambda p: type(p).__name__)
def test_affine_processes_start_about_the_condition(process, generator):
    """Prior, shift and sampler together: the law against 20 000 samples."""
    n = 20_000
    condition = torch.randn(3, generator=generator, dtype=torch.float64)
    diffusion = wb.Diffusion(process, random_gaussian(generator), condition)
    grid = wb.Grid.log_snr(process, 9)
    for sampler in (wb.Heun(), wb.DDIM(eta=1.0)):
        law = wb.exact.law(diffusion, sampler, grid)
        first = int(torch.randint(2**40, (), generator=generator))
        final = wb.sample(diffusion, sampler, grid, seeds=range(first, first + n)).final
        variances = law.cov.diag()
        assert ((final.mean(0) - law.mean) / (variances / n).sqrt()).abs().max() < 5.5
        spread = ((law.cov**2 + variances[:, None] * variances) / n).sqrt()
        assert ((torch.cov(final.T) - law.cov) / spread).abs().max() < 5.5


def test_low_rank_law_is_that_of_the_full_covariance(generator):
    basis = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64)).Q
    mean = torch.randn(5, generator=generator, dtype=torch.float64)
    low = wb.Gaussian.low_rank(
        mean, basis, torch.tensor([2.0, 0.3], dtype=torch.float64), rest=0.05
    )
    full = wb.Gaussian(mean, low.cov)
    grid = wb.Grid.log_snr(wb.VP(), 7)
    for sampler in SAMPLERS:
        a, b = (wb.exact.law(wb.Diffusion(wb.VP(), data), sampler, grid) for data in (low, full))
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(a.cov, b.cov, rtol=1e-10, atol=1e-10)


def test_any_start(generator):
    """A correlated start goes through the same linear map as a point does."""
    diffusion = wb.Diffusion(wb.VP(), random_gaussian(generator))
    grid = wb.Grid.karras(wb.VP(), 6)
    start = random_gaussian(generator)
    law = wb.exact.law(diffusion, wb.Heun(), grid, start)

    def final(x):
        return wb.sample(diffusion, wb.Heun(), grid, seeds=range(len(x)), x=x).final

    origin = final(torch.zeros(1, 3, dtype=torch.float64))
    matrix = (final(torch.eye(3, dtype=torch.float64)) - origin).T
    torch.testing.assert_close(law.cov, matrix @ start.cov @ matrix.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(law.mean, origin[0] + matrix @ start.mean, rtol=1e-9, atol=1e-12)


def test_w2_is_the_bures_distance(generator):
    a, b = random_gaussian(generator), random_gaussian(generator)

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    inner = root(root(a.cov) @ b.cov @ root(a.cov))
    square = (a.mean - b.mean).square().sum() + (a.cov + b.cov - 2 * inner).trace()
    assert wb.exact.w2(a, b) == pytest.approx(math.sqrt(square), rel=1e-6)
    assert wb.exact.w2(a, a) < 1e-7
    moved = wb.Gaussian(a.mean + 3.0, a.cov)
    assert wb.exact.w2(a, moved) == pytest.approx(3 * math.sqrt(3), rel=1e-9)


def test_w2_in_a_common_basis_is_the_general_form(generator):
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    zeros = torch.zeros(4, dtype=torch.float64)
    first, second = (torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (wb.Gaussian.low_rank(zeros, basis, v) for v in (first, second))
    general = wb.exact.w2(wb.Gaussian(zeros, a.cov), b)
    assert wb.exact.w2(a, b) == pytest.approx(general, rel=1e-6)


def test_data_that_are_not_gaussian_are_refused():
    diffusion = wb.Diffusion(wb.VP(), wb.datasets.ring().law)
    with pytest.raises(TypeError, match="needs Gaussian data; these are Mixture"):
        wb.exact.law(diffusion, wb.Heun(), wb.Grid.log_snr(wb.VP(), 4))
