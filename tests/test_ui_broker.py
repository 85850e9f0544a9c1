"""The broker: off the caller's thread, newest wins, cancel, progress, errors."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from workbench.ui.broker import Broker, Progress


class Outcome:
    """What a page is told."""

    def __init__(self) -> None:
        self.results, self.errors, self.progress = [], [], []

    def submit(self, broker, work, owner="page"):
        return broker.submit(
            owner, work, self.results.append, self.errors.append, self.progress.append
        )


def patient(started, released):
    """Work that reports until it is released."""

    def work(report):
        started.set()
        while not released.wait(0.005):
            report("working", 0.5)
        return "done"

    return work


def test_work_runs_elsewhere_without_gradients():
    seen = Outcome()

    def work(report):
        return threading.current_thread().name, torch.is_grad_enabled()

    assert seen.submit(Broker(), work).wait(10)
    ((name, grad),) = seen.results
    assert name.startswith("workbench")
    assert not grad


def test_a_newer_request_replaces_the_running_one():
    broker, old, new, started = Broker(), Outcome(), Outcome(), threading.Event()
    first = old.submit(broker, patient(started, threading.Event()))
    assert started.wait(10)
    second = new.submit(broker, lambda report: "new")
    assert first.wait(10)
    assert second.wait(10)
    assert (old.results, old.errors, new.results) == ([], [], ["new"])


def test_a_newer_request_replaces_the_waiting_ones():
    broker, block, ran = Broker(), threading.Event(), []
    started = threading.Event()
    busy = Outcome().submit(broker, patient(started, block), owner="somebody else")
    assert started.wait(10)
    seen = Outcome()
    tickets = [seen.submit(broker, lambda report, k=k: ran.append(k) or k) for k in range(5)]
    block.set()
    assert busy.wait(10)
    assert all(ticket.wait(10) for ticket in tickets)
    assert ran == [4]
    assert seen.results == [4]
    assert seen.progress[0].stage == "waiting for 1 other run"


def test_owners_do_not_disturb_each_other():
    broker, a, b = Broker(), Outcome(), Outcome()
    tickets = [
        a.submit(broker, lambda report: "a", owner="a"),
        b.submit(broker, lambda report: "b", owner="b"),
    ]
    assert all(ticket.wait(10) for ticket in tickets)
    assert (a.results, b.results) == (["a"], ["b"])


def test_cancel_stops_the_work_and_says_nothing_more():
    broker, seen, started = Broker(), Outcome(), threading.Event()
    ticket = seen.submit(broker, patient(started, threading.Event()))
    assert started.wait(10)
    broker.cancel("page")
    assert ticket.wait(10)
    told = len(seen.progress)
    assert (seen.results, seen.errors) == ([], [])
    assert Outcome().submit(broker, lambda report: 1).wait(10)  # the worker is free again
    assert len(seen.progress) == told


def test_progress_has_a_stage_a_share_and_the_time_left(monkeypatch):
    seen, now = Outcome(), [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("workbench.ui.broker.time", clock)

    def work(report):
        for k in range(1, 11):
            now[0] += 0.08
            report("counting", k / 10)

    assert seen.submit(Broker(), work).wait(10)
    assert all(isinstance(p, Progress) and p.stage == "counting" for p in seen.progress)
    shares = [p.fraction for p in seen.progress]
    assert shares == sorted(shares)
    assert shares == [0.4, 0.8]  # not more often than three times a second
    left = [p.seconds_left for p in seen.progress]
    assert left[0] > left[-1] >= 0


def test_an_error_is_handed_over_and_the_worker_lives_on():
    broker, seen = Broker(), Outcome()

    def work(report):
        raise ValueError("a sentence")

    assert seen.submit(broker, work).wait(10)
    assert [str(error) for error in seen.errors] == ["a sentence"]
    assert seen.submit(broker, lambda report: 7).wait(10)
    assert seen.results == [7]


def test_progress_that_is_overtaken_by_the_answer_is_dropped():
    """A page delivers through its own queue, where later calls may come first."""
    broker, seen, queue = Broker(), Outcome(), []

    def work(report):
        time.sleep(0.32)
        report("late", 0.9)
        return "answer"

    ticket = broker.submit(
        "page",
        work,
        seen.results.append,
        seen.errors.append,
        seen.progress.append,
        deliver=queue.append,
    )
    assert ticket.wait(10)
    assert len(queue) == 2
    for call in reversed(queue):
        call()
    assert seen.results == ["answer"]
    assert seen.progress == []


def test_waiting_counts_others_only():
    """Neither one's own older requests, nor those that were given up."""
    broker, block, started = Broker(), threading.Event(), threading.Event()
    busy = Outcome().submit(broker, patient(started, block), owner="busy")
    assert started.wait(10)
    Outcome().submit(broker, lambda report: 1, owner="gone")
    broker.cancel("gone")
    seen = Outcome()
    for _ in range(3):
        last = seen.submit(broker, lambda report: 1)
    assert {one.stage for one in seen.progress} == {"waiting for 1 other run"}
    block.set()
    assert busy.wait(10) and last.wait(10)


def test_sessions_take_turns():
    """One that asks for much is served once between two turns of another."""
    broker, block, started, order = Broker(), threading.Event(), threading.Event(), []
    busy = Outcome().submit(broker, patient(started, block), owner="busy")
    assert started.wait(10)
    tickets = []
    for name in ("a1", "a2", "a3", "b1", "b2"):
        work = lambda report, name=name: order.append(name)  # noqa: E731
        tickets.append(broker.submit(name, work, lambda _: None, lambda _: None, session=name[0]))
    block.set()
    assert busy.wait(10) and all(ticket.wait(10) for ticket in tickets)
    assert order == ["a1", "b1", "a2", "b2", "a3"]


@pytest.mark.parametrize(
    ("share", "later", "answers"),
    [
        (0.2, 0.0, ["new"]),  # hardly begun: it gives way
        (0.9, 0.0, ["old", "new"]),  # nearly done: it is finished, and shown
        (0.9, 11.0, ["new"]),  # nearly done, it said, but it takes longer than it has taken so far
    ],
)
def test_a_request_under_way_is_finished_when_it_is_nearly_done(monkeypatch, share, later, answers):
    now, broker, seen = [100.0], Broker(), Outcome()
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("workbench.ui.broker.time", clock)
    started, released = threading.Event(), threading.Event()

    def work(report):
        now[0] += 10.0
        report("working", share)
        started.set()
        assert released.wait(10)
        report("working", share)
        return "old"

    old = seen.submit(broker, work)
    assert started.wait(10)
    new = seen.submit(broker, lambda report: "new")
    now[0] += later
    released.set()
    assert old.wait(10) and new.wait(10)
    assert seen.results == answers


def test_work_that_ends_its_thread_is_a_failed_run():
    broker, seen = Broker(), Outcome()

    def work(report):
        raise SystemExit(3)

    assert seen.submit(broker, work).wait(10)
    assert [str(error) for error in seen.errors] == [
        "it ended with SystemExit(3); what a run calls must not end the process."
    ]
    assert seen.submit(broker, lambda report: 7).wait(10)
    assert seen.results == [7]
