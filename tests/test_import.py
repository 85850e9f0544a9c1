"""What `import workbench` costs, and what the core works without."""

import json
import os
import subprocess
import sys

import pytest
import torch

import workbench as wb

HEAVY = ["xarray", "zarr", "yaml", "typer", "sklearn", "scipy"]
HEAVY += ["panel", "holoviews", "bokeh", "matplotlib"]


def python(code: str) -> dict:
    """The JSON that `code` prints in a fresh process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_loads_what_is_used_and_beside_torch_nothing_else():
    """The name alone loads nothing; a first run of a sampler neither studies nor exact laws."""
    code = """
import json, sys, torch
before = set(sys.modules)
import workbench as wb
alone = set(sys.modules) - before
wb.Diffusion, wb.VP, wb.Gaussian, wb.Mixture, wb.Heun, wb.Grid, wb.Record, wb.sample
print(json.dumps([sorted(alone), sorted(set(sys.modules) - before - alone)]))
"""
    alone, used = python(code)
    assert alone == ["workbench"]
    rooms = {".".join(name.split(".")[:2]) for name in used}
    core = [
        "covariance",
        "denoisers",
        "diffusion",
        "params",
        "processes",
        "registry",
        "sampling",
        "trajectory",
    ]
    assert rooms == {f"workbench.{room}" for room in core}


def test_a_run_needs_torch_alone():
    """Everything else blocked, sampling a Gaussian gives the same numbers."""
    code = f"""
import json, sys
for name in {HEAVY}: sys.modules[name] = None
import torch, workbench as wb
law = wb.Gaussian(torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double())
diffusion = wb.Diffusion(wb.VP(), law)
grid = wb.Grid.karras(wb.VP(), steps=6)
run = wb.sample(diffusion, wb.EulerMaruyama(), grid, seeds=[4, 5], record=wb.Record(["x", "score"]))
print(json.dumps(run.final.tolist()))
"""
    law = wb.Gaussian(torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double())
    grid = wb.Grid.karras(wb.VP(), steps=6)
    run = wb.sample(wb.Diffusion(wb.VP(), law), wb.EulerMaruyama(), grid, seeds=[4, 5])
    there = torch.tensor(python(code), dtype=torch.float64)
    torch.testing.assert_close(there, run.final, rtol=1e-12, atol=1e-12)


def test_the_server_answers_before_torch_is_there():
    """What its command imports until it listens: the pages' toolkit, nothing that computes."""
    code = """
import json, sys
from workbench import cli
from workbench.ui import server

def listen(*given):
    found = [app.slug for app in server.apps()]
    heavy = ["torch", "xarray", "zarr", "holoviews", "matplotlib", "dask", "workbench.studies"]
    print(json.dumps([found, [name for name in heavy if name in sys.modules]]), flush=True)

server.serve = listen
sys.argv = "workbench serve --no-show --workers 1".split()
cli.main()
"""
    found, heavy = python(code)
    assert "trajectories" in found and heavy == []


def test_a_run_by_command_imports_no_dask(tmp_path):
    """Which xarray would; and none of what draws or serves."""
    code = f"""
import json, sys
from workbench import cli
sys.argv = "workbench run - -s seeds.count=2 -s grid.steps=2 -o {tmp_path}/run.zarr".split()
sys.stdout, out = sys.stderr, sys.stdout
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code
heavy = ["dask", "distributed", "panel", "bokeh", "holoviews", "matplotlib", "sklearn", "scipy"]
print(json.dumps([name for name in heavy if sys.modules.get(name)]), file=out)
"""
    assert python(code) == []


def test_every_public_name_answers():
    for name in wb.__all__:
        assert getattr(wb, name) is not None
    assert set(dir(wb)) == set(wb.__all__)
    assert wb.SAMPLERS["Heun"] is wb.Heun and wb.PROCESSES["VP"] is wb.VP


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'Huen'"):
        wb.Huen  # noqa: B018
