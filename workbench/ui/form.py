"""The form of a study, free of any toolkit: its controls, and what a change of one of them means.

It is read off the registries, so a new process, sampler, grid, data set or denoiser has its
controls on every page and in every notebook without another edit. What pages and notebooks say to
the reader is said here too, so that it is the same sentence in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import registry
from workbench.params import Declared, declared
from workbench.studies import SECTIONS, Exploration, Study, StudyError, available_devices
from workbench.studies.measuring import told
from workbench.studies.options import Options, split
from workbench.studies.spec import ENTRIES, Choice
from workbench.ui.broker import Progress
from workbench.workers.pool import Died

if TYPE_CHECKING:
    import xarray

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
RARE = {"data.seed", "data.size", "process.t_min", "lenses", "noise", "dtype", "device"}

#: Entries of a study that stand at the end of the form, in its order.
RUN = ("seeds.count", "seeds.first", "lenses", "noise", "dtype", "device")

#: More choices than these are grouped by family.
LONG = 12

#: Families of samplers in the order of the list, by the module that defines them.
FAMILIES = {
    "runge_kutta": "Runge–Kutta",
    "adaptive": "Adaptive",
    "ancestral": "DDIM and ancestral",
    "exponential": "Exponential integrators",
    "multistep": "Multistep",
    "dpm_v3": "Multistep",
    "evodiff": "Multistep",
    "taylor": "Taylor",
    "stochastic": "Stochastic",
    "predictor_corrector": "Stochastic",
    "gibbs": "Stochastic",
    "transport": "Optimal transport",
    "deblur": "Spectral",
    "reversible": "Reversible",
    "inversion": "Inversion",
    "coupled": "Inversion",
}
OTHERS = "Others"

#: What one slides: the range of the slider; any value that the study allows may be typed.
SLIDES = {
    "steps": (1, 256),
    "count": (16, 4096),
    "eta": (0.0, 1.0),
    "order": (1, 4),
    "nfe": (2, 128),
    "modes": (1, 64),
    "std": (0.01, 1.0),
    "scale": (0.5, 2.0),
    "size": (-0.5, 0.5),
}

WORDS = {
    "log_snr": "log-SNR",
    "karras": "Karras",
    "swiss_roll": "swiss roll",
    "moons": "two moons",
    "ring": "ring of Gaussians",
    "gaussian": "one Gaussian",
    "field": "power-law images",
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
    "fine_energy": "fine detail",
    "log_density": "log-density",
    "class_probability": "class odds",
    "feature_distance": "distance of features",
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
    """One control: its key in the flat form, and what it holds: of a list (``many``) a tuple, of
    an ``optional`` number that is not given an empty text."""

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
    slide: tuple[float, float] | None = None
    optional: bool = False

    @property
    def options(self) -> dict[str, str]:
        """Choices by the words that show them."""
        return {words(choice): choice for choice in self.choices}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Choices by the family they belong to, for a long list; one group without a name else."""
        if self.section not in ("sampler", "options") or len(self.choices) <= LONG:
            return {"": list(self.choices)}
        grouped: dict[str, list[str]] = {}
        for choice in self.choices:
            grouped.setdefault(family(choice), []).append(choice)
        order = [*FAMILIES.values(), OTHERS]
        return dict(sorted(grouped.items(), key=lambda item: order.index(item[0])))


def family(sampler: str) -> str:
    """The family of a sampler, by its name in a study: that of the module it stands in."""
    name = sampler.partition(":")[0]
    for kind in ("sampler", "inversion"):
        if name in registry.entries(kind):
            target = registry.entry(kind, name).target
            module = getattr(target, "__module__", "")
            return FAMILIES.get(module.rpartition(".")[2], OTHERS)
    return OTHERS


def words(name: str) -> str:
    """What a name is shown as; of a sampler with parameters, ``DPMSolverPP:order=3``, too."""
    name, *parts = name.split(":")
    told = [WORDS.get(name, name)]
    for key, _, value in (part.partition("=") for part in parts):
        known = {"true": key, "false": f"not {key}"}.get(value.lower(), f"{key} {value}")
        told.append({"order": value, "axis": f"in {WORDS.get(value, value)[0]}"}.get(key, known))
    return " ".join(told)


