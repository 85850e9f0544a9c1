"""Grids tuned to a network's own runs: written beside its checkpoint, and what they gain.

    python benchmarks/tuned_networks.py [checkpoint]

Of 15 pairs of sampler and evaluations, the RMS distance to the network's converged flow over seeds
that neither the tuning nor its judging has seen, on the standard grids and on the tuned one.
"""

import argparse
import math
import time

import torch

import workbench as wb
from workbench.denoisers.checkpoints import shipped_folder
from workbench.lenses.tuning import converged_flow, network_grid

SAMPLERS = {"Heun": wb.Heun(), "DPM-Solver++(2M)": wb.DPMSolverPP(2), "UniPC": wb.UniPC()}
EVALUATIONS = (6, 8, 10, 14, 20)
FRESH = range(1000, 1064)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="digits")
    path = shipped_folder() / f"{parser.parse_args().checkpoint}.safetensors"
    torch.set_num_threads(1)
    process = wb.EDM()
    diffusion = wb.Diffusion(process, wb.Neural.load(path))
    flow, _ = converged_flow(diffusion, "stop", list(FRESH))
    print(f"{'RMS [x], ' + path.stem:22}{'nfe':>4}{'Karras':>9}{'log-SNR':>9}", end="")
    print(f"{'best':>9}{'tuned':>9}{'tuned - best':>14}{'± se':>8}{'cpu s':>7}")
    reached = {}
    for name, sampler in SAMPLERS.items():
        for nfe in EVALUATIONS:
            began = time.process_time()
            tuned = network_grid(diffusion, sampler, nfe, keep=True)
            spent = time.process_time() - began
            steps = tuned.steps
            grids = {
                "Karras": wb.Grid.karras(process, steps),
                "log-SNR": wb.Grid.log_snr(process, steps),
                "quadratic": wb.Grid.quadratic(process, steps),
                "Karras 3": wb.Grid.karras(process, steps, exponent=3.0),
                "Karras 20": wb.Grid.karras(process, steps, exponent=20.0),
                "tuned": tuned,
            }
            square = {
                key: (wb.sample(diffusion, sampler, grid, FRESH).final - flow).square().mean((1, 2))
                for key, grid in grids.items()
            }
            rms = {key: one.mean().sqrt().item() for key, one in square.items()}
            best = min((key for key in rms if key != "tuned"), key=rms.get)
            gained = (square["tuned"] - square[best]) / (rms["tuned"] + rms[best])
            error = gained.std().item() / math.sqrt(len(FRESH))
            reached[name, nfe] = rms
            numbers = (rms["Karras"], rms["log-SNR"], rms[best], rms["tuned"])
            print(f"{name:22}{nfe:4d}" + "".join(f"{v:9.4f}" for v in numbers), end="")
            print(f"{gained.mean().item():14.4f}{error:8.4f}{spent:7.1f}  {best}", flush=True)
    goal = reached["Heun", 20]["Karras"]
    for name in SAMPLERS:
        enough = [nfe for nfe in EVALUATIONS if reached[name, nfe]["tuned"] <= goal]
        said = f"from {enough[0]} evaluations on" if enough else "not up to 20 evaluations"
        print(f"{name} on its tuned grid is as close as Heun on Karras's with 20: {said}.")


if __name__ == "__main__":
    main()
