"""One registry: whatever can be named in a study, by its kind and its name.

An object registers itself where it is defined, in the package, in a plugin or in a notebook's
cell::

    @wb.register                          # a class: its kind is that of its base class
    @wb.register(kind="data")             # a function
    @wb.register(name="gap")              # under another name than its own

The package's own objects are imported when their kind is first asked for. Plugins are Python files
named by ``--plugin`` or ``WORKBENCH_PLUGINS``, and entry points of the group ``workbench.plugins``;
only who starts the program chooses them.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pkgutil
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module, util
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from workbench.params import Declared, declared, shown


@dataclass(frozen=True)
class Kind:
    """A kind of registered object.

    Attributes:
        title: what its objects are.
        gives: what one has to be or to give.
        room: the module or package whose own objects are of it.
    """

    title: str
    gives: str
    room: str


KINDS = {
    "data": Kind(
        "data sets",
        "a function of declared parameters that returns a `wb.Data`",
        "workbench.datasets",
    ),
    "denoiser": Kind(
        "denoisers: posterior means E[x0 | x]",
        "a `wb.Denoiser` with `posterior_mean(x, alpha, sigma)`; `from_data(data, ...)` declares "
        "what a study says of it",
        "workbench.denoisers",
    ),
    "process": Kind(
        "how data becomes noise",
        "a frozen dataclass of `wb.Process` with `alpha(t)` and `sigma(t)`, or with `at(t)`",
        "workbench.processes",
    ),
    "condition": Kind(
        "what an affine process draws the data towards",
        "a function of the data and of declared parameters that returns a tensor",
        "workbench.datasets",
    ),
    "spectrum": Kind(
        "one variance per mode of a basis",
        "a function of the data and of declared parameters that returns a function of the basis",
        "workbench.datasets",
    ),
    "basis": Kind(
        "bases of spectral processes", "a `Basis` with `from_data(data)`", "workbench.processes"
    ),
    "path": Kind(
        "paths between two densities", "a frozen dataclass of `Path`", "workbench.processes"
    ),
    "sampler": Kind(
        "samplers",
        "a frozen dataclass of `wb.Sampler` with `rows`, or of `wb.RungeKutta` with a tableau",
        "workbench.sampling.methods",
    ),
    "inversion": Kind(
        "samplers that can be walked backwards",
        "a frozen dataclass of `wb.Inversion` with `forth` and `back`",
        "workbench.sampling.methods",
    ),
    "grid": Kind(
        "time grids",
        "a function of the process and of declared parameters that returns a `wb.Grid`",
        "workbench.sampling.grid",
    ),
    "reduction": Kind(
        "reductions of a recorded field over samples",
        "a function of values (n, *event) that returns a feature of each; `dims` names its axes",
        "workbench.sampling.record",
    ),
    "lens": Kind(
        "what is measured of a run",
        "a frozen dataclass of `wb.Lens` with `measure`",
        "workbench.lenses",
    ),
    "network": Kind(
        "networks that can be trained",
        "a `Network` of `event_shape`, `classes` and declared parameters with "
        "`forward(x, noise, labels)`",
        "workbench.learning.networks",
    ),
    "format": Kind(
        "files of networks that others have trained",
        "a function of a file, a label and a guidance that returns a `wb.Neural`, or None for a "
        "file of another format",
        "workbench.learning.adapters",
    ),
    "objective": Kind(
        "training objectives",
        "a frozen dataclass of `Objective` with `levels` and `loss`",
        "workbench.learning.objectives",
    ),
    "regulariser": Kind(
        "regularisers of a training",
        "a frozen dataclass of `Regulariser` with `penalty`",
        "workbench.learning.regularisers",
    ),
    "page": Kind(
        "pages of the served workbench, by their address",
        "a function without parameters that returns what is shown; `title` is given to `register`",
        "workbench.ui.apps",
    ),
}

#: Where plugins are named: files, apart by the system's separator of paths.
VARIABLE = "WORKBENCH_PLUGINS"
GROUP = "workbench.plugins"


class PluginError(ValueError):
    """A plugin that cannot be used, or two objects of one name; the text says what to do."""


@dataclass(frozen=True)
class Entry:
    """A registered object.

    Attributes:
        kind, name: under which it is registered.
        target: the class or function.
        facts: further facts given to :func:`register`.
    """

    kind: str
    name: str
    target: Any
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def make(self) -> Callable[..., Any]:
        """What takes the parameters: ``from_data`` where the class has one, else the target."""
        return getattr(self.target, "from_data", self.target)

    @cached_property
    def parameters(self) -> dict[str, Declared]:
        """Its declared parameters, by name, and what a study says beside them."""
        return declared(self.make) | self.asks

    @property
    def asks(self) -> Mapping[str, Declared]:
        """What a study says beside the parameters: an affine process's condition."""
        return getattr(self.target, "asks", {})

    @cached_property
    def summary(self) -> str:
        """The first paragraph of its docstring, in one line."""
        return summary(self.target)

    @property
    def origin(self) -> str:
        """The file that defines it; empty for the package's own objects and where there is none."""
        if _is_own(self.target):
            return ""
        module = sys.modules.get(getattr(self.target, "__module__", None))
        if file := getattr(module, "__file__", None):
            return file
        try:
            return inspect.getsourcefile(self.target) or ""
        except TypeError:
            return ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the source that defines it; empty for the package's own objects."""
        if _is_own(self.target):
            return ""
        try:
            content = Path(self.origin).read_bytes()
        except OSError:  # a cell of a notebook
            try:
                content = inspect.getsource(self.target).encode()
            except (OSError, TypeError):
                return ""
        return hashlib.sha256(content).hexdigest()

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


