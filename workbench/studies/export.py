"""A study as a notebook, as a script, or as a file again: each leaves the same arrays."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from workbench.studies.plain import nearest
from workbench.studies.sections import SECTIONS
from workbench.studies.spec import Study, StudyError
from workbench.studies.store import replace_text

#: What a study can be written as, and the endings of such a file.
FORMS = {"notebook": (".ipynb",), "script": (".py",), "study": (".yaml", ".yml", ".json")}

#: The parameter of a notebook that holds its study, in the flat form.
ENTRIES = "entries"

PACKAGE = Path(__file__).parent.parent

SCRIPT = '''"""{title}.

Study {hash}.
"""

import sys
from pathlib import Path

import workbench as wb
from workbench.studies import store

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "run.zarr")

study = wb.Study(
{sections})

if __name__ == "__main__":
    if OUT.exists():
        sys.exit(f"{{OUT}} is there already; name another place: python {{sys.argv[0]}} other.zarr")
    run = wb.run(study)
    store.write(run, OUT)
    print(run)
'''


def notebooks_folder() -> Path:
    """Where the notebooks are: inside an installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "notebooks", PACKAGE.parent / "notebooks"):
        if folder.is_dir():
            return folder
    raise StudyError(
        {"notebook": f"no notebooks folder was found in or beside {PACKAGE}; reinstall the package"}
    )


def export(
    study: Study, to: str = "study", out: str | Path | None = None, overwrite: bool = False
) -> str:
    """The text of ``study`` as a ``notebook``, a ``script`` or a ``study``; written to ``out``.

    Args:
        out: the file to write, if any. A study is written as JSON where its name says so.
        overwrite: whether a file that is there may be replaced.

    Raises:
        StudyError: another form, a name that belongs to another form, a file that is there or
            cannot be written.
    """
    if to not in FORMS:
        known = ", ".join(FORMS)
        raise StudyError({"to": f"--to was {to!r}{nearest(to, FORMS)}; it must be one of {known}."})
    suffix = Path(out).suffix.lower() if out is not None else FORMS[to][0]
    if suffix not in FORMS[to]:
        endings = " or ".join(FORMS[to])
        raise StudyError({"out": f"--out was {out}; the name of a {to} ends in {endings}."})
    if to == "study":
        text = study.to_json() if suffix == ".json" else study.to_yaml()
    else:
        text = to_notebook(study) if to == "notebook" else to_script(study)
    if out is not None:
        write(text, out, overwrite)
    return text


def to_script(study: Study) -> str:
    """A few lines of Python that run ``study`` and store its arrays."""
    sections = "".join(f"    {key}={_literal(value)},\n" for key, value in study.to_dict().items())
    title = f"{study.sampler.name} on {study.data.name}, a study of the Diffusion Workbench"
    return SCRIPT.format(title=title, hash=study.hash, sections=sections)


def to_notebook(study: Study) -> str:
    """The notebook of trajectories with ``study`` in its cell of parameters."""
    template = notebooks_folder() / "trajectories.ipynb"
    notebook = json.loads(template.read_text(encoding="utf-8"))
    cell = parameters_cell(notebook)
    lines = "".join(f"    {_literal(k)}: {_literal(v)},\n" for k, v in brief(study).items())
    source = _filled("".join(cell["source"]), {ENTRIES: f"{{\n{lines}}}"})
    cell["source"] = source.splitlines(True)
    for other in notebook["cells"]:
        if other["cell_type"] == "code":
            other.update(outputs=[], execution_count=None)
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"]["kernelspec"] = python
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def brief(study: Study) -> dict[str, Any]:
    """What a study holds, without what it would hold anyway; in the flat form."""
    flat, told = study.to_flat(), {}
    expected: dict[str, Any] = {}
    for key, value in flat.items():
        if key in SECTIONS or (key != "study" and expected.get(key) != value):
            told[key] = value
            try:
                expected = Study.from_flat(told).to_flat()
            except StudyError:  # a parameter without default is yet to come
                continue
    return told


def parameters_cell(notebook: dict[str, Any]) -> dict[str, Any] | None:
    """The cell of a notebook that is tagged ``parameters``; None where there is none."""
    for cell in notebook.get("cells", ()):
        if "parameters" in cell.get("metadata", {}).get("tags", ()):
            return cell
    return None


def declared_in(notebook: dict[str, Any]) -> dict[str, str]:
    """The parameters that a notebook declares, each with its value as it is written there."""
    cell = parameters_cell(notebook)
    source = "".join(cell["source"]) if cell else ""
    return {name: ast.get_source_segment(source, value) for name, value in _assigned(source)}


def _assigned(source: str) -> list[tuple[str, ast.expr]]:
    """The names that lines of Python assign, with what they assign."""
    found = []
    try:
        lines = ast.parse(source).body
    except SyntaxError:
        return []
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found.append((line.targets[0].id, line.value))
        elif isinstance(line, ast.AnnAssign) and line.value and isinstance(line.target, ast.Name):
            found.append((line.target.id, line.value))
    return found


def _filled(source: str, values: dict[str, str]) -> str:
    """Lines of Python with other values, written out, in their assignments; comments stay."""
    lines = source.splitlines()
    for name, node in reversed(_assigned(source)):
        if name in values:
            # Positions count bytes of UTF-8.
            before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
            after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            lines[node.lineno - 1 : node.end_lineno] = [before + values[name] + after]
    return "\n".join(lines)


def _literal(value: Any) -> str:
    """A plain value as Python, texts in double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def write(text: str, path: str | Path, overwrite: bool = False) -> None:
    """Write ``text`` to a file: all of it or nothing, and nothing is replaced unless asked.

    Raises:
        StudyError: the file exists, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StudyError({"out": f"{path} exists; choose another name or say --overwrite."})
    try:
        replace_text(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise StudyError({"out": f"{path} cannot be written: {reason}."}) from None
