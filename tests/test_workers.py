"""Worker processes under the broker: answers, limits, and whatever may become of a process."""

import os
import pickle
import re
import sys
import time
from functools import partial
from pathlib import Path

import deeds
import pytest

from workbench.studies import Study, StudyError
from workbench.studies.comparison import Comparing, compare, compare_grids
from workbench.studies.limits import size_of
from workbench.ui.broker import Broker, Limits
from workbench.ui.form import problems_of
from workbench.workers.memory import ALLOCATOR
from workbench.workers.pool import FORKS, Pool, resident

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes")

#: Seconds that anything may take on a machine that does much else.
LONG = 120


class Outcome:
    """What a page is told."""

    def __init__(self) -> None:
        self.results, self.errors, self.progress = [], [], []

    def submit(self, broker, work, owner="page", session=None):
        told = (self.results.append, self.errors.append, self.progress.append)
        return broker.submit(owner, work, *told, session=session)


@pytest.fixture(scope="module")
def pool():
    here = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), here]))
        patch.setenv("PYTHONPATH", path)
        for name in ALLOCATOR:  # which tests have at hand and a server has not
            patch.delenv(name, raising=False)
        made = Pool(2, ["workbench.studies.limits", "deeds:prepare"])
        made.take().close()  # the processes that it starts have this environment
    yield made
    made.close()


@pytest.fixture
def broker(pool):
    made = Broker(2, pool, Limits(session=300_000_000, server=400_000_000))
    yield made
    for ticket in list(made._running):
        ticket.cancel()
        assert ticket.wait(LONG)


def asked(broker, work, **about):
    """The answer to one request; the error, if it fails."""
    seen = Outcome()
    assert seen.submit(broker, work, **about).wait(LONG)
    (answer,) = seen.results + seen.errors
    return answer


def appears(path) -> str:
    """The content of a file that a worker writes."""
    until = time.monotonic() + LONG
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return path.read_text()


def is_there(pid) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_work_is_done_in_another_process_that_stays(broker):
    """One that was born before all was imported may give way to another, once."""
    pid, gradients, threads = asked(broker, deeds.whoami)
    assert pid != os.getpid() and not gradients and threads == 1
    pids = [pid, *(asked(broker, deeds.whoami)[0] for _ in range(8))]
    assert len(set(pids)) <= 4 and pids[-1] in pids[:-1]
    assert asked(broker, deeds.gradient) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (deeds.crash, r"computed this was ended by SIGSEGV\. Others are not touched by it\."),
        (deeds.leave, r"computed this ended itself with status 3\."),
        (deeds.killed, r"was ended by SIGKILL \(the machine's memory may have run out\)"),
        (deeds.leave_politely, r"ended with SystemExit\(4\); what a run calls must not end"),
        (deeds.gluttonous, r"needed more memory than the 300 MB that this server gives"),
        (deeds.wrong, r"^a sentence$"),
        (deeds.odd, r"^The run failed: KeyError: 'x'$"),
        (deeds.unsendable, r"cannot pickle '_thread.lock' object"),
    ],
)
def test_whatever_becomes_of_it_is_one_failed_request(broker, work, said, tmp_path):
    gate = tmp_path / "gate"
    other, seen = Outcome(), Outcome()
    mark = tmp_path / "mark"
    neighbour = other.submit(broker, partial(deeds.until, gate=gate, mark=mark), owner="other")
    appears(mark)
    assert seen.submit(broker, work).wait(LONG)
    (sentence,) = problems_of(seen.errors[0]).values()
    assert re.search(said, sentence), sentence
    gate.touch()
    assert neighbour.wait(LONG) and other.results == ["done"]
    assert asked(broker, partial(deeds.give, value=7)) == 7


@pytest.mark.parametrize("deed", [deeds.never, deeds.stuck])
def test_cancelled_it_is_asked_and_then_killed(broker, deed, tmp_path):
    seen, mark = Outcome(), tmp_path / "mark"
    ticket = seen.submit(broker, partial(deed, mark=mark))
    pid = appears(mark)
    assert is_there(pid)
    broker.cancel("page")
    assert ticket.wait(LONG) and not seen.results + seen.errors
    until = time.monotonic() + LONG
    while is_there(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not FORKS, reason="a nursery")
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's allocator")
def test_what_a_task_frees_is_kept_for_it_and_given_back_after_it(pool):
    """Of 24 MB that are freed twenty times, 6,000 pages, the kernel clears none again: 120,000."""
    worker = pool.take()
    try:
        worker.do(pickle.dumps(deeds.churned), None)
        what, (cleared, held) = worker.hear(LONG)
        assert what == "done" and cleared < 12_000
        until = time.monotonic() + LONG
        while resident(worker.pid) > held - 16_000_000:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        worker.close()


