"""The served workbench under attack, and stored runs under damage; counts in full.

python benchmarks/serving.py [addresses messages uploads studies] [damage]

Prints one line for each kind: how many were tried, and how many were answered wrongly: with a
status of 500 or more, with a traceback, with the content of a file outside, by an import, or, of a
damaged store, not at all.
"""

import asyncio
import collections
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser.pages import served
from intruder import LEAKS, Client, address, heard, study_text, upload

from workbench.studies import Study, StudyError, eigenvalues
from workbench.studies.chunked import keep
from workbench.studies.library import Library
from workbench.studies.store import StoreError, check, read

COUNTS = {"addresses": 3000, "messages": 1000, "uploads": 200, "studies": 500}
KINDS = ("flip", "delete", "swap", "zero", "truncate")
TRIALS = 20
STUDY = Study(
    data="digits",
    denoiser="Gaussian",
    grid={"name": "log_snr", "steps": 40},
    seeds={"count": 2000},
    record={"fields": ["x", "x.spectrum"]},
    device="cpu",
)


def told(kind: str, tried: int, wrong: int, began: float, more: str = "") -> int:
    seconds = time.perf_counter() - began
    print(f"{kind:12}{tried:6} tried{wrong:6} wrong{seconds:8.1f} s  {more}", flush=True)
    return wrong


def attacked(names: list[str], seed: int) -> int:
    """What is asked of a served workbench."""
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "trap.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n")
        (folder / "canary.txt").write_text("CANARY")
        (folder / "results").mkdir()
        keep(Study(seeds={"count": 4}, device="cpu"), folder / "results" / "first.zarr")
        before = {path for path in folder.rglob("*")}
        path = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
        os.environ["PYTHONPATH"] = path
        log = folder.parent / f"{folder.name}.log"
        with served(log, "--results", f"{place}/results", silent=False) as port:
            client, draw = Client(port), random.Random(seed)
            if "addresses" in names:
                began, statuses, bad = time.perf_counter(), collections.Counter(), 0
                for _ in range(COUNTS["addresses"]):
                    asked = address(draw)
                    status, _, body = client.ask(asked)
                    statuses[status] += 1
                    if status >= 500 or LEAKS.search(body) or "CANARY" in body:
                        bad += 1
                        print(f"  {status} {asked[:200]!r}")
                wrong += told("addresses", COUNTS["addresses"], bad, began, str(dict(statuses)))
            if "messages" in names:
                began = time.perf_counter()
                bad = asyncio.run(heard(client, draw, COUNTS["messages"]))
                bad += client.ask("/liveness")[0] != 200
                wrong += told("messages", COUNTS["messages"], bad, began)
        after = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
        wrong += told("files", 1, len(after - before), time.perf_counter(), "written or imported")
    return wrong


def files_tried(names: list[str], seed: int) -> int:
    """Uploads and study files: a sentence, or what they say."""
    wrong, draw = 0, random.Random(seed)
    if "uploads" in names:
        began, bad = time.perf_counter(), 0
        for _ in range(COUNTS["uploads"]):
            try:
                eigenvalues.parse(upload(draw), "mine.npy")
            except StudyError as error:
                bad += len(str(error)) > 500
            except Exception as error:
                bad += 1
                print(f"  {error!r}")
        wrong += told("uploads", COUNTS["uploads"], bad, began)
    if "studies" in names:
        began, bad = time.perf_counter(), 0
        for _ in range(COUNTS["studies"]):
            text = study_text(draw)
            try:
                Study.parse(text)
            except StudyError as error:
                bad += len(str(error)) > 5000
            except Exception as error:
                bad += 1
                print(f"  {error!r} of {text[:100]!r}")
        with tempfile.TemporaryDirectory() as place:
            for number in range(COUNTS["studies"]):
                store = Path(place, f"{number}.zarr")
                store.mkdir()
                text = study_text(draw).encode("utf-8", "surrogatepass")
                (store / "zarr.json").write_bytes(text)
            entries = Library(place).entries()
            bad += len(entries) != COUNTS["studies"]
        wrong += told("studies", 2 * COUNTS["studies"], bad, began)
    return wrong


def damaged(seed: int) -> int:
    """Files of a stored run altered, one at a time: noticed by reading, and by name."""
    from test_studies_store import damage

    wrong, draw = 0, random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole.zarr")
        keep(STUDY, whole)
        files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
        for kind in KINDS:
            began, bad = time.perf_counter(), 0
            for _ in range(TRIALS):
                store = Path(place, "damaged.zarr")
                shutil.copytree(whole, store)
                one, other = draw.sample(files, 2)
                damage(kind, store / one, store / other)
                try:
                    read(store).load()
                    bad += 1
                    print(f"  {kind} of {one} was read")
                except StoreError:
                    pass
                with contextlib.suppress(StoreError):
                    bad += not check(store).broken
                shutil.rmtree(store)
            wrong += told(kind, TRIALS, bad, began, f"of {len(files)} files")
    return wrong


def main() -> None:
    names = sys.argv[1:] or [*COUNTS, "damage"]
    seed = int(os.environ.get("WORKBENCH_SEED", "0"))
    wrong = files_tried(names, seed)
    if "damage" in names:
        wrong += damaged(seed)
    if {"addresses", "messages"} & set(names):
        wrong += attacked(names, seed)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
