"""The same numbers as diffusers, in float64, on its own grids, for every method that both have.

Its schedulers hold their tables and states in float32; here their modules read float32 as float64.
Where a scheduler ends differently on purpose (lower orders at the end, a last step to sigma = 0
with the method's own slope) its flags are set, or the last step left out, as the test's name says.
"""

import inspect
import math
import sys
from dataclasses import replace
from itertools import count, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import LAWS, normals, relative

import workbench as wb
from workbench.sampling import NoiseSource, walk
from workbench.sampling.grid import Grid, Node

STEPS, N, D = 12, 5, 3


class Doubled:
    """A module whose float32 is its float64."""

    def __init__(self, module) -> None:
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture(scope="module")
def schedulers():
    import diffusers

    return diffusers


@pytest.fixture
def noise(seed):
    """The noise of a run of ours."""
    return NoiseSource(range(seed, seed + N), (D,))


@pytest.fixture
def made(schedulers, monkeypatch, noise):
    """``made(name, **flags)``: a scheduler in float64, which draws that noise in the same order."""
    draws = count()

    def make(name, **flags):
        kind = getattr(schedulers, name)
        module = sys.modules[kind.__module__]
        for library in ("torch", "np"):
            if hasattr(module, library):
                monkeypatch.setattr(module, library, Doubled(getattr(module, library)))
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.step(next(draws)))
        return kind(**flags)

    torch.set_default_dtype(torch.float64)
    return make


@pytest.fixture
def law(generator):
    return LAWS["mixture-full"](generator, D)


# ---- nodes and what a network would have said at them --------------------------------------------


def vp(rho):
    """Nodes of a variance-preserving process; time is log rho."""
    places = [math.log(r) if r else -math.inf for r in map(float, rho)]
    levels = [1 / math.sqrt(1 + r * r) for r in map(float, rho)]
    return [Node(t, a, a * float(r)) for t, a, r in zip(places, levels, rho, strict=True)]


def ve(rho):
    return [Node(float(r), 1.0, float(r)) for r in rho]


def flow(sigma):
    return [Node(float(s), 1 - float(s), float(s)) for s in sigma]


def epsilon(x, denoised, node):
    return (x - node.alpha * denoised) / node.sigma


def flow_velocity(x, denoised, node):
    return epsilon(x, denoised, node) - denoised


def edm_output(x, denoised, node, data=0.5):
    """F of D = c_skip x + c_out F."""
    total = node.sigma**2 + data**2
    return (denoised - data**2 / total * x) * math.sqrt(total) / (node.sigma * data)


def driven(scheduler, law, x, nodes, output, evaluated=None, calls=None):
    """The scheduler's own loop; ``nodes[i]`` is where it asks for the model the i-th time."""
    for i, t in enumerate(scheduler.timesteps[:calls]):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)  # some want to be asked; x is what it would be
        node = (evaluated or nodes)[i]
        denoised = law.denoise(x, node.alpha, node.sigma)
        x = scheduler.step(output(x, denoised, node), t, x).prev_sample
    return x


#: All that a program on given nodes asks of a process: time is log rho.
LOG_RHO = SimpleNamespace(
    time_of=torch.log,
    spectral=False,
    affine=False,
    shift=lambda t: (0.0, 0.0),
    carried=lambda t, alpha: alpha,
)


def ours(sampler, law, x, nodes, noise, process=LOG_RHO):
    """Our program on the very same nodes. By default time is log rho."""
    grid = Grid(tuple(nodes), "denoise" if nodes[-1].sigma == 0 else "stop")
    return walk(sampler.program(process, grid), law, x, noise)[0]


def compare(scheduler, sampler, law, generator, noise, place, output, **more):
    nodes = place(scheduler.sigmas.tolist())
    x = nodes[0].sigma * normals(generator, N, D)
    theirs = driven(scheduler, law, x, nodes, output, **more)
    assert relative(ours(sampler, law, x, nodes, noise), theirs) < 1e-10


# ---- one evaluation a step -----------------------------------------------------------------------

