"""What keeping a run costs: memory against what was stated, time against the bare run, the cache.

python benchmarks/studies.py [samples]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import peak

import workbench as wb
from workbench.studies import build
from workbench.studies.cache import Cache
from workbench.studies.chunked import keep
from workbench.studies.run import plan


def digits(samples: int, steps: int, *fields: str) -> wb.Study:
    return wb.Study(
        data="digits",
        grid={"name": "log_snr", "steps": steps},
        sampler="DDIM",
        seeds={"count": samples},
        record={"fields": fields},
        device="cpu",
    )


def kept(study: str, out: str) -> None:
    """In a process of its own: run a study into a store, and print the memory it took."""
    study = wb.Study.parse(study)
    keep(study.changed({"seeds.count": 2}), out + "0")
    before = peak()
    began = time.perf_counter()
    keep(study, out)
    seconds = time.perf_counter() - began
    print(json.dumps({"peak": peak(), "grown": peak() - before, "seconds": seconds}))


def measure(study: wb.Study) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "kept", study.to_json(), folder + "/out.zarr"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        size = sum(file.stat().st_size for file in Path(folder, "out.zarr").rglob("*"))
    return {**json.loads(done.stdout.splitlines()[-1]), "disk": size}


def memory(samples: int) -> None:
    print(
        f"{'memory, digits':44}{'of process':>11}{'of run':>9}{'stated':>9}{'stored':>9}{'':4}time"
    )
    for steps, *fields in (
        (100, "x", "denoised"),
        (100, "x.spectrum", "denoised.spectrum"),
        (400, "x.spectrum", "denoised.spectrum"),
    ):
        study = digits(samples, steps, *fields)
        found, stated = measure(study), plan(study).bytes_peak
        sizes = (found["grown"], stated, found["disk"])
        columns = f"{found['peak'] / 2**20:11.0f}" + "".join(f"{n / 2**20:9.0f}" for n in sizes)
        what = f"{samples} x {steps}, {' '.join(fields)}"
        print(f"{what:44}{columns} MiB {found['seconds']:5.1f} s", flush=True)


def overhead() -> None:
    """``wb.run`` and ``wb.sample`` in turns, the objects made beforehand for neither."""
    study = wb.Study(seeds={"count": 150_000}, grid={"name": "log_snr", "steps": 100}, device="cpu")
    ratios, times = [], []
    for turn in range(6):
        took = {}
        calls = {"run": lambda: wb.run(study), "sample": lambda: build(study).sample().dataset}
        for name in ("run", "sample") if turn % 2 else ("sample", "run"):
            began = time.perf_counter()
            calls[name]()
            took[name] = time.perf_counter() - began
        ratios.append(took["run"] / took["sample"])
        times.append(took["sample"])
    took = f"{plan(study).chunks} chunks, {statistics.median(times[1:]):.2f} s"
    print(
        f"wb.run over wb.sample, {took}: ratio "
        f" {statistics.median(ratios[1:]):.3f}   goal: at most 1.05",
        flush=True,
    )


def opening() -> None:
    study = wb.Study(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        cache, times = Cache(folder), []
        cache.fetch(study, wb.run)
        for _ in range(20):
            began = time.perf_counter()
            cache.fetch(study, wb.run)
            times.append(1e3 * (time.perf_counter() - began))
    print(f"a cached study opens in {statistics.median(times):.1f} ms   goal: under 100 ms")


def main() -> None:
    if sys.argv[1:2] == ["kept"]:
        return kept(*sys.argv[2:])
    opening()
    overhead()
    memory(int(sys.argv[1]) if sys.argv[1:] else 20_000)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
