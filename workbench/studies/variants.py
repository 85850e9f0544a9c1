"""Linear samplers by a name that says their parameters: ``DDIM``, ``DPMSolverPP:order=3:sde=true``.

A variant is a sampler with the parameters that differ from its defaults. Parameters are checked as
in a study.
"""

from __future__ import annotations

import functools

from workbench.params import declared, shown
from workbench.processes import PROCESSES
from workbench.sampling import SAMPLERS, Grid, Sampler
from workbench.studies.spec import Study, StudyError

__all__ = ["entries", "problem_of", "sampler_of", "variants"]


def sampler_of(variant: str) -> Sampler:
    """The sampler of ``Name`` or ``Name:parameter=value:...``.

    Raises:
        StudyError: no such sampler or parameter, a value that is not allowed, or a sampler that is
            not linear.
    """
    made = _made(variant)
    if isinstance(made, str):
        raise StudyError({"samplers": f"samplers held {made}"})
    return made


def problem_of(variant: str) -> str:
    """What is wrong with a variant, as the rest of a sentence; empty if nothing is."""
    made = _made(variant)
    return made if isinstance(made, str) else ""


def entries(variant: str) -> dict[str, str]:
    """A variant as entries of a study: its sampler and the parameters it names."""
    name, *parts = variant.split(":")
    pairs = (part.partition("=") for part in parts)
    return {"sampler": name, **{f"sampler_{key}": value for key, _, value in pairs}}


@functools.lru_cache(maxsize=1024)
def _made(variant: str) -> Sampler | str:
    """The sampler of a variant, or what is wrong with it."""
    try:
        section = Study.from_flat(entries(variant)).sampler
        sampler = SAMPLERS[section.name](**section.model_dump(exclude={"name"}))
    except ValueError as error:  # a StudyError too: its sentences
        return f"{shown(variant)}: {error}"
    process = PROCESSES["VP"]()
    try:
        linear = sampler.program(process, Grid.log_snr(process, 6)).linear
    except Exception:  # one that asks a model first, say
        linear = False
    if not linear:
        return (
            f"{shown(variant)}; {section.name} is not linear, so the law of its output has no "
            "closed form. Choose from the list."
        )
    return sampler


@functools.cache
def variants() -> tuple[str, ...]:
    """Every linear sampler as it is, and with each choice, switch or order of its own changed."""
    found = []
    for name, kind in SAMPLERS.items():
        found.append(name)
        for key, parameter in declared(kind).items():
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
