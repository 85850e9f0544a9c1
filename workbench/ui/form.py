"""The form of a study, free of any toolkit: which controls there are, and what each one means.

It is read off the registries, so a new process, sampler, grid, data set or denoiser has its controls
on every page and in every notebook without another edit.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from workbench.params import Declared
from workbench.studies import SECTIONS, Study, available_devices, parameters
from workbench.studies.spec import PLAIN

__all__ = ["TITLES", "Control", "controls", "key_of"]

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
RARE = {"data_seed", "data_size", "process_t_min", "dtype", "device", "seeds_first"}

WORDS = {
    "log_snr": "log-SNR",
    "karras": "Karras",
    "swiss_roll": "swiss roll",
    "moons": "two moons",
    "ring": "ring of Gaussians",
    "gaussian": "one Gaussian",
    "digits": "digits (8 × 8)",
    "RectifiedFlow": "Rectified flow",
    "EulerMaruyama": "Euler–Maruyama",
    "rho": "ρ = σ/α",
    "t": "t",
    "stop": "stop at t_min",
    "denoise": "denoise to σ = 0",
}


@dataclass(frozen=True)
class Control:
    """One control: its key in the flat form, and what it holds."""

    key: str
    section: str
    label: str
    help: str
    kind: type
    value: Any
    choices: tuple[str, ...] = ()
    rare: bool = False

    @property
    def options(self) -> dict[str, str]:
        """Choices by the words that show them."""
        return {WORDS.get(choice, choice): choice for choice in self.choices}


def controls(study: Study) -> list[Control]:
    """Every control of the form for ``study``, in order; which there are depends on its choices."""
    flat = study.to_flat()
    made = []
    for section, registry in SECTIONS.items():
        name = flat[section]
        summary = _summary(registry[name])
        made.append(
            Control(section, section, TITLES[section], summary, str, name, tuple(registry))
        )
        for key, declared in parameters(section, name).items():
            made.append(_control(f"{section}_{key}", section, declared, flat))
    made += [_control(key, "run", declared, flat) for key, declared in PLAIN.items()]
    return [c for c in made if c.key != "device" or len(c.choices) > 2 or c.value != "auto"]


def key_of(path: str) -> str:
    """The control that a path of a :class:`StudyError` speaks of."""
    return path.replace(".", "_")


def _control(key: str, section: str, declared: Declared, flat: dict[str, Any]) -> Control:
    help_text = declared.param.help
    if key == "device":
        declared = replace(declared, choices=available_devices())
    bounds = declared.param.allowed()
    return Control(
        key=key,
        section=section,
        label=declared.label,
        help=f"{help_text[0].upper()}{help_text[1:]}{f' ({bounds})' if bounds else ''}.",
        kind=declared.type,
        value=flat[key],
        choices=declared.choices,
        rare=key in RARE,
    )


def _summary(target: Any) -> str:
    """The first sentence of a docstring."""
    text = inspect.getdoc(target) or ""
    return text.split("\n\n")[0].replace("\n", " ")