def controls(study: Study) -> list[Control]:
    """Every control of the form for ``study``, in order; which there are depends on its choices.

    A parameter that is an object is a choice, followed by the parameters of the chosen one.
    """
    flat, found = study.to_flat(), []
    for section in SECTIONS:
        found += _of_choice(section, section, TITLES[section], getattr(study, section), flat)
    groups = {"seeds": declared(type(study.seeds))}
    for key in RUN:
        section, _, name = key.partition(".")
        one = groups[section][name] if name else ENTRIES[key]
        found.append(_control(key, "run", one, flat[key]))
        if key == "lenses":
            for lens in study.lenses:
                for part in _of_choice(f"lenses.{lens.name}", "run", lens.name, lens, flat)[1:]:
                    found.append(replace(part, label=f"{lens.name}: {part.label}", rare=True))
    return [c for c in found if c.key != "device" or len(c.choices) > 2 or c.value != "auto"]


def _of_choice(
    key: str, section: str, label: str, choice: Choice, flat: Mapping[str, Any]
) -> list[Control]:
    """The controls of a registered object: its name, and its parameters."""
    entry = choice.entry
    kinds = ENTRIES[key].kinds if key in ENTRIES else (entry.kind,)
    names = tuple(dict.fromkeys(name for kind in kinds for name in registry.entries(kind)))
    rare = key in RARE
    found = [Control(key, section, label, entry.summary, str, choice.name, names, rare)]
    for name, one in entry.parameters.items():
        place, value = f"{key}.{name}", choice.parameters[name]
        if isinstance(value, Choice):
            found += _of_choice(place, section, one.label, value, flat)
        else:
            text = flat[place] if one.item or value is None else value
            found.append(_control(place, section, one, text))
    return found


def option_controls(options: Options) -> list[Control]:
    """The controls of a page's own options that matter as they stand."""
    lists, singles, flat = options.lists(), options.choices(), options.to_flat()
    made = []
    for key, parameter in declared(type(options)).items():
        if key not in options.wanted():
            continue
        parameter = replace(parameter, fixed=singles.get(key, parameter.choices))
        control = _control(key, "options", parameter, flat[key])
        if key in lists:
            held = split(flat[key])
            choices = tuple(dict.fromkeys((*lists[key], *held)))
            control = replace(control, value=held, choices=choices, many=True)
        made.append(replace(control, upload=key in options.files()))
    return made


def edited(study: Study, key: str, values: Mapping[str, Any]) -> Study:
    """``study`` after a change of the control ``key``; ``values`` are those of all controls.

    Raises:
        StudyError: values that are not allowed.
    """
    # The parameters on show below a choice belong to the object before.
    shown = {k: v for k, v in values.items() if not k.startswith(f"{key}.")}
    if key == "lenses":
        shown = {k: v for k, v in shown.items() if not k.startswith("lenses.")}
    return study.changed(shown)


