"""Linear samplers by a name that says their parameters: ``DDIM``, ``DPMSolverPP:order=3:sde=true``.

A variant is a sampler with the parameters that differ from its defaults. Parameters are checked as
in a study.
"""

from __future__ import annotations

import functools

from workbench.params import shown
from workbench.processes import VP
from workbench.sampling import SAMPLERS, Grid, Sampler
from workbench.studies.run import made
from workbench.studies.spec import Study, StudyError


def sampler_of(variant: str) -> Sampler:
    """The sampler of ``Name`` or ``Name:parameter=value:...``.

    Raises:
        StudyError: no such sampler or parameter, a value that is not allowed, or a sampler that is
            not linear.
    """
    found = _sampler(variant)
    if isinstance(found, str):
        raise StudyError({"samplers": f"samplers held {found}"})
    return found


def problem_of(variant: str) -> str:
    """What is wrong with a variant, as the rest of a sentence; empty if nothing is."""
    found = _sampler(variant)
    return found if isinstance(found, str) else ""


@functools.lru_cache(maxsize=1024)
def _sampler(variant: str) -> Sampler | str:
    """The sampler of a variant, or what is wrong with it."""
    try:
        choice = Study(sampler=variant).sampler
        sampler = made(choice)
    except ValueError as error:  # a StudyError too: its sentences
        return f"{shown(variant)}: {error}"
    process = VP()
    try:
        linear = sampler.program(process, Grid.log_snr(process, 6)).linear
    except Exception:  # one that asks a model first, say
        linear = False
    if not linear:
        return (
            f"{shown(variant)}; {choice.name} is not linear, so the law of its output has no "
            "closed form. Choose from the list."
        )
    return sampler


@functools.cache
def variants() -> tuple[str, ...]:
    """Every linear sampler as it is, and with each choice, switch or order of its own changed."""
    found = []
    for name, entry in SAMPLERS.entries.items():
        found.append(name)
        for key, parameter in entry.parameters.items():
            for value in _values(parameter):
                if value != parameter.default:
                    text = str(value).lower() if isinstance(value, bool) else f"{value}"
                    found.append(f"{name}:{key}={text.removesuffix('.0')}")
    return tuple(variant for variant in found if not problem_of(variant))


def _values(parameter) -> tuple:
    """Values of a parameter that make a method of their own."""
    low, high = parameter.param.ge, parameter.param.le
    if parameter.choices:
        return parameter.choices
    if parameter.type is bool:
        return (False, True)
    if parameter.type is int and None not in (low, high) and high - low < 8:
        return tuple(range(int(low), int(high) + 1))
    return (0.0, 1.0) if parameter.name == "eta" else ()
