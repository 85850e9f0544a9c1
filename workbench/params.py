"""Declared parameters: one declaration is the check, the form, the schema and the help text.

Whatever is registered declares each of its parameters once, in the annotation of its signature::

    beta_max: Annotated[float, Param("noise rate at t = 1", gt=0, le=1000)] = 20.0
    times:    Annotated[tuple[float, ...], Param("times of the nodes")]           # a list
    of:       Annotated[Denoiser, Param("what is perturbed", standard="Gaussian")] = None
    points:   Annotated[Path, Param("an .npy array")]                             # a file

From it come the check at construction (a sentence, see :func:`check`), the entries of the study
file, the controls of the pages and notebooks, the schema and the command line's help.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


def shown(value: Any) -> str:
    """``repr`` for a sentence: short, in one line, and of anything."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out more than a few thousand digits
        text = "a number of too many digits"
    except RecursionError:
        text = "something nested too deeply"
    return one_line(text, 100)


def one_line(text: str, most: int) -> str:
    """A text without line breaks and control characters; of a long one only its beginning."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Param:
    """What a parameter means and which values it takes (bounds as in JSON Schema).

    Attributes:
        help: its meaning, with the unit in brackets.
        ge, gt, le, lt: bounds of a number, or of each in a list.
        label: a short name for a form.
        standard: what a study takes where the signature's default cannot stand in a file: the name
            of a registered object, or its name and parameters.
        kind: the kind of a registered object whose class does not tell it (a condition, a Tensor).
        choices: the values of a text, where what is registered decides.
        fewest: how many a list holds at least.
    """

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    label: str = ""
    standard: Any = None
    kind: str = ""
    choices: Callable[[], Sequence[str]] | None = None
    fewest: int = 0

    def allowed(self) -> str:
        """The bounds as words: ``"at least 0 and below 1"``; empty where there are none."""
        lower = f"at least {self.ge:g}" if self.ge is not None else ""
        lower = f"greater than {self.gt:g}" if self.gt is not None else lower
        upper = f"at most {self.le:g}" if self.le is not None else ""
        upper = f"below {self.lt:g}" if self.lt is not None else upper
        return " and ".join(part for part in (lower, upper) if part)

    def admits(self, value: float) -> bool:
        """Whether a number lies within the bounds."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


#: What a value of each type is called in a sentence.
NAMED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Declared:
    """One parameter of a signature.

    Attributes:
        name: of the parameter.
        type: int, float, bool or str; Path of a file, whose content is what counts; tuple of a
            list; object of a registered object; a dataclass of a group of parameters.
        default: of the signature; ``inspect.Parameter.empty`` where there is none.
        param: its meaning and bounds.
        fixed: the values of a Literal.
        kinds: of a registered object.
        item: what a list holds.
        optional: whether it may be None.
    """

    name: str
    type: type
    default: Any
    param: Param
    fixed: tuple = ()
    kinds: tuple[str, ...] = ()
    item: Declared | None = None
    optional: bool = False

    @property
    def label(self) -> str:
        """A short name for a form."""
        return self.param.label or self.name.replace("_", " ")

    @property
    def choices(self) -> tuple:
        """The values that it may take, where they can be counted."""
        return tuple(self.param.choices()) if self.param.choices else self.fixed

    @property
    def needed(self) -> str:
        """What is needed, in words: ``a whole number, at least 1``."""
        if self.choices:
            return f"one of {', '.join(map(repr, self.choices))}"
        if self.item is not None:
            least = f" of at least {self.param.fewest}" if self.param.fewest else ""
            return f"a list{least}, each {self.item.needed}"
        if self.kinds:
            return f"a {' or '.join(self.kinds)}"
        if self.type not in NAMED:
            return "a file" if self.type is Path else "a mapping"
        bounds = self.param.allowed()
        return f"{NAMED[self.type]}, {bounds}" if bounds else NAMED[self.type]

    def problem(self, value: Any) -> str:
        """A sentence that says what is wrong with ``value``; empty if nothing is."""
        return "" if self.takes(value) else self.refusal(value)

    def refusal(self, value: Any) -> str:
        """The sentence that refuses ``value``: what was given and what is needed."""
        return f"{self.name} was {shown(value)}; it must be {self.needed}."

    def takes(self, value: Any) -> bool:
        """Whether ``value`` is allowed; objects and files are checked by who uses them."""
        if self.choices:
            return value in self.choices
        if self.item is not None:
            many = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
            return many and (
                not isinstance(value, list | tuple) or all(map(self.item.takes, value))
            )
        if self.type not in NAMED:
            return True
        if self.type is bool or isinstance(value, bool):
            return self.type is bool and isinstance(value, bool)
        if self.type is str:
            return isinstance(value, str)
        if not isinstance(value, numbers.Integral if self.type is int else numbers.Real):
            return False
        finite = isinstance(value, numbers.Integral) or math.isfinite(value)
        return finite and self.param.admits(value)

    def read(self, value: Any) -> Any:
        """A text as the number or truth value it stands for; what stands for none as it is."""
        if self.type is bool and isinstance(value, str):
            return {"true": True, "false": False}.get(value.strip().lower(), value)
        if self.choices:
            return next((one for one in self.choices if str(one) == value), value)
        if self.type not in (int, float) or isinstance(value, bool):
            return value
        if not isinstance(value, str | int | float):
            return value
        try:
            number = self.type(value)
        except (ValueError, OverflowError):
            return value
        return value if isinstance(value, float) and number != value else number