def placed(problems: Mapping[str, str], keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """Problems by the control they speak of, and those that belong to none as one text.

    A path without a control belongs to the nearest one above it: ``record.fields.1``.
    """
    by_control: dict[str, list[str]] = {key: [] for key in keys}
    rest: list[str] = []
    for path, sentence in problems.items():
        parts = path.split(".")
        above = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
        by_control.get(next((key for key in above if key in by_control), ""), rest).append(sentence)
    return {key: " ".join(mine) for key, mine in by_control.items()}, " ".join(rest)


def problems_of(error: Exception) -> dict[str, str]:
    """What a failed run says to its reader, by path as in a :class:`StudyError`."""
    if isinstance(error, StudyError):
        return error.problems
    known = isinstance(error, ValueError | TypeError | NotImplementedError | Died)
    return {"": str(error) if known else f"The run failed: {type(error).__name__}: {error}"}


def sentence_of(error: Exception) -> str:
    """What a failed run says to its reader, as one text."""
    return " ".join(problems_of(error).values())


def progress_text(progress: Progress) -> str:
    """Progress in words: what is done, how much of it, the time left."""
    left = progress.seconds_left
    left = "" if left is None else f", {left:.0f} s left" if left >= 1 else ", almost done"
    return f"{progress.stage} {progress.fraction:.0%}{left}"


def title_of(result: Exploration) -> str:
    """The study in a line, each thing by the name that the form has for it."""
    study = result.study
    eta = getattr(study.sampler, "eta", None)
    method = words(study.sampler.name) + (f" (eta {eta:g})" if eta is not None else "")
    names = [words(one.name) for one in (study.grid, study.process, study.data, study.denoiser)]
    grid, process, data, model = names
    return (
        f"{method}, {result.setup.grid.steps} steps on a {grid} grid, {process}; {data} as {model}"
    )


def facts(result: Exploration) -> list[str]:
    """An exploration in numbers, as short texts."""
    run = result.run.attrs
    texts = [f"{result.setup.grid.steps} steps, {run['nfe']} evaluations"]
    if result.flow is not None:
        texts.append(distance(result.flow))
    texts += [
        f"{result.study.seeds.count} samples",
        f"sampled in {1000 * run['seconds']:.0f} ms on {run['device']}",
    ]
    return texts + told(result.run)


def distance(flow: xarray.Dataset) -> str:
    """How far a run ends from its exact flow."""
    return f"RMS distance to the exact flow {float(flow['rms'][-1]):.3g}"


def _control(key: str, section: str, parameter: Declared, value: Any) -> Control:
    help_text = parameter.param.help
    if key == "device":  # a study may name one that this machine lacks: it is shown, and refused
        choices = dict.fromkeys((*available_devices(), value))
        parameter = replace(parameter, fixed=tuple(choices))
    bounds = parameter.param.allowed()
    plain = parameter.type in (int, float, bool, str)
    return Control(
        key=key,
        section=section,
        label=parameter.label,
        help=f"{help_text[0].upper()}{help_text[1:]}{f' ({bounds})' if bounds else ''}.",
        kind=parameter.type if plain else str,
        value=value,
        choices=() if parameter.item else parameter.choices,
        rare=key in RARE,
        upload=parameter.type is Path,
        slide=_slide(key, parameter),
        optional=parameter.optional,
    )


def _slide(key: str, parameter: Declared) -> tuple[float, float] | None:
    """The range of a number's slider, within the bounds of the number; None without a slider."""
    span = SLIDES.get(key.rpartition(".")[2])
    if span is None or parameter.type not in (int, float) or parameter.choices:
        return None
    low, high = span
    low = max(low, parameter.param.ge) if parameter.param.ge is not None else low
    high = min(high, parameter.param.le) if parameter.param.le is not None else high
    return (low, high) if low < high else None


#: Files that the browser offers for an upload, by the control's key.
ACCEPTED = {"start": ".safetensors", "denoiser.file": ".safetensors,.zip"}


def described(control: Control, sentence: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    """A control as the browser's form reads it.

    Args:
        control: as it stands.
        sentence: what is wrong with it; empty if nothing is.
        typed: values that were refused, which stay in the form.
    """
    kind = "bool" if control.kind is bool else "choice" if control.choices else "text"
    kind = "file" if control.upload else "many" if control.many else kind
    groups = control.groups if control.choices else {}
    slide = control.slide
    return {
        "key": control.key,
        "section": control.section,
        "label": control.label,
        "help": control.help,
        "kind": kind,
        "head": control.key == control.section,
        "rare": control.rare,
        "value": str(control.value or "")[:12]
        if control.upload
        else typed.get(control.key, shown_value(control)),
        "options": [
            [group, [[choice, words(choice)] for choice in choices]]
            for group, choices in groups.items()
        ],
        "slide": slide
        and {
            "low": slide[0],
            "high": slide[1],
            "whole": control.kind is int,
            "log": slide[0] > 0 and slide[1] / slide[0] >= 50,
        },
        "accept": ACCEPTED.get(control.key, ".npy,.csv,.txt"),
        "error": _by_label(sentence, control),
    }


def shown_value(control: Control) -> Any:
    """A control's value as its widget holds it: numbers as text, a list as one."""
    if control.many:
        return list(control.value)
    return control.value if control.choices or control.kind is bool else str(control.value)


def _by_label(sentence: str, control: Control) -> str:
    """A sentence beside a control, which names the control as the form does."""
    if sentence.startswith(f"{control.key} "):
        return f"{control.label}{sentence[len(control.key) :]}"
    return sentence
