"""Every choice and switch of every sampler does something, or is refused in a sentence."""

import itertools

import pytest
from helpers import LAWS, normals, relative

import workbench as wb
from workbench.params import declared
from workbench.sampling import SAMPLERS, NoiseSource, walk

#: Where a parameter that is accepted changes nothing, as what it says is true either way.
TRUE_EITHER_WAY = {
    ("DPMSolver", "multistep"): lambda s: s.order == 1,  # all of them DDIM
    ("DPMSolverPP", "multistep"): lambda s: s.order == 1,
    ("DEIS", "axis"): lambda s: s.order == 1,
    ("PredictorCorrector", "noise_removal"): lambda s: s.predictor in ("DDIM", "Heun"),  # no noise
}
#: Parameters that make a run short.
SHORT = {
    "DenoisingMCMC": {"eta": 0.3, "burn_in": 1, "skip": 3, "levels": 40},
    "DPMOT": {"points": 16, "rounds": 20},
}
#: Those that are not for VP: a process, and how its grids are made.
ELSEWHERE = {"InverseHeat": (wb.HeatDissipation(wb.DCT((2,))), wb.Grid.uniform)}


def options(parameter) -> tuple:
    """Choices, a switch's two, or a short range of whole numbers; or nothing."""
    low, high = parameter.param.ge, parameter.param.le
    if parameter.choices or parameter.type is bool:
        return parameter.choices or (False, True)
    short = parameter.type is int and None not in (low, high) and high - low < 8
    return tuple(range(int(low), int(high) + 1)) if short else ()


def combinations(name: str):
    """Names of the parameters, samplers of all combinations, and why the others are refused."""
    names = [key for key, one in declared(SAMPLERS[name]).items() if options(one)]
    allowed, refused = {}, {}
    for values in itertools.product(*(options(declared(SAMPLERS[name])[key]) for key in names)):
        try:
            given = dict(zip(names, values, strict=True)) | SHORT.get(name, {})
            allowed[values] = SAMPLERS[name](**given)
        except ValueError as error:
            refused[values] = str(error)
    return names, allowed, refused


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_parameter_is_accepted_and_ignored(name, generator, seed):
    """Each choice or switch, put back to its default alone, makes the run another one: on some of
    these grids, as there are choices that act in short runs only."""
    process, make = ELSEWHERE.get(name, (wb.VP(), wb.Grid.log_snr))
    diffusion = wb.Diffusion(process, LAWS["mixture-full"](generator, 2))
    x, seeds = normals(generator, 64, 2), range(seed, seed + 64)
    grids = [make(process, n) for n in (9, 12, 18)] + [make(process, 9, "denoise")]
    names, allowed, refused = combinations(name)
    runs = {}

    def final(values, grid):
        if (values, grid) not in runs:
            sampler = allowed[values]
            program = sampler.prepared(diffusion, grid).program(process, grid)
            runs[values, grid], count = walk(program, diffusion.core, x, NoiseSource(seeds, (2,)))
            assert sampler.nfe(grid) in (count, None), sampler
        return runs[values, grid]

    for (values, sampler), (place, key) in itertools.product(allowed.items(), enumerate(names)):
        one = declared(type(sampler))[key]
        usual = (*values[:place], one.default, *values[place + 1 :])
        if one.type is int or values[place] == one.default or usual not in allowed:
            continue
        changes = any(relative(final(values, g), final(usual, g)) > 1e-9 for g in grids)
        either = TRUE_EITHER_WAY.get((name, key), lambda s: False)(sampler)
        assert changes != either, f"{sampler}: {key} changes {'the run' if changes else 'nothing'}"
    for sentence in refused.values():
        assert sentence.startswith(f"{name}: ") and "changes nothing" in sentence


def test_what_would_be_ignored_is_told_in_a_sentence():
    for make, sentence in (
        (
            lambda: wb.DPMSolverPP(2, corrected=False),
            "DPMSolverPP: corrected was False with order=2, multistep=True, where it changes "
            "nothing: the factor is that of the third-order multistep. Leave it at True, or change "
            "the others.",
        ),
        (lambda: wb.DPMSolverPP(1, taylor=True), "order 1 has no difference to weight"),
        (lambda: wb.DPMSolverPP(2, multistep=False, sde=True), "sde was True with order=2, multi"),
        (lambda: wb.DPMSolverPP(sde=True, start="single_steps"), "steps are those of the prob"),
        (
            lambda: wb.DPMSolver(lower_order_final="always"),
            "single steps have one order throughout",
        ),
        (lambda: wb.UniPC(1, "bh1", corrector=False), "the predictor of order 1 is DDIM"),
        (lambda: wb.UniPC(3, "bh1", start="single_steps"), "B.h. cancels where three evaluations"),
        (lambda: wb.DEIS(1, lower_order_final="below_10"), "order 1 is neither lowered nor raised"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
