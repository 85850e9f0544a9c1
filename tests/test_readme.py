"""The README's examples run as printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_example_says_what_it_claims(capsys):
    """Heun with 32 steps is within two per cent of the exact flow."""
    code = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (names["run"].final - names["exact"]).square().mean().sqrt() < 0.02
    assert "after 64 evaluations" in capsys.readouterr().out


@pytest.mark.parametrize("line", re.findall(r"^(workbench (?:run|doctor).*)$", README, re.M))
def test_commands(line, tmp_path):
    words = shlex.split(line, comments=True)
    command = [sys.executable, "-m", "workbench.cli", *words[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_picture_is_there():
    (path,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", README)
    assert (ROOT / path).stat().st_size > 10_000


def test_the_map_names_every_room():
    listed = README.split("workbench/\n")[1].split("```")[0]
    for entry in (ROOT / "workbench").iterdir():
        if entry.suffix == ".py" and not entry.name.startswith("_"):
            assert f"  {entry.name} " in listed, entry.name
        elif entry.is_dir() and any(entry.glob("*.py")):
            assert f"  {entry.name}/ " in listed, entry.name