def test_workers_come_before_all_is_prepared_and_are_replaced_when_it_is(pool, broker):
    until = time.monotonic() + LONG
    while not pool.whole:
        assert time.monotonic() < until
        time.sleep(0.01)
    answers = [asked(broker, deeds.prepared) for _ in range(4)]
    assert answers == [([nursery], nursery) for _, nursery in answers]


def test_one_that_heeds_a_cancel_keeps_its_process(broker, tmp_path):
    mark = tmp_path / "mark"
    ticket = Outcome().submit(broker, partial(deeds.until, gate=tmp_path / "no", mark=mark))
    pid = appears(mark)
    broker.cancel("page")
    assert ticket.wait(LONG)
    assert is_there(pid)


def test_requests_that_never_return_hold_up_nobody(broker, tmp_path):
    """More of them than there are places, by sessions that are as good as any."""
    for number in range(3):
        work = partial(deeds.never, mark=tmp_path / f"{number}")
        Outcome().submit(broker, work, owner=f"bad {number}")
    assert asked(broker, partial(deeds.give, value=1)) == 1
    assert {appears(tmp_path / f"{number}") for number in range(3)}


def test_memory_is_granted_by_session_and_by_server(broker, tmp_path):
    first, gate = Outcome(), tmp_path / "gate"
    held = partial(deeds.claims, need=200_000_000, gate=gate)
    ticket = first.submit(broker, held, owner="a", session=1)
    until = time.monotonic() + LONG
    while not any(one._memory for one in broker._running):
        assert time.monotonic() < until
        time.sleep(0.01)
    for session, free, most in ((1, 100, 45), (2, 200, 95)):
        work = partial(deeds.claims, need=210_000_000, fixed=10_000_000)
        error = asked(broker, work, owner=f"b{session}", session=session)
        assert isinstance(error, StudyError)
        assert error.problems["seeds.count"] == (
            f"seeds.count was 100; this takes about 210 MB, and the server has {free} MB for it "
            f"now: at most {most} samples fit. Without that limit: workbench run study.yaml."
        )
    gate.touch()
    assert ticket.wait(LONG) and first.results == ["done"]
    assert asked(broker, partial(deeds.claims, need=210_000_000), session=1) == "granted"


@pytest.mark.parametrize(
    ("compute", "options", "said"),
    [
        (compare, {"grids": "karras,uniform"}, "takes about 460 MB, .* at most 10683 modes fit"),
        (compare, {"modes": 200, "samplers": "DDIM"}, None),
        (compare_grids, {"nfe": 2000}, "takes about 7864 MB, .* at most 625 modes fit"),
    ],
)
def test_a_comparison_is_refused_before_it_is_begun(broker, compute, options, said):
    options = Comparing(**{"modes": 16_384} | options)
    if said is None:
        assert asked(broker, partial(compute, Study(), options)).lens.sizes["mode"] == 200
        return
    (sentence,) = asked(broker, partial(compute, Study(), options)).problems.values()
    assert re.match(f"modes was 16384; this {said}", sentence), sentence


def test_a_request_that_takes_too_long_is_ended(pool):
    made = Broker(1, pool, Limits(seconds=0.2))
    seen = Outcome()
    assert seen.submit(made, deeds.never).wait(LONG)
    assert str(seen.errors[0]).startswith("The run took more than the 0.2 s that this server gives")


def test_progress_comes_back(broker):
    seen = Outcome()
    assert seen.submit(broker, deeds.count).wait(LONG)
    shares = [one.fraction for one in seen.progress]
    assert seen.results == [20] and shares and shares == sorted(shares)
    assert {one.stage for one in seen.progress} == {"counting"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("500 mb", 500_000_000), ("1.5GiB", 3 * 2**29), ("1000", 1000)],
)
def test_a_size(text, size):
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "many", "1e9", "ib", "9" * 30])
def test_no_size(text):
    with pytest.raises(ValueError, match="write it as 500MB or 2GB"):
        size_of(text)
