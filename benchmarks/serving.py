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
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser.pages import served
from intruder import LEAKS, PAGES, Client, address, heard, study_text, upload
from visitor import Visitor

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


# -- many readers ----------------------------------------------------------------------------------

#: A denoiser that never returns.
NEVER = """
from dataclasses import dataclass
import workbench as wb

@wb.register
class Never(wb.Denoiser):
    '''A denoiser that never returns.'''
    event_shape = (2,)
    @classmethod
    def from_data(cls, data):
        return cls()
    def posterior_mean(self, x, alpha, sigma):
        while True:
            pass
"""

#: What a reader looks at, and how often it is changed [s].
QUERY, EVERY, STEPS = "seeds.count=2000&grid.steps=80", 2.0, 80


def number(name: str, usual: int) -> int:
    return int(os.environ.get(name, usual))


async def changing(visitor: Visitor, seconds: float, first: float) -> None:
    """Change the steps every two seconds: 79, 78, ..., so that changes are told apart."""
    await asyncio.sleep(first)
    end, steps = time.monotonic() + seconds, STEPS
    while time.monotonic() < end:
        steps -= 1
        await visitor.change(steps)
        await asyncio.sleep(EVERY)
    with contextlib.suppress(TimeoutError):
        await visitor.sees(steps, 30)


async def crowd(port: int, count: int, seconds: float) -> bool:
    """Print how a crowd was served; whether that was as it must be."""
    client, visitors = Client(port), []
    for _ in range(count):  # one after the other: that they come is not what is measured
        visitors.append(await Visitor(client, QUERY).open())
        await visitors[-1].sees(STEPS)
    starts = [EVERY * i / count for i in range(count)]
    await asyncio.gather(
        *(changing(one, seconds, first) for one, first in zip(visitors, starts, strict=True))
    )
    for one in visitors:
        await one.close()
    waits, means, changes, lost = [], [], 0, 0
    for one in visitors:
        order = sorted(one.asked, key=one.asked.get)
        mine = []
        for at, steps in enumerate(order):
            changes += 1
            # Its own answer, or that of the next newer one that has one.
            answers = [one.answered[s] for s in order[at:] if s in one.answered]
            if not answers:
                lost += 1
            elif steps in one.answered:
                mine.append(one.answered[steps] - one.asked[steps])
        waits += mine
        means.append(statistics.mean(mine) if mine else float("inf"))
    served = 1 - lost / changes
    waits.sort()
    own = len(waits) / changes
    p50, p95 = (waits[int(share * (len(waits) - 1))] for share in (0.5, 0.95))
    ratio = max(means) / statistics.median(means)
    print(
        f"crowd: {count} readers, {changes} changes in {seconds:g} s: {served:.1%} answered or "
        f"replaced by an answered one ({own:.0%} themselves), p50 {p50:.2f} s, p95 {p95:.2f} s, "
        f"worst over median reader {ratio:.2f}",
        flush=True,
    )
    return served >= 0.95 and p95 <= 3.0 and ratio <= 2.0


def crowded(held: bool) -> int:
    """Twenty readers, alone or beside a request that never returns."""
    with tempfile.TemporaryDirectory() as place:
        plugin = Path(place, "never.py")
        plugin.write_text(NEVER)
        with served(Path(place, "log"), "--plugin", str(plugin), silent=False) as port:

            async def all_of_it() -> bool:
                bad = await Visitor(Client(port), "denoiser=Never").open() if held else None
                good = await crowd(port, number("READERS", 20), number("SECONDS", 60))
                if bad is not None:
                    assert 32 not in bad.answered
                    await bad.close()
                return good

            return not asyncio.run(all_of_it())


def resident(pid: int) -> float:
    """Memory of a process [MB]."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1e3


def seconds_of(pid: int) -> float:
    """Processor time of a process, all its threads together [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost() -> int:
    """Processor time of the serving process for a page that is opened, and for a change on it."""
    count, times = number("READERS", 6), number("CHANGES", 8)

    async def all_of_it(port: int) -> None:
        client, pid, visitors = Client(port), listener(port), []
        await (await Visitor(client, QUERY).open()).sees(STEPS)  # what is imported once
        await asyncio.sleep(5)
        before = seconds_of(pid)
        for _ in range(count):
            visitors.append(await Visitor(client, QUERY).open())
            await visitors[-1].sees(STEPS)
        opened, before = seconds_of(pid) - before, seconds_of(pid)
        for steps in range(STEPS - 1, STEPS - 1 - times, -1):
            for one in visitors:
                await one.change(steps)
            for one in visitors:
                await one.sees(steps)
        changed = seconds_of(pid) - before
        print(
            f"cost: {1e3 * opened / count:.0f} ms of the serving process for each page opened, "
            f"{1e3 * changed / (count * times):.1f} ms for each change",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as place, served(Path(place, "log"), silent=False) as port:
        asyncio.run(all_of_it(port))
    return 0


def rounds() -> int:
    """Readers of all pages who come, look and go, again and again: the memory of the server."""
    count, times, levels = number("READERS", 50), number("ROUNDS", 20), []

    async def visit(client: Client) -> None:
        visitor = await Visitor(client).open()
        await visitor.sees(32)
        await visitor.close()

    async def pass_by(client: Client, page: str) -> None:
        token = await asyncio.to_thread(client.token, page)
        (await client.connect(page, token)).close()

    async def round_of(client: Client) -> None:
        for i in range(0, count, 5):  # of the other pages, one by every fifth reader
            page = PAGES[i // 5 % len(PAGES)]
            await asyncio.gather(*(visit(client) for _ in range(5)), pass_by(client, page))

    with tempfile.TemporaryDirectory() as place, served(Path(place, "log"), silent=False) as port:
        pid = listener(port)
        for _ in range(times):
            asyncio.run(round_of(Client(port)))
            time.sleep(number("REST", 35))  # until the server has forgotten them
            levels.append(resident(pid))
            print(f"rounds: {count} readers came and went: {levels[-1]:.0f} MB", flush=True)
    grown = levels[-1] / levels[0] - 1
    print(f"rounds: {times} of {count} readers, memory {grown:+.1%} since the first", flush=True)
    return grown > 0.05


def listener(port: int) -> int:
    """The process that serves a port: a child of this one."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"--port\0{port}\0" in (place / "cmdline").read_text():
                return int(place.name)
    raise LookupError(port)


def main() -> None:
    names = sys.argv[1:] or [*COUNTS, "damage", "crowd", "held", "rounds"]
    seed = int(os.environ.get("WORKBENCH_SEED", "0"))
    wrong = files_tried(names, seed)
    if "damage" in names:
        wrong += damaged(seed)
    if {"addresses", "messages"} & set(names):
        wrong += attacked(names, seed)
    for name, measure in (
        ("crowd", lambda: crowded(False)),
        ("held", lambda: crowded(True)),
        ("cost", cost),
        ("rounds", rounds),
    ):
        wrong += measure() if name in names else 0
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
