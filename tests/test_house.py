"""The house rules, kept by machine: formatting, notebooks, imports, what ships, what is pinned."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "workbench"
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))

pytestmark = pytest.mark.house


def run(*command: object) -> subprocess.CompletedProcess:
    """Run a module with this very Python, in the project's root."""
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def must_pass(*command: object) -> None:
    done = run(*command)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
        pytest.fail(
            f"python {' '.join(map(str, command[:3]))} failed; it says why below.", pytrace=False
        )


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# ---- the code ------------------------------------------------------------------------------------


def test_ruff_finds_nothing():
    must_pass("-m", "ruff", "check", "--no-cache", ".")


def test_the_code_is_formatted():
    must_pass("-m", "ruff", "format", "--check", "--no-cache", ".")


def test_each_room_imports_only_what_it_may():
    start = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    must_pass("-c", start, "--no-cache", "--no-logo")


def test_no_file_of_the_package_reaches_800_lines():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length >= 800} == {}


def test_no_file_points_outside_the_project():
    # Written so that this file does not match itself.
    folders = "|".join(["home/[a-z]", "Users/[A-Za-z]", "root/[.a-z]", "work/[.a-z]"])
    outside = re.compile(rf"\.\./{'shared'}\b|(?<![\w.~)}}/-])/(?:{folders})")
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if outside.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


# ---- the notebooks -------------------------------------------------------------------------------


def test_the_notebooks_are_stored_without_output():
    # What nbformat imports compiles a grammar of addresses, for seconds.
    start = "import sys; sys.modules['rfc3987_syntax'] = None; import nbstripout; nbstripout.main()"
    if NOTEBOOKS:
        must_pass("-c", start, "--verify", *NOTEBOOKS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_one_cell_of_parameters(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert [cell["cell_type"] for cell in tagged] == ["code"]


# ---- what ships and what is pinned ---------------------------------------------------------------


def test_source_archive_and_wheel_hold_all_that_ships(tmp_path):
    pytest.importorskip("build", reason="needs build and hatchling: pip install -e '.[dev]'")
    must_pass("-m", "build", "--no-isolation", "--outdir", tmp_path)  # the wheel from the archive
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())

    needed = {"workbench/__init__.py", "workbench/cli.py", "workbench/ui/js/player.js"}
    sources = [
        (PACKAGE, "workbench"),
        *((ROOT / x, f"workbench/{x}") for x in ("apps", "notebooks")),
    ]
    for folder, place in sources:
        for path in folder.rglob("*"):
            if path.suffix in {".py", ".js", ".ipynb"} and ".ipynb_checkpoints" not in path.parts:
                needed.add(f"{place}/{path.relative_to(folder).as_posix()}")
    assert sorted(needed - shipped) == [], "missing from the wheel"
    for place, suffix in (("apps", ".py"), ("notebooks", ".ipynb")):
        here = [x for x in shipped if x.startswith(f"workbench/{place}/") and x.endswith(suffix)]
        assert here, f"the wheel holds no workbench/{place}/*{suffix}"
    stray = {name.split("/")[0] for name in shipped} - {"workbench"}
    assert {name for name in stray if not name.endswith(".dist-info")} == set()

    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        assert not [name for name in opened.getnames() if "/.venv" in name]


def test_the_lock_pins_every_dependency_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in sum(extras.values(), project["dependencies"]):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(project["name"]):
            assert name in pins, f"{name} is not in requirements.lock: run make lock"
            assert requirement.specifier.contains(pins[name]), f"{text}, but {pins[name]} is pinned"


def test_browser_tests_run_in_groups(request, worker_id):
    """pytest 9.2 with pytest-xdist 3.8 ignores groups without a word; this one speaks."""
    if worker_id == "master":
        pytest.skip("pytest-xdist is not at work")
    grouped = [item for item in request.session.items if item.get_closest_marker("xdist_group")]
    assert all("@" in item.nodeid.rpartition("]")[2] for item in grouped)
