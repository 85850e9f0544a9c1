"""Computed once, whoever asks; kept within the budget; never half there."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import same_run

import workbench as wb
from workbench.studies import Study
from workbench.studies.cache import Cache, cached_run, default_folder, fetch
from workbench.studies.store import StoreError

STUDY = Study(seeds={"count": 5}, grid={"name": "log_snr", "steps": 3}, device="cpu")


def other(first: int) -> Study:
    return STUDY.changed({"seeds.first": first})


def never(study):
    raise AssertionError("it was there")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_the_second_time_it_is_there(cache):
    assert cache.open(STUDY) is None
    made = cache.fetch(STUDY, wb.run)
    same_run(made, wb.run(STUDY))
    same_run(cache.fetch(STUDY, never), made)
    same_run(cache.open(STUDY), made)
    assert cache.open(other(1)) is None


def test_who_changes_what_it_was_given_changes_nobody_elses(cache):
    made = cache.fetch(STUDY, wb.run).copy(deep=True)
    mine = cache.open(STUDY)
    mine["x"].values[:] = 7.0
    same_run(cache.open(STUDY), made)


def test_an_altered_number_is_noticed(cache, monkeypatch):
    from workbench.studies import cache as module

    made = cache.fetch(STUDY, wb.run)
    (entry,) = cache.folder.glob(f"{STUDY.hash}-*/")
    largest = max(entry.glob("*.npy"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-3] ^= 1
    largest.write_bytes(content)
    monkeypatch.setattr(module, "_looked", {})  # as another process
    assert cache.open(STUDY) is None
    again = cache.fetch(STUDY, wb.run)
    same_run(again, made)


def test_a_cached_study_opens_without_a_run(cache, record_property):
    study = STUDY.changed({"seeds.count": 20_000})
    cache.fetch(study, wb.run)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        cache.fetch(study, never)
        times.append(time.perf_counter() - began)
    record_property("measured", f"a cached study of 20 000 samples opens in {min(times):.3f} s")


def test_many_processes_and_threads_compute_once(tmp_path):
    """Each says when it computes; one of them is told to die while it does."""
    code = """
        import os, sys, threading, time
        import workbench as wb
        from workbench.studies import Study
        from workbench.studies.cache import fetch
        study, folder = Study.parse(sys.argv[1]), sys.argv[2]
        def ask(dies):
            def make(study):
                with open(f"{folder}/log", "a") as file:
                    file.write("begun\\n")
                time.sleep(0.3)
                if dies:
                    os.kill(os.getpid(), 9)
                return wb.run(study)
            got = []
            def one():
                got.append(fetch(study, make)["final"].values.tobytes().hex())
            threads = [threading.Thread(target=one) for _ in range(3)]
            [t.start() for t in threads]; [t.join() for t in threads]
            assert len(got) == 3
            with open(f"{folder}/{os.getpid()}.final", "w") as file:
                file.write(" ".join(set(got)))
        def start(dies):
            pid = os.fork()
            if not pid:
                try:
                    ask(dies)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            return pid
        pids = [start(True)]
        while not os.path.exists(f"{folder}/log"):
            time.sleep(0.01)
        pids += [start(False), start(False)]
        print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    environment = {**os.environ, "WORKBENCH_CACHE": str(tmp_path / "c"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, STUDY.to_json(), str(tmp_path)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300)
    assert ended.stdout.split() == ["-9", "0", "0"]
    finals = {final for path in tmp_path.glob("*.final") for final in path.read_text().split()}
    (final,) = finals  # all have the bytes of one run
    expected = wb.run(STUDY)["final"].values
    final = np.frombuffer(bytes.fromhex(final), expected.dtype).reshape(expected.shape)
    np.testing.assert_allclose(final, expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "log").read_text().splitlines() == ["begun", "begun"], (
        "the one that died, and one more"
    )
    assert not list((tmp_path / "c").glob("*.lock"))


def test_the_least_recently_used_go(tmp_path):
    one = Cache(tmp_path)
    first = one.fetch(other(0), wb.run)
    each = one.size()
    small = Cache(tmp_path, budget=int(3.5 * each))
    for number in (1, 2):
        small.fetch(other(number), wb.run)
        time.sleep(0.02)
    kept = small.fetch(other(0), never)  # used last
    small.fetch(other(3), wb.run)
    assert small.open(other(1)) is None and small.size() <= small.budget
    for number in (0, 2, 3):
        assert small.open(other(number)) is not None
    tiny = Cache(tmp_path, budget=each // 10)
    tiny.fetch(other(9), wb.run)
    assert tiny.open(other(9)) is None, "larger than the budget"
    tiny.clear()
    assert small.size() == 0 and os.listdir(tmp_path) == []
    same_run(kept, first)  # what was opened stays readable


def test_a_failure_is_passed_on_and_the_next_may_try(cache):
    def fails(study):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.fetch(STUDY, fails)
    assert os.listdir(cache.folder) == []
    cache.fetch(STUDY, wb.run)
    assert cache.open(STUDY) is not None


@pytest.mark.parametrize("damage", ["entry", "array", "gone"])
def test_a_damaged_entry_is_made_anew(damage, cache):
    made = cache.fetch(STUDY, wb.run)
    (entry,) = cache.folder.iterdir()
    if damage == "entry":
        (entry / "entry.json").write_text("{")
    elif damage == "array":
        (entry / "0.npy").write_bytes((entry / "0.npy").read_bytes()[:90])
    else:
        (entry / "1.npy").unlink()
    again = cache.fetch(STUDY, wb.run)
    same_run(again.assign_attrs(seconds=0), made.assign_attrs(seconds=0))
    same_run(cache.fetch(STUDY, never), again)


def test_other_versions_have_other_entries(cache, monkeypatch):
    cache.fetch(STUDY, wb.run)
    monkeypatch.setattr(wb, "__version__", "0.0.0")
    assert cache.open(STUDY) is None


def test_no_room_for_the_entry_is_no_failure(cache, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert cache.fetch(STUDY, wb.run).sizes["sample"] == 5
    assert os.listdir(cache.folder) == []


def test_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    ticks = []
    made = cached_run(STUDY, lambda done, total: ticks.append(done))
    same_run(fetch(STUDY, never), made)
    cached_run(STUDY, lambda done, total: ticks.append(done))
    assert ticks == [1, 2, 3]
    monkeypatch.delenv("WORKBENCH_CACHE")
    assert default_folder().is_absolute()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be made: .*WORKBENCH_CACHE=folder"):
        Cache(tmp_path / "file" / "cache")