TO_ZERO = {"lower_order_final": False, "final_sigmas_type": "zero"}
TO_MIN = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
LOWER = {"lower_order_final": True, "final_sigmas_type": "sigma_min"}
PLUS = {"algorithm_type": "dpmsolver++"}
NOISE = {"algorithm_type": "dpmsolver"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
PP3 = wb.DPMSolverPP(3, corrected=False)

CASES = {
    "EulerDiscrete": (wb.Euler(), {}, ve, epsilon),
    "EulerAncestralDiscrete": (wb.DDIM(1.0), {}, ve, epsilon),
    "DPMSolverMultistep-1": (wb.DPMSolverPP(1), {"solver_order": 1, **PLUS, **TO_ZERO}),
    "DPMSolverMultistep-2-to-zero": (wb.DPMSolverPP(2), {"solver_order": 2, **PLUS, **TO_ZERO}),
    "DPMSolverMultistep-2-to-sigma_min": (wb.DPMSolverPP(2), {"solver_order": 2, **PLUS, **TO_MIN}),
    "DPMSolverMultistep-3-as-published": (PP3, {"solver_order": 3, **PLUS, **TO_ZERO}),
    "DPMSolverMultistep-2-karras": (
        wb.DPMSolverPP(2),
        {"solver_order": 2, "use_karras_sigmas": True, **PLUS, **TO_ZERO},
    ),
    "DPMSolverMultistep-2-flow": (
        wb.DPMSolverPP(2),
        {"solver_order": 2, **PLUS, **TO_ZERO, **FLOW},
        flow,
        flow_velocity,
    ),
    "DPMSolverMultistep-sde-1": (
        wb.DPMSolverPP(1, sde=True),
        {"solver_order": 1, **SDE, **TO_ZERO},
    ),
    "DPMSolverMultistep-sde-2": (
        wb.DPMSolverPP(2, sde=True),
        {"solver_order": 2, **SDE, **TO_ZERO},
    ),
    "DPMSolverMultistep-sde-2-heun": (
        wb.DPMSolverPP(2, sde=True, taylor=True),
        {"solver_order": 2, "solver_type": "heun", **SDE, **TO_ZERO},
    ),
    "DPMSolverMultistep-sde-2-noise": (
        wb.DPMSolver(2, multistep=True, sde=True),
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver", **TO_MIN},
    ),
    "DPMSolverMultistep-sde-2-noise-heun": (
        wb.DPMSolver(2, multistep=True, sde=True, taylor=True),
        {"solver_order": 2, "solver_type": "heun", "algorithm_type": "sde-dpmsolver", **TO_MIN},
    ),
    "DPMSolverMultistep-2-heun": (
        wb.DPMSolverPP(2, taylor=True),
        {"solver_order": 2, "solver_type": "heun", **PLUS, **TO_MIN},
    ),
    "DPMSolverMultistep-2-lower-order-final": (
        wb.DPMSolverPP(2, lower_order_final="below_15"),
        {"solver_order": 2, **PLUS, **LOWER},
    ),
    "DPMSolverMultistep-3-heun-lower-order-final": (
        replace(PP3, taylor=True, lower_order_final="below_15"),
        {"solver_order": 3, "solver_type": "heun", **PLUS, **LOWER},
    ),
    "DPMSolverMultistep-3-lower-order-final-to-zero": (
        replace(PP3, lower_order_final="below_15"),
        {"solver_order": 3, **PLUS, "final_sigmas_type": "zero"},
    ),
    "DPMSolverMultistep-noise-2": (
        wb.DPMSolver(2, multistep=True),
        {"solver_order": 2, **NOISE, **TO_MIN},
    ),
    "DPMSolverMultistep-noise-2-heun-lower-order-final": (
        wb.DPMSolver(2, multistep=True, taylor=True, lower_order_final="below_15"),
        {"solver_order": 2, "solver_type": "heun", **NOISE, **LOWER},
    ),
    "DPMSolverMultistep-noise-3-as-published": (
        wb.DPMSolver(3, multistep=True, corrected=False),
        {"solver_order": 3, **NOISE, **TO_MIN},
    ),
    "DPMSolverMultistep-noise-2-taylor-is-DEIS-in-log-rho": (
        wb.DEIS(2),
        {"solver_order": 2, "solver_type": "heun", **NOISE, **TO_MIN},
    ),
    "DEISMultistep-1": (wb.DEIS(1), {"solver_order": 1, "lower_order_final": False}),
    "DEISMultistep-2": (wb.DEIS(2), {"solver_order": 2, "lower_order_final": False}),
    "DEISMultistep-3": (wb.DEIS(3), {"solver_order": 3, "lower_order_final": False}),
    "DEISMultistep-3-lower-order-final": (
        wb.DEIS(3, lower_order_final="below_15"),
        {"solver_order": 3, "lower_order_final": True},
    ),
    "EDMEuler": (wb.Euler(), {}, ve, edm_output),
    "EDMDPMSolverMultistep-2": (wb.DPMSolverPP(2), {"solver_order": 2, **TO_ZERO}, ve, edm_output),
    "EDMDPMSolverMultistep-3-as-published": (
        PP3,
        {"solver_order": 3, **TO_ZERO},
        ve,
        edm_output,
    ),
    "EDMDPMSolverMultistep-sde-2": (
        wb.DPMSolverPP(2, sde=True),
        {"solver_order": 2, **SDE, **TO_ZERO},
        ve,
        edm_output,
    ),
    "FlowMatchEulerDiscrete": (wb.DDIM(), {"shift": 3.0}, flow, flow_velocity),
}
for variant in ("bh1", "bh2"):
    for order in (1, 2, 3):
        CASES[f"UniPCMultistep-{order}-{variant}"] = (
            wb.UniPC(order, variant),
            {"solver_order": order, "solver_type": variant, **TO_MIN},
        )
CASES["UniPCMultistep-3-bh1-lower-order-final"] = (
    wb.UniPC(3, "bh1", lower_order_final="always"),
    {"solver_order": 3, "solver_type": "bh1", **LOWER},
)
CASES["UniPCMultistep-2-bh2-to-zero"] = (
    wb.UniPC(2),
    {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"},
)


@pytest.mark.parametrize("case", CASES)
def test_same_as(case, made, law, generator, noise):
    sampler, flags, place, output = (*CASES[case], vp, epsilon)[:4]
    scheduler = made(case.split("-")[0] + "Scheduler", **flags)
    scheduler.set_timesteps(STEPS)
    compare(scheduler, sampler, law, generator, noise, place, output)


# ---- several evaluations a step ------------------------------------------------------------------


@pytest.mark.parametrize("place", [ve, flow], ids=["HeunDiscrete", "FlowMatchHeunDiscrete"])
def test_same_as_heun(place, made, law, generator, noise):
    """In rho; and in t of the rectified flow, from pure noise."""
    name = "HeunDiscreteScheduler" if place is ve else "FlowMatchHeunDiscreteScheduler"
    scheduler = made(name)
    scheduler.set_timesteps(STEPS)
    evaluated = place(scheduler.sigmas.tolist())
    nodes = [evaluated[0], *evaluated[1::2]]
    x = nodes[0].sigma * normals(generator, N, D)
    output = epsilon if place is ve else flow_velocity
    theirs = driven(scheduler, law, x, nodes, output, evaluated=evaluated)
    if place is ve:
        mine = ours(wb.Heun(), law, x, nodes, noise)
    else:
        mine = ours(wb.Heun("t"), law, x, nodes, noise, wb.RectifiedFlow())
    assert relative(mine, theirs) < 1e-10


def test_same_as_flow_match_euler_in_t(made, law, generator, noise):
    scheduler = made("FlowMatchEulerDiscreteScheduler")
    scheduler.set_timesteps(STEPS)
    nodes, x = flow(scheduler.sigmas.tolist()), normals(generator, N, D)
    theirs = driven(scheduler, law, x, nodes, flow_velocity)
    for sampler in (wb.Euler("t"), wb.EulerMaruyama(0.0)):
        mine = ours(sampler, law, x, nodes, noise, wb.RectifiedFlow())
        assert relative(mine, theirs) < 1e-10


def test_same_as_kdpm2_with_dpm_solver_2(made, law, generator, noise):
    """k-diffusion's DPM2: the midpoint in log sigma."""
    scheduler = made("KDPM2DiscreteScheduler")
    scheduler.set_timesteps(STEPS)
    nodes = ve([scheduler.sigmas[0], *scheduler.sigmas[1 : 2 * STEPS : 2]])
    between = ve([math.sqrt(a.sigma * b.sigma) for a, b in pairwise(nodes)])
    evaluated = [node for both in zip(nodes, between, strict=False) for node in both]
    x = nodes[0].sigma * normals(generator, N, D)
    theirs = driven(scheduler, law, x, nodes, epsilon, evaluated=evaluated)
    assert relative(ours(wb.DPMSolver(2), law, x, nodes, noise), theirs) < 1e-10


@pytest.mark.parametrize("kind", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("taylor", [False, True], ids=["", "heun"])
@pytest.mark.parametrize("order", [2, 3])
def test_same_as_dpm_solver_singlestep_on_equal_log_snr_steps(
    order, taylor, kind, made, law, generator, noise
):
    """The stages are nodes of its grid. Published third order: second stage by Taylor's formula
    (``heun`` there), the step itself by the other unless asked for.
    """
    scheduler = made(
        "DPMSolverSinglestepScheduler",
        solver_order=order,
        algorithm_type=kind,
        use_exponential_sigmas=True,
        **TO_MIN,
    )
    scheduler.set_timesteps(STEPS)
    top, least = scheduler.sigmas[0].log(), scheduler.sigmas[-1].log()
    scheduler.sigmas = torch.linspace(top, least, STEPS + 1).exp()
    evaluated = vp(scheduler.sigmas.tolist())
    x = evaluated[0].sigma * normals(generator, N, D)
    theirs = x
    for i, t in enumerate(scheduler.timesteps):
        heun = taylor or (order == 3 and i % 3 == 1)
        scheduler.register_to_config(solver_type="heun" if heun else "midpoint")
        denoised = law.denoise(theirs, evaluated[i].alpha, evaluated[i].sigma)
        theirs = scheduler.step(epsilon(theirs, denoised, evaluated[i]), t, theirs).prev_sample
    sampler = wb.DPMSolver if kind == "dpmsolver" else wb.DPMSolverPP
    sampler = sampler(order, multistep=False, taylor=taylor)
    assert relative(ours(sampler, law, x, evaluated[::order], noise), theirs) < 1e-10


# ---- tables of alpha, and other conventions ------------------------------------------------------

TABLED = {
    "DDIM-eta-0": (wb.DDIM(), "DDIMScheduler", {}, {"eta": 0.0}),
    "DDIM-eta-0.5": (wb.DDIM(0.5), "DDIMScheduler", {}, {"eta": 0.5}),
    "DDIM-eta-1": (wb.DDIM(1.0), "DDIMScheduler", {}, {"eta": 1.0}),
    "DDPM-small": (wb.DDPM(), "DDPMScheduler", {"variance_type": "fixed_small"}, {}),
    "DDPM-large": (wb.DDPM("large"), "DDPMScheduler", {"variance_type": "fixed_large"}, {}),
}


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("case", TABLED)
def test_same_as_ancestral(case, schedule, made, law, generator, noise):
    sampler, name, flags, more = TABLED[case]
    scheduler = made(name, beta_schedule=schedule, clip_sample=False, **flags)
    scheduler.set_timesteps(STEPS)
    bars = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), 1.0]
    nodes = [Node(-i, math.sqrt(bar), math.sqrt(1 - bar)) for i, bar in enumerate(bars)]
    x = theirs = normals(generator, N, D)
    for node, t in zip(nodes, scheduler.timesteps, strict=False):
        denoised = law.denoise(theirs, node.alpha, node.sigma)
        theirs = scheduler.step(epsilon(theirs, denoised, node), t, theirs, **more).prev_sample
    assert relative(ours(sampler, law, x, nodes, noise), theirs) < 1e-10


@pytest.mark.parametrize("steps", [3, STEPS])
def test_same_as_lms_but_for_the_step_to_zero(steps, made, law, generator, noise):
    """It goes to sigma = 0 with its polynomial, we with the denoised state: not compared."""
    scheduler = made("LMSDiscreteScheduler")
    scheduler.set_timesteps(steps)
    nodes = ve(scheduler.sigmas[:-1].tolist())
    x = nodes[0].sigma * normals(generator, N, D)
    theirs = driven(scheduler, law, x, nodes, epsilon, calls=steps - 1)
    assert relative(ours(wb.DEIS(4, axis="rho"), law, x, nodes, noise), theirs) < 1e-10


def test_same_as_ipndm_with_its_betas_as_noise_levels(made, law, generator, noise):
    """Its betas are our sigmas, its model predicts the velocity of a rotation."""
    sigmas = [math.sin(0.5 * math.pi * u) for u in np.linspace(0.99, 0.02, STEPS + 1)]
    scheduler = made("IPNDMScheduler", trained_betas=sigmas)
    scheduler.set_timesteps(STEPS)
    nodes = [Node(s, math.sqrt(1 - s * s), s) for s in sigmas]

    def rotation(x, denoised, node):
        return node.alpha * epsilon(x, denoised, node) - node.sigma * denoised

    x = normals(generator, N, D)
    theirs = driven(scheduler, law, x, nodes, rotation)
    assert relative(ours(wb.IPNDM(), law, x, nodes, noise), theirs) < 1e-10


@pytest.mark.parametrize("correct", [0, 1, 2])
def test_same_as_the_predictor_corrector_of_score_sde_ve(correct, made, law, generator, noise):
    """Norms averaged over the batch; as in its pipeline, the corrector goes first."""
    scheduler = made("ScoreSdeVeScheduler", snr=0.2, sigma_min=0.02, sigma_max=30.0)
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS)
    nodes = ve([*scheduler.discrete_sigmas.flip(0).tolist()])
    x = theirs = nodes[0].sigma * normals(generator, N, D)
    for i, t in enumerate(torch.linspace(1, 0, STEPS)[:-1]):

        def score(x, node=nodes[i]):
            return (law.denoise(x, 1.0, node.sigma) - x) / node.sigma**2

        for _ in range(correct):
            theirs = scheduler.step_correct(score(theirs), theirs).prev_sample
        both = scheduler.step_pred(score(theirs), t, theirs)
        theirs = both.prev_sample
    for removed, expected in ((False, theirs), (True, both.prev_sample_mean)):
        langevin = {"snr": 0.2, "norms": "batch"} if correct else {}
        sampler = wb.PredictorCorrector(corrector_steps=correct, noise_removal=removed, **langevin)
        assert relative(ours(sampler, law, x, nodes, noise), expected) < 1e-10


