"""Notebooks executed side by side, and a page that says how each went.

Each notebook has a process of its own, which executes it with papermill and turns it into HTML that
needs no network. When it ends, or has taken too long, nothing that it started is left running.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.studies import execution, plain
from workbench.studies.export import ENTRIES, declared_in, notebooks_folder, write
from workbench.studies.flat import parts_of
from workbench.studies.index import index_page
from workbench.studies.plain import nearest, shown
from workbench.studies.sections import ENTRIES as STUDY
from workbench.studies.spec import Study, StudyError

#: Seconds between two looks at a running notebook.
LOOK_EVERY = 0.1

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Report:
    """Notebooks to be executed and written as pages, for :func:`workbench.studies.jobs.submit`.

    Attributes:
        notebooks, parameters, timeout: as of :func:`report`; files by their absolute paths.
    """

    notebooks: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 1800.0

    @classmethod
    def of(cls, notebooks: Sequence[str | Path] = (), parameters=None, timeout=1800.0) -> Report:
        """The report of files or names; of all notebooks of the package if there is none.

        Raises:
            StudyError: as :func:`report`.
        """
        _check(timeout, None)
        tasks = _tasks(notebooks, dict(parameters or {}))
        return cls(tuple(str(task.path) for task in tasks), dict(parameters or {}), timeout)

    @classmethod
    def load(cls, path: Path) -> Report:
        """What :meth:`to_json` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {"notebooks": tuple(content["notebooks"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @property
    def hash(self) -> str:
        """What identifies it: the parameters, and what the notebooks hold."""
        made = hashlib.sha256(self.to_json().encode())
        for path in self.notebooks:
            made.update(Path(path).read_bytes())
        return made.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """How a notebook went.

    Attributes:
        name: of its files in the report, without ending.
        title: its first heading.
        parameters: what it was given.
        ok: whether all of it ran.
        seconds: of the whole execution.
        figure: its first figure as a ``data:`` address; empty if it has none.
        cell, source, error, traceback: of the cell that failed: its number as Jupyter counts
            (``In [5]``), its text, what was wrong in a line, and how Python told it.
    """

    name: str
    title: str
    parameters: dict[str, Any]
    ok: bool
    seconds: float
    figure: str = ""
    cell: str = ""
    source: str = ""
    error: str = ""
    traceback: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"{self.name}: ok, {self.seconds:.1f} s"
        where = f" in {self.cell}" if self.cell else ""
        return f"{self.name}: failed{where} after {self.seconds:.1f} s: {self.error}"


def values_of(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Values of parameters from their texts, read as YAML: ``{"steps": "8"}`` has the number 8.

    Raises:
        StudyError: a text that is not YAML.
    """
    values = {}
    for name, text in pairs.items():
        try:
            value = plain.parse(text) if text else ""
        except ValueError as error:
            raise StudyError({name: f"the parameter {name} was {shown(text)}: {error}."}) from None
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)  # YAML 1.1 takes 1e-3 for a text
        plain_value = value is None or isinstance(value, (bool, int, float, str, list, dict))
        values[name] = value if plain_value else text  # a date, say
    return values


def report(
    notebooks: Sequence[str | Path] = (),
    parameters: Mapping[str, Any] | None = None,
    out: str | Path = "site",
    timeout: float = 1800.0,
    jobs: int | None = None,
    overwrite: bool = False,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Execute notebooks and write each, as it is and as HTML, with an index to the folder ``out``.

    Args:
        notebooks: files, or names of notebooks of the package; all of these if there is none.
        parameters: values by name, each given to the notebooks that declare it.
        timeout: seconds that each notebook may take.
        jobs: how many run at a time; as many as there are processors by default.
        overwrite: whether files of an earlier report are replaced.
        on_done: called with each outcome as it comes.

    Raises:
        StudyError: a notebook that is not there, a parameter that none of them declares, files that
            are there, or what executes notebooks is not installed.
    """
    out = Path(out)
    _check(timeout, jobs)
    tasks = _tasks(notebooks, dict(parameters or {}))
    names = ["index.html", *(f"{task.name}{end}" for task in tasks for end in (".ipynb", ".html"))]
    there = [name for name in names if (out / name).exists()]
    if there and not overwrite:
        raise StudyError({"out": f"{out / there[0]} exists; name another folder or --overwrite."})
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".report-", dir=out))
    except OSError as error:
        raise StudyError({"out": f"{out} cannot be written: {error.strerror}."}) from None
    stop = threading.Event()

    def work(task: _Task) -> Outcome:
        outcome = _execute(task, folder, timeout, stop)
        if not stop.is_set():
            for file in (f"{task.name}.ipynb", f"{task.name}.html"):
                if (folder / file).is_file():
                    os.replace(folder / file, out / file)
            on_done(outcome)
        return outcome

    pool = ThreadPoolExecutor(jobs or os.cpu_count() or 1)
    try:
        waiting = [pool.submit(work, task) for task in tasks]
        outcomes = [each.result() for each in waiting]
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)
    write(index_page(outcomes, {p.stem for p in out.glob("*.html")}), out / "index.html", True)
    return outcomes


# -- what is to be done ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    name: str
    path: Path
    parameters: dict[str, Any] = field(default_factory=dict)


def _check(timeout: float, jobs: int | None) -> None:
    for package in ("papermill", "nbconvert", "latex2mathml", "ipykernel", "psutil"):
        if find_spec(package) is None:
            how = "pip install 'diffusion-workbench[notebooks]'"
            raise StudyError({"report": f"{package} is not installed; a report needs it: {how}."})
    if not 0 < timeout < float("inf"):
        raise StudyError({"timeout": f"--timeout was {timeout:g}; it must be seconds above 0."})
    if jobs is not None and jobs < 1:
        raise StudyError({"jobs": f"--jobs was {jobs}; it must be at least 1."})


def _tasks(notebooks: Sequence[str | Path], parameters: dict[str, Any]) -> list[_Task]:
    paths = [_found(each) for each in notebooks] or sorted(notebooks_folder().glob("*.ipynb"))
    declared, names = {}, {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            declared[path] = declared_in(content)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise StudyError({"notebook": f"{path} is not a notebook: {shown(error)}."}) from None
        taken = {"index", *names.values()}
        others = (f"{path.stem}~{number}" for number in range(2, len(taken) + 3))
        names[path] = next(name for name in (path.stem, *others) if name not in taken)
    known = dict.fromkeys(name for each in declared.values() for name in each)
    given = {}
    for path, names_there in declared.items():
        given[path] = {name: value for name, value in parameters.items() if name in names_there}
        if ENTRIES in names_there and ENTRIES not in parameters:
            entries = {k: v for k, v in parameters.items() if k not in known and _of_study(k)}
            if entries:
                there = ast.literal_eval(names_there[ENTRIES])
                given[path][ENTRIES] = {**there, **entries}
                Study.from_flat(given[path][ENTRIES])  # a sentence now if it is none
    for name in parameters:
        if name not in known and not (ENTRIES in known and _of_study(name)):
            raise StudyError(
                {
                    name: f"no notebook declares the parameter {shown(name)}"
                    f"{nearest(name, [*known, *Study().to_flat()])}; declared are "
                    f"{', '.join(known) or 'none'}, and in {ENTRIES} a study as in grid.steps=64."
                }
            )
    return [_Task(names[path], path, given[path]) for path in declared]


def _of_study(name: str) -> bool:
    """Whether a name is a flat key of a study."""
    section, *rest = parts_of(name)
    return section in Study().to_flat() or (section in STUDY and bool(rest))


def _found(notebook: str | Path) -> Path:
    """A notebook by its file, or by its name in the package."""
    packaged = {path.stem: path for path in notebooks_folder().glob("*.ipynb")}
    path = Path(notebook)
    if path.is_file():
        return path
    if found := packaged.get(str(notebook).removesuffix(".ipynb")):
        return found
    known = ", ".join(sorted(packaged))
    hint = nearest(path.stem, packaged)
    raise StudyError(
        {"notebook": f"there is no notebook {notebook}{hint}; the package has {known}."}
    )


# -- one notebook ------------------------------------------------------------------------------


def _execute(task: _Task, folder: Path, timeout: float, stop: threading.Event) -> Outcome:
    """Execute a notebook in a process of its own, and read what came of it."""
    order = {
        "notebook": str(task.path),
        "out": str(folder / f"{task.name}.ipynb"),
        "parameters": task.parameters,
    }
    started = time.monotonic()
    log = folder / f"{task.name}.log"
    with log.open("wb") as said:
        # The file by its path, not by its module: the package is not imported for it.
        worker = subprocess.Popen(
            [sys.executable, "-P", execution.__file__],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    family = execution.Family(worker.pid)
    late = False
    try:
        worker.stdin.write(json.dumps(order).encode())
        worker.stdin.close()
        while worker.poll() is None and not late and not stop.wait(LOOK_EVERY):
            family.look()
            late = time.monotonic() - started > timeout
    except BrokenPipeError:  # it ended before it had read: its log says why
        pass
    finally:
        family.end()
        worker.wait()
    seconds = time.monotonic() - started
    ok = worker.returncode == 0 and not late
    found = execution.result_of(folder / f"{task.name}.ipynb", failed=not ok)
    if late:
        found["error"] = f"it was not done after {timeout:g} s and was stopped."
    elif worker.returncode != 0 and not found.get("error"):
        lines = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        found["error"] = f"its process ended with status {worker.returncode}: {lines[-1]}"
        found["traceback"] = "\n".join(lines[-40:])
    if not ok and found.get("title"):  # as far as it came
        execution.to_html(folder / f"{task.name}.ipynb")
    if ok:
        found = {k: v for k, v in found.items() if k in ("title", "figure")}
    title = found.pop("title", "") or task.name
    return Outcome(task.name, title, task.parameters, ok, seconds, **found)