def summary(target: Any) -> str:
    """The first paragraph of a docstring, in one line, without markup."""
    text = (inspect.getdoc(target) or "").split("\n\n")[0]
    return re.sub(r"\s*\n", " ", re.sub(r":\w+:`~?([^`]*)`", r"\1", text)).strip()


_entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
_opened: set[str] = set()
_plugged: list[str] | None = None  # the files loaded; None before the first look
_lock = threading.RLock()


def register(
    target: Any = None, /, *, kind: str | None = None, name: str | None = None, **facts: Any
) -> Any:
    """Register a class or a function; a decorator, with or without arguments.

    Args:
        target: the object.
        kind: one of :data:`KINDS`; a class has that of its base class.
        name: under which a study names it; None: its own.
        facts: of its kind, e.g. ``dims=("band",)`` of a reduction.

    Returns:
        ``target`` itself.

    Raises:
        PluginError: another object of that kind and name. One defined again (a notebook's cell run
            twice) takes the place of the first.
        TypeError: no kind, or an unknown one.
    """
    if target is None:
        return lambda found: register(found, kind=kind, name=name, **facts)
    kind = kind or getattr(target, "registry_kind", None)
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise TypeError(
            f"register was given {shown(target)} of kind {kind!r}; derive it from a base class "
            f"such as wb.Process, or name its kind: {known}."
        )
    made = Entry(kind, name or target.__name__, target, MappingProxyType(dict(facts)))
    if not _is_own(target):
        _open(kind)  # what the package has must be known before a name can be free
    with _lock:
        there = _entries[kind].get(made.name)
        if there is not None and not _same(there.target, target):
            raise PluginError(
                f"two objects of kind {kind} are named {made.name!r}: {_place(there)} and "
                f"{_place(made)}; give one another name, @wb.register(name=...)."
            )
        named = {**_entries[kind], made.name: made}
        _entries[kind] = dict(sorted(named.items(), key=lambda item: item[0].lower()))
    return target


def _is_own(target: Any) -> bool:
    return (getattr(target, "__module__", "") or "").partition(".")[0] == "workbench"


def _same(one: Any, other: Any) -> bool:
    """Whether two objects are definitions of the same thing."""
    place = [(getattr(each, "__module__", ""), each.__qualname__) for each in (one, other)]
    return place[0] == place[1]


def _place(one: Entry) -> str:
    place = f"{getattr(one.target, '__module__', '')}.{one.target.__qualname__}"
    return f"{one.target.__qualname__} of {one.origin}" if one.origin else place


def entries(kind: str) -> Mapping[str, Entry]:
    """Every registered object of a kind by its name, in the order of names.

    Raises:
        PluginError: a plugin that cannot be used.
    """
    if kind not in KINDS:
        raise KeyError(f"{kind!r} is no kind of object; the kinds are {', '.join(KINDS)}.")
    _plug()
    _open(kind)
    return _entries[kind]


