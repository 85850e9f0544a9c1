"""Where pages have their work done: worker threads, progress, cancel, and the newest request wins.

Torch never runs in a request handler. A page submits work under its own name; a newer request of
the same page replaces the older one, waiting or running. Work reports its progress through a
callback, and is stopped there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["Broker", "Cancelled", "Progress", "Ticket", "shared"]

log = logging.getLogger(__name__)

#: Seconds between two reports of progress to a page.
REPORT_EVERY = 0.1


class Cancelled(Exception):
    """Raised inside work whose page has cancelled it or asked for something newer."""


@dataclass(frozen=True)
class Progress:
    """How far work has come: what it does, the share done, and the seconds left (None: unknown)."""

    stage: str
    fraction: float
    seconds_left: float | None = None


Report = Callable[[str, float], None]


@dataclass
class Ticket:
    """A request: cancel it, or ask whether it is over."""

    owner: Hashable
    _stop: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _answered: bool = False

    def cancel(self) -> None:
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work is over, finished or not; False if the time ran out."""
        return self._over.wait(timeout)


class Broker:
    """Runs work on ``workers`` threads.

    One thread is right for one device and for small tensors: more of them only take turns. The
    process does not wait for them when it ends.
    """

    def __init__(self, workers: int = 1) -> None:
        self._queue: SimpleQueue = SimpleQueue()
        self._idle = workers  # threads that are not started yet
        self._newest: dict[Hashable, Ticket] = {}
        self._lock = threading.Lock()
        self._unfinished: list[Ticket] = []

    def submit(
        self,
        owner: Hashable,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[Progress], None] = lambda _: None,
        deliver: Callable[[Callable[[], None]], Any] = lambda call: call(),
    ) -> Ticket:
        """Have ``work(report)`` done.

        Args:
            owner: whose request it is; an older one of the same owner is cancelled.
            work: called with ``report(stage, fraction)``, which raises :class:`Cancelled` when
                the work is to end.
            done, failed, progress: called with the result, the exception, the progress; never
                after a cancel.
            deliver: how such a call reaches the page's own thread.
        """
        ticket = Ticket(owner)
        with self._lock:
            older = self._newest.get(owner)
            self._newest[owner] = ticket
            ahead = sum(one.owner != owner and not one.cancelled for one in self._unfinished)
            self._unfinished.append(ticket)
            if self._idle:
                self._idle -= 1
                threading.Thread(target=self._serve, daemon=True, name="workbench").start()
        if older is not None:
            older.cancel()

        def tell(callback: Callable, value: Any) -> None:
            # Deliveries may overtake each other on the way: no progress after the answer.
            def call() -> None:
                if ticket.cancelled or ticket._answered:
                    return
                ticket._answered = callback is not progress
                callback(value)

            deliver(call)

        if ahead:
            tell(progress, Progress(f"waiting for {ahead} other run{'s' * (ahead > 1)}", 0.0))
        self._queue.put((ticket, work, done, failed, progress, tell))
        return ticket

    def cancel(self, owner: Hashable) -> None:
        """Cancel what ``owner`` has under way, if anything."""
        with self._lock:
            ticket = self._newest.pop(owner, None)
        if ticket is not None:
            ticket.cancel()

    def close(self) -> None:
        """Give up everything under way; the threads end when they come to it."""
        with self._lock:
            for ticket in self._unfinished:
                ticket.cancel()
        self._queue.put(None)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            self._do(*item)
        self._queue.put(None)  # for the next thread

    def _do(self, ticket, work, done, failed, progress, tell) -> None:
        began = reported = time.monotonic()

        def report(stage: str, fraction: float) -> None:
            nonlocal reported
            if ticket.cancelled:
                raise Cancelled
            now = time.monotonic()
            if now - reported >= REPORT_EVERY:
                reported = now
                left = (now - began) * (1 - fraction) / fraction if fraction > 0.02 else None
                tell(progress, Progress(stage, fraction, left))

        try:
            torch.set_num_threads(1)  # of this thread: small tensors lose by more
            if ticket.cancelled:
                return
            with torch.no_grad():  # grad mode belongs to a thread
                result = work(report)
            tell(done, result)
        except Cancelled:
            pass
        except Exception as error:
            known = isinstance(error, ValueError | TypeError | NotImplementedError)
            if not known and not ticket.cancelled:
                log.exception("a run failed")
            tell(failed, error)
        except BaseException as error:  # SystemExit, say: a run that fails, and not its thread
            log.exception("a run ended its thread")
            sentence = f"it ended with {error!r}; what a run calls must not end the process."
            tell(failed, RuntimeError(sentence))
        finally:
            with self._lock:
                self._unfinished.remove(ticket)
                if self._newest.get(ticket.owner) is ticket:
                    del self._newest[ticket.owner]
            ticket._over.set()


_shared: Broker | None = None


def shared() -> Broker:
    """The broker of this process, made at first use."""
    global _shared
    if _shared is None:
        _shared = Broker()
    return _shared
