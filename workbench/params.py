"""Declared parameters: one declaration is the check, the form, the schema and the help text.

A process, sampler, grid, data set or model of data declares each of its parameters once, in the
annotation of its signature::

    beta_max: Annotated[float, Param("noise rate at t = 1", gt=0, le=1000)] = 20.0

From it come the check at construction (a sentence, see :func:`check`), the fields of the study
file, the controls of the pages and notebooks, and the command line's help.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["Declared", "Param", "Parameterised", "check", "checked", "declared", "shown"]


def shown(value: Any) -> str:
    """``repr`` for a sentence: short, in one line, and of anything."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out more than a few thousand digits
        text = "a number of too many digits"
    except RecursionError:
        text = "something nested too deeply"
    return brief(text, 100)


def brief(text: str, most: int) -> str:
    """A text in one line, of at most about ``most`` characters."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Param:
    """What a parameter means and which values it takes (bounds as in pydantic and JSON Schema)."""

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    label: str = ""

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


@dataclass(frozen=True)
class Declared:
    """One parameter of a signature: its name, type, default, choices and :class:`Param`."""

    name: str
    type: type
    default: Any
    param: Param
    choices: tuple = ()

    @property
    def label(self) -> str:
        """A short name for a form."""
        return self.param.label or self.name.replace("_", " ")

    def problem(self, value: Any) -> str:
        """A sentence that says what is wrong with ``value``; empty if nothing is."""
        if self.choices:
            if value in self.choices:
                return ""
            choices = ", ".join(map(repr, self.choices))
            return f"{self.name} was {shown(value)}; it must be one of {choices}."
        kind = {
            int: "a whole number",
            float: "a finite number",
            bool: "true or false",
            str: "a text",
        }[self.type]
        bounds = self.param.allowed()
        sentence = (
            f"{self.name} was {shown(value)}; it must be {kind}{', ' + bounds if bounds else ''}."
        )
        if self.type is bool or isinstance(value, bool):
            return "" if self.type is bool and isinstance(value, bool) else sentence
        if self.type is str:
            return "" if isinstance(value, str) else sentence
        wanted = numbers.Integral if self.type is int else numbers.Real
        if not isinstance(value, wanted):
            return sentence
        if not isinstance(value, numbers.Integral) and not math.isfinite(value):
            return sentence
        return "" if self.param.admits(value) else sentence


@functools.cache
def declared(target: Any) -> dict[str, Declared]:
    """The declared parameters of a class or function, by name; those without ``Param`` are not."""
    # A dataclass's hints are read off the classes, each resolved in its own module.
    plain_class = inspect.isclass(target) and not is_dataclass(target)
    hints = get_type_hints(target.__init__ if plain_class else target, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        hint = hints.get(name)
        if get_origin(hint) is not Annotated:
            continue
        param = next((extra for extra in hint.__metadata__ if isinstance(extra, Param)), None)
        if param is None:
            continue
        base = get_args(hint)[0]
        choices = get_args(base) if get_origin(base) is Literal else ()
        kind = type(choices[0]) if choices else base
        found[name] = Declared(name, kind, parameter.default, param, choices)
    return found


def check(target: Any, values: dict[str, Any]) -> None:
    """Raise ``ValueError`` with one sentence for the first declared parameter out of its range."""
    for name, parameter in declared(target).items():
        problem = parameter.problem(values[name]) if name in values else ""
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