def entry(kind: str, name: str) -> Entry:
    """The object of that kind and name; ``KeyError`` if there is none."""
    return entries(kind)[name]


def _open(kind: str) -> None:
    """Import the package's own objects of a kind: every module of its room."""
    room = KINDS[kind].room
    if room in _opened:
        return
    with _lock:
        if room in _opened:
            return
        _opened.add(room)  # first, since a module of the room may ask while it is imported
        try:
            module = import_module(room)
        except ModuleNotFoundError as error:
            if error.name != room:
                raise
            return  # a room that is not built yet
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            import_module(f"{room}.{found.name}")


# ---- plugins -------------------------------------------------------------------------------------


def use_plugins(files: Iterable[str | Path]) -> None:
    """Load plugin files, here and in every process that is started from here.

    Raises:
        PluginError: a file that cannot be read or fails, or a name that is taken.
    """
    paths = [str(Path(file).resolve()) for file in files]
    named = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    both = list(dict.fromkeys([*named, *paths]))
    _plug(both)
    if both:
        os.environ[VARIABLE] = os.pathsep.join(both)


def plugins() -> tuple[str, ...]:
    """The plugin files that are in use."""
    _plug()
    return tuple(_plugged or ())


def _plug(files: list[str] | None = None) -> None:
    """Load the plugins that are named, each once."""
    global _plugged
    if _plugged is not None and files is None:
        return
    with _lock:
        first = _plugged is None
        done = list(_plugged or ())
        if files is None:
            files = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
        _plugged = done  # a plugin may ask for what is registered
        try:
            with _undone_on_failure():
                for found in entry_points(group=GROUP) if first else ():
                    where = found.dist.name if found.dist else "an unknown distribution"
                    with _told(f"the plugin {found.value} of {where}"):
                        found.load()
                for file in files:
                    if file not in done:
                        _load(Path(file))
                        done.append(file)
        except BaseException:
            _plugged = None if first else _plugged
            raise


def _load(file: Path) -> None:
    """Import a file as a module of its own."""
    if not file.is_file():
        raise PluginError(f"the plugin {file} is not there; name a Python file.")
    mark = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"workbench_plugin_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{mark}"
    spec = util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"the plugin {file} is no Python file; its name must end in .py.")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    with _told(f"the plugin {file}"):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


@contextmanager
def _told(plugin: str) -> Iterator[None]:
    """Whatever a plugin raises as one sentence that names it."""
    try:
        yield
    except PluginError as error:
        raise PluginError(f"{plugin} cannot be used: {error}") from None
    except (Exception, SystemExit) as error:
        lines = traceback.extract_tb(error.__traceback__)
        line = next((f", line {f.lineno}" for f in reversed(lines) if f.filename in plugin), "")
        line = line or (f", line {error.lineno}" if isinstance(error, SyntaxError) else "")
        reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
        raise PluginError(
            f"{plugin} cannot be imported{line}: {type(error).__name__}: {reason}."
        ) from error


@contextmanager
def _undone_on_failure() -> Iterator[None]:
    before = {kind: dict(named) for kind, named in _entries.items()}
    opened = set(_opened)
    try:
        yield
    except BaseException:
        for kind, named in before.items():
            if KINDS[kind].room in opened:
                _entries[kind] = named
            else:  # the package's own objects, imported meanwhile, stay
                _entries[kind] = {k: e for k, e in _entries[kind].items() if _is_own(e.target)}
        raise


@contextmanager
def kept() -> Iterator[None]:
    """Whatever is registered within is forgotten after: for tests."""
    for kind in KINDS:
        _open(kind)
    before = {kind: dict(named) for kind, named in _entries.items()}
    try:
        yield
    finally:
        _entries.update(before)


# ---- views ---------------------------------------------------------------------------------------


class View(Mapping):
    """Registered objects by their names, always those of the moment.

    Args:
        kinds: of the objects.
        only: whether an entry belongs to the view; None: every one does.
    """

    def __init__(self, *kinds: str, only: Callable[[Entry], bool] | None = None) -> None:
        self._kinds, self._only = kinds, only

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries by their names."""
        return {
            name: one
            for kind in self._kinds
            for name, one in entries(kind).items()
            if self._only is None or self._only(one)
        }

    def __getitem__(self, name: str) -> Any:
        return self.entries[name].target

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<{' and '.join(self._kinds)}: {', '.join(self)}>"