@functools.cache
def declared(target: Any) -> dict[str, Declared]:
    """The declared parameters of a class or function, by name; those without ``Param`` are not."""
    # A dataclass's hints are read off the classes, each resolved in its own module.
    plain_class = inspect.isclass(target) and not is_dataclass(target)
    hints = get_type_hints(target.__init__ if plain_class else target, include_extras=True)
    parameters = {}
    for name, parameter in inspect.signature(target).parameters.items():
        hint = hints.get(name)
        if get_origin(hint) is not Annotated:
            continue
        param = next((extra for extra in hint.__metadata__ if isinstance(extra, Param)), None)
        if param is not None:
            parameters[name] = _described(name, get_args(hint)[0], parameter.default, param)
    return parameters


def _described(name: str, base: Any, default: Any, param: Param) -> Declared:
    """A parameter by its annotation."""
    alternatives = get_args(base) if get_origin(base) in (Union, UnionType) else (base,)
    types = [one for one in alternatives if one is not NoneType]
    optional = len(types) < len(alternatives)
    kinds = tuple(getattr(one, "registry_kind", "") for one in types)
    kinds = (param.kind,) if param.kind else kinds
    if all(kinds):
        return Declared(name, object, default, param, kinds=kinds, optional=optional)
    (only,) = types
    if get_origin(only) in (tuple, list):
        item = _described(name, get_args(only)[0], inspect.Parameter.empty, param)
        param = replace(param, choices=None)
        return Declared(name, tuple, default, param, item=item, optional=optional)
    fixed = get_args(only) if get_origin(only) is Literal else ()
    kind = type(fixed[0]) if fixed else only
    return Declared(name, kind, default, param, fixed, optional=optional)


def check(target: Any, values: dict[str, Any]) -> None:
    """Raise ``ValueError`` with one sentence for the first declared parameter out of its range."""
    for name, parameter in declared(target).items():
        if name not in values or (values[name] is None and parameter.default is None):
            continue
        problem = parameter.problem(values[name])
        if problem:
            owner = getattr(target, "__name__", str(target))
            raise ValueError(f"{owner}: {problem}")


def checked(function):
    """Decorate a function so that its declared parameters are checked at each call."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        check(function, bound.arguments)
        return function(*args, **kwargs)

    return wrapper


class Parameterised:
    """Base of frozen dataclasses whose declared fields are checked when they are made."""

    def __post_init__(self) -> None:
        cls = type(self)
        check(cls, {name: getattr(self, name) for name in declared(cls)})
