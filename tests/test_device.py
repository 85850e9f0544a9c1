"""The script that is run on a card, rehearsed on the CPU with nothing but what it may need."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What the script must do without.
BLOCKED = ["pydantic", "zarr", "yaml", "typer", "sklearn", "panel", "holoviews", "matplotlib"]


def test_the_device_script_runs_without_a_card_and_needs_no_more_than_it_says():
    code = (
        f"import sys; sys.modules |= dict.fromkeys({BLOCKED}); import runpy; "
        f"sys.argv = ['device.py', '--device', 'cpu', '--small']; "
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'device.py')!r}, run_name='__main__')"
    )
    before = set((ROOT / "benchmarks" / "results").glob("*"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    for said in ("comparisons in float32", "mixture, 2,000 particles", "empirical, N = 500"):
        assert said in done.stdout
    assert set((ROOT / "benchmarks" / "results").glob("*")) == before  # a rehearsal leaves nothing
