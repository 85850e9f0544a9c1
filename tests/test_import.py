"""What `import workbench` costs, and what the core works without."""

import json
import os
import subprocess
import sys

import workbench as wb

HEAVY = ["xarray", "zarr", "pydantic", "yaml", "typer", "sklearn", "scipy"]
HEAVY += ["panel", "holoviews", "bokeh", "matplotlib"]


def python(code: str) -> dict:
    """The JSON that `code` prints in a fresh process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_costs_little_beyond_torch():
    """The name alone, and with everything that a first run of a sampler loads."""
    code = """
import json, time, torch
began = time.process_time()
import workbench as wb
imported = time.process_time()
wb.Diffusion, wb.VP, wb.Gaussian, wb.Mixture, wb.Heun, wb.Grid, wb.Record, wb.sample
print(json.dumps([imported - began, time.process_time() - began]))
"""
    costs = [python(code) for _ in range(5)]
    assert min(alone for alone, _ in costs) <= 0.3
    assert min(used for _, used in costs) <= 0.3


def test_importing_brings_nothing_heavier_than_torch():
    code = f"""
import json, sys
import workbench
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
    assert python(code) == []


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
    import torch

    law = wb.Gaussian(torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double())
    grid = wb.Grid.karras(wb.VP(), steps=6)
    run = wb.sample(wb.Diffusion(wb.VP(), law), wb.EulerMaruyama(), grid, seeds=[4, 5])
    assert python(code) == run.final.tolist()


def test_every_public_name_answers():
    for name in wb.__all__:
        assert getattr(wb, name) is not None
    assert set(dir(wb)) == set(wb.__all__)
    assert wb.SAMPLERS["Heun"] is wb.Heun and wb.PROCESSES["VP"] is wb.VP


def test_an_unknown_name_is_an_attribute_error():
    import pytest

    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'Huen'"):
        wb.Huen  # noqa: B018
