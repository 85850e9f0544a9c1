"""The form of a study, free of any toolkit: its controls, and what a change of one of them means.

It is read off the registries, so a new process, sampler, grid, data set or denoiser has its
controls on every page and in every notebook without another edit. What pages and notebooks say to
the reader is said here too, so that it is the same sentence in both.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.params import Declared, declared
from workbench.studies import (
    SECTIONS,
    Exploration,
    Study,
    StudyError,
    available_devices,
    parameters,
)
from workbench.studies.measuring import told
from workbench.studies.options import Options, split
from workbench.studies.spec import PLAIN
from workbench.ui.broker import Progress

__all__ = [
    "CANCELLED",
    "TITLES",
    "Control",
    "controls",
    "edited",
    "facts",
    "key_of",
    "option_controls",
    "placed",
    "problems_of",
    "progress_text",
    "words",
]

CANCELLED = "Cancelled; the picture shows the run before."

#: Sections in the order of the form, with their titles.
TITLES = {
    "data": "Data",
    "denoiser": "Model of the data",
    "process": "Process",
    "sampler": "Sampler",
    "grid": "Grid",
    "run": "Run",
}

#: Parameters few people change; a form may fold them away.
RARE = {"data_seed", "data_size", "process_t_min", "lenses", "noise", "dtype", "device"}

WORDS = {
    "log_snr": "log-SNR",
    "karras": "Karras",
    "swiss_roll": "swiss roll",
    "moons": "two moons",
    "ring": "ring of Gaussians",
    "gaussian": "one Gaussian",
    "digits": "digits (8 × 8)",
    "SubVP": "sub-VP",
    "RectifiedFlow": "Rectified flow",
    "OU": "Ornstein–Uhlenbeck",
    "EulerMaruyama": "Euler–Maruyama",
    "ExponentialSDE": "Exponential SDE",
    "DPMSolver": "DPM-Solver",
    "DPMSolverPP": "DPM-Solver++",
    "IPNDM": "iPNDM",
    "EDMStochastic": "EDM stochastic (churn)",
    "rho": "ρ = σ/α",
    "t": "t",
    "stop": "stop at t_min",
    "denoise": "go to σ = 0",
    "": "the first",
    "power": "power law",
    "data": "that of the data",
    "file": "eigenvalues from a file",
    "w2": "W₂ [x]",
    "kl": "KL [nats]",
    "prior": "the process's prior",
    "exact": "the exact marginal",
}


@dataclass(frozen=True)
class Control:
    """One control: its key in the flat form, and what it holds; of a list (``many``), a tuple."""

    key: str
    section: str
    label: str
    help: str
    kind: type
    value: Any
    choices: tuple[str, ...] = ()
    rare: bool = False
    many: bool = False
    upload: bool = False

    @property
    def options(self) -> dict[str, str]:
        """Choices by the words that show them."""
        return {words(choice): choice for choice in self.choices}


def words(name: str) -> str:
    """What a name is shown as; of a sampler with parameters, ``DPMSolverPP:order=3``, too."""
    name, *parts = name.split(":")
    told = [WORDS.get(name, name)]
    for key, _, value in (part.partition("=") for part in parts):
        known = {"true": key, "false": f"not {key}"}.get(value.lower(), f"{key} {value}")
        told.append({"order": value, "axis": f"in {WORDS.get(value, value)[0]}"}.get(key, known))
    return " ".join(told)


def controls(study: Study) -> list[Control]:
    """Every control of the form for ``study``, in order; which there are depends on its choices."""
    flat = study.to_flat()
    made = []
    for section, registry in SECTIONS.items():
        name = flat[section]
        summary = _summary(registry[name])
        made.append(Control(section, section, TITLES[section], summary, str, name, tuple(registry)))
        for key, parameter in parameters(section, name).items():
            made.append(_control(f"{section}_{key}", section, parameter, flat))
    made += [_control(key, "run", parameter, flat) for key, parameter in PLAIN.items()]
    return [c for c in made if c.key != "device" or len(c.choices) > 2 or c.value != "auto"]


def option_controls(options: Options) -> list[Control]:
    """The controls of a page's own options that matter as they stand."""
    lists, singles, flat = options.lists(), options.choices(), options.to_flat()
    made = []
    for key, parameter in declared(type(options)).items():
        if key not in options.wanted():
            continue
        parameter = replace(parameter, choices=singles.get(key, parameter.choices))
        control = _control(key, "options", parameter, flat)
        if key in lists:
            held = split(flat[key])
            choices = tuple(dict.fromkeys((*lists[key], *held)))
            control = replace(control, value=held, choices=choices, many=True)
        made.append(replace(control, upload=key in options.files()))
    return made


def key_of(path: str) -> str:
    """The control that a path of a :class:`StudyError` speaks of."""
    return "lenses" if path.startswith("lenses.") else path.replace(".", "_")


def edited(study: Study, key: str, values: Mapping[str, Any]) -> Study:
    """``study`` after a change of the control ``key``; ``values`` are those of all controls.

    Raises:
        StudyError: values that are not allowed.
    """
    if key in SECTIONS:  # the parameters on show belong to the entry before
        values = {k: v for k, v in values.items() if not k.startswith(key + "_")}
    return Study.changed(study.to_flat(), values)


def placed(problems: Mapping[str, str], keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """Problems by the control they speak of, and those that belong to none as one text."""
    by_control: dict[str, list[str]] = {key: [] for key in keys}
    rest: list[str] = []
    for path, sentence in problems.items():
        by_control.get(key_of(path), rest).append(sentence)
    return {key: " ".join(mine) for key, mine in by_control.items()}, " ".join(rest)


def problems_of(error: Exception) -> dict[str, str]:
    """What a failed run says to its reader, by path as in a :class:`StudyError`."""
    if isinstance(error, StudyError):
        return error.problems
    known = isinstance(error, ValueError | TypeError | NotImplementedError)
    return {"": str(error) if known else f"The run failed: {type(error).__name__}: {error}"}


def progress_text(progress: Progress) -> str:
    """Progress in words: what is done, how much of it, the time left."""
    left = progress.seconds_left
    left = "" if left is None else f", {left:.0f} s left" if left >= 1 else ", almost done"
    return f"{progress.stage} {progress.fraction:.0%}{left}"


def facts(result: Exploration) -> list[str]:
    """An exploration in numbers, as short texts."""
    run = result.run.attrs
    texts = [
        f"{result.study.grid.steps} steps, {run['nfe']} evaluations",
        f"{result.study.seeds.count} samples",
        f"sampled in {1000 * run['seconds']:.0f} ms on {run['device']}",
    ]
    if result.flow is not None:
        texts.append(f"RMS distance to the exact flow {float(result.flow['rms'][-1]):.3g}")
    return texts + told(result.run)


def _control(key: str, section: str, parameter: Declared, flat: dict[str, Any]) -> Control:
    help_text = parameter.param.help
    if key == "device":  # a study may name one that this machine lacks: it is shown, and refused
        choices = dict.fromkeys((*available_devices(), flat[key]))
        parameter = replace(parameter, choices=tuple(choices))
    bounds = parameter.param.allowed()
    return Control(
        key=key,
        section=section,
        label=parameter.label,
        help=f"{help_text[0].upper()}{help_text[1:]}{f' ({bounds})' if bounds else ''}.",
        kind=parameter.type,
        value=flat[key],
        choices=parameter.choices,
        rare=key in RARE,
    )


def _summary(target: Any) -> str:
    """The first sentence of a docstring."""
    text = inspect.getdoc(target) or ""
    return text.split("\n\n")[0].replace("\n", " ")
