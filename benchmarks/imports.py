"""What `import workbench` and a first run load, as a part of what torch alone takes to load.

python benchmarks/imports.py
"""

import json
import statistics
import subprocess
import sys

CODE = """
import json, time
times = [time.process_time()]
import torch
times.append(time.process_time())
import workbench as wb
times.append(time.process_time())
wb.Diffusion, wb.VP, wb.Gaussian, wb.Mixture, wb.Heun, wb.Grid, wb.Record, wb.sample
times.append(time.process_time())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def once() -> list[float]:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    once()  # the files are in memory after it
    runs = [once() for _ in range(9)]
    torch, alone, used = (statistics.median(column) for column in zip(*runs, strict=True))
    share = statistics.median((b + c) / a for a, b, c in runs)
    print(f"torch {torch:.2f} s, workbench {alone:.3f} s, with a first run {alone + used:.3f} s")
    print(f"of torch {share:.2f}   goal 0.30 s beyond torch")


if __name__ == "__main__":
    main()