# ---- k-diffusion, where it is installed ----------------------------------------------------------

K_DIFFUSION = {
    "euler": (wb.Euler(), {}),
    "euler_ancestral": (wb.DDIM(1.0), {}),
    "heun": (wb.Heun(), {}),
    "heun with churn": (wb.EDMStochastic(2.0, 0.0, 1e9, 1.003), {"s_churn": 2.0, "s_noise": 1.003}),
    "dpm_2": (wb.DPMSolver(2), {}),
    "lms": (wb.DEIS(4, axis="rho"), {}),
    "dpmpp_2m": (wb.DPMSolverPP(2), {}),
    "dpmpp_2m_sde": (wb.DPMSolverPP(2, sde=True), {}),
    "dpmpp_3m_sde": (wb.DPMSolverPP(3, sde=True, corrected=False, taylor=True), {}),
}


@pytest.mark.parametrize("case", K_DIFFUSION)
def test_same_as_k_diffusion(case, law, generator, noise, monkeypatch):
    sampling = pytest.importorskip(
        "k_diffusion.sampling",
        reason="k-diffusion is not installed; it needs torchvision: pip install k-diffusion.",
        exc_type=ImportError,
    )
    sampler, options = K_DIFFUSION[case]
    grid = wb.Grid.karras(wb.EDM(sigma_max=40.0), STEPS, "stop" if case == "lms" else "denoise")
    x, draws = 40 * normals(generator, N, D), count()
    function = getattr(sampling, "sample_" + case.split()[0])
    if "noise_sampler" in inspect.signature(function).parameters:
        options = {"noise_sampler": lambda *_: noise.step(next(draws))}
    elif options:
        monkeypatch.setattr(torch, "randn_like", lambda _: noise.step(next(draws)))

    def model(x, sigma):
        return law.denoise(x, 1.0, sigma[0].item())

    sigmas = torch.tensor(grid.sigma, dtype=torch.float64)
    theirs = function(model, x, sigmas, disable=True, **options)
    assert relative(ours(sampler, law, x, grid.nodes, noise), theirs) < 1e-10
