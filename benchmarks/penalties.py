"""The gap of ODE, SDE and truth of networks by the weight of their Fokker-Planck penalty.

For every network of circles, checkerboard and ring that ships, and of every other training of one
of them in a folder given (DATA_WEIGHT_SEED.safetensors, trained as the one that ships but for
`seed: SEED`), the squared sliced W2 of each pair over five seeds of sampling, and the residual at
rho = 0.2. It leaves data/penalties.json, which the page "Gap" and its notebook show. CPU time of
each network: about 30 s.

python benchmarks/penalties.py [FOLDER]
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

import workbench as wb
from workbench.denoisers import checkpoints
from workbench.lenses.gap import Family
from workbench.studies.penalties import STEPS, WEIGHTS, file, squared_gaps

SAMPLES, SEEDS = 8192, 5


def networks(name: str, folder: Path | None) -> dict[tuple[float, int], Path]:
    found, shipped = {}, checkpoints.shipped_folder()
    for weight in WEIGHTS:
        plain = name if weight == 0 else f"{name}_fokker_planck_{weight:g}"
        found[weight, 0] = shipped / f"{plain}.safetensors"
        if folder is not None:
            for path in folder.glob(f"{name}_{weight:g}_*.safetensors"):
                found[weight, int(path.stem.rsplit("_", 1)[1])] = path
    return {key: path for key, path in found.items() if path.exists()}


def residual(diffusion, data) -> float:
    nodes = wb.Grid.log_snr(diffusion.process, 8, final="stop")
    run = wb.sample(diffusion, Family(), nodes, range(64), wb.Record(["x"]))
    lens = wb.lenses.LENSES["fokker_planck"](differences="time", levels=9)
    found = wb.measure(lens, run, data=data)["residual"]
    return float(found.sel(rho=0.2, method="nearest"))


def keep(rows: list[dict]) -> None:
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    head = json.dumps({"samples": SAMPLES, "steps": STEPS})[:-1]
    file().write_text(f'{head}, "networks": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    folder, rows = Path(sys.argv[1]) if sys.argv[1:] else None, []
    held = json.loads(file().read_text()) if file().exists() else {"networks": []}
    measured = {row["sha256"]: row for row in held["networks"]}
    for name in ("circles", "checkerboard", "ring"):
        data = getattr(wb.datasets, name)(size=50_000, seed=1)  # fresh, for the truth
        for (weight, training), path in sorted(networks(name, folder).items()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest in measured:
                rows.append(measured[digest])
                continue
            net, began = wb.Neural.load(path, data=data), time.process_time()
            diffusion = wb.Diffusion(wb.EDM(), net)
            squares = [squared_gaps(diffusion, data, SAMPLES, seed) for seed in range(SEEDS)]
            row = {"data": name, "weight": weight, "training": training, "sha256": digest}
            row["residual"] = float(f"{residual(diffusion, data):.4g}")
            row["squares"] = [[float(f"{v:.4g}") for v in one] for one in squares]
            rows.append(row)
            mean = torch.tensor(squares).mean(0).tolist()
            seconds = time.process_time() - began
            print(
                name, weight, training, [f"{v:.5f}" for v in mean], f"{seconds:.0f} s", flush=True
            )
            keep([*rows, *(one for one in measured.values() if one not in rows)])
    keep(rows)


if __name__ == "__main__":
    main()
