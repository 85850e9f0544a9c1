"""The README's examples run as printed."""

import re
import shlex
import urllib.request
from pathlib import Path

import pytest
import xarray as xr
from browser.pages import served
from typer.testing import CliRunner

from workbench.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("place", range(len(EXAMPLES)))
def test_python(place, capsys):
    names = {}
    exec(compile(EXAMPLES[place], "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert said
    if place == 0:  # Heun with 32 steps is within two per cent of the exact flow
        assert (names["run"].final - names["exact"]).square().mean().sqrt() < 0.02
        assert "after 64 evaluations" in said


def test_commands(tmp_path, monkeypatch):
    """In their order, in one folder; a server until it answers, one notebook."""
    monkeypatch.chdir(tmp_path)
    (sweep,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (tmp_path / "sweep.yaml").write_text(sweep)
    lines = re.findall(r"^(workbench .*)$", README, re.M)
    assert len(lines) == 13
    every = [tuple(shlex.split(line, comments=True)[1:]) for line in lines]
    for words in map(list, dict.fromkeys(every)):  # what stands there twice, once
        if words[0] == "serve":
            with served(tmp_path / "serve.log", *words[1:]) as port:
                address = f"http://127.0.0.1:{port}/liveness"
                assert b"true" in urllib.request.urlopen(address, timeout=5).read()
            continue
        if words[0] == "report":
            pytest.importorskip("papermill")
            words += ["trajectories", "--parameter", "seeds.count=8"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{words}: {done.output}"
    made = xr.open_zarr(tmp_path / "sweep" / "sweep.zarr", consolidated=False)
    assert dict(made.sizes) | {"sampler": 3, "grid.steps": 3} == dict(made.sizes)
    assert "trajectories" in (tmp_path / "site" / "index.html").read_text()


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
