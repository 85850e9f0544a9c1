"""Where pages have their work done: worker processes, progress, cancel, and the newest wins.

Torch never runs in a request handler, nor in a server's process at all. A page submits work under
its own name; a newer request of the same page replaces the older one, unless that is nearly done:
then it is finished first. Sessions take turns. A request that takes long makes room: it goes on
beside the others, at the lowest priority, and a fresh worker takes its place.

A notebook's kernel belongs to one reader, so its work is done on a thread of the kernel, which
knows what its cells have registered.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from workbench.workers.pool import POLITE, Pool, Process
from workbench.workers.worker import REPORT_EVERY, Cancelled

log = logging.getLogger(__name__)

#: Seconds left of a request under way for it to be finished when its page asks for something newer;
#: one that is more than half done is finished too.
NEARLY = 1.0

#: Seconds of a worker's processor time that a request has before it makes room for others, and of
#: the clock: one that sleeps makes room too; one that others keep from the processor, not at once.
SHARE, SLEPT = 2.0, 10.0

#: Most requests that go on beside the others; one more ends that which has run longest.
MOST_LONG = 8

#: Sessions whose turn is remembered.
SESSIONS = 1000

#: Seconds between two looks at a worker that says nothing.
LOOK_EVERY = 0.05


@dataclass(frozen=True)
class Progress:
    """How far work has come: what it does, the share done, and the seconds left (None: unknown)."""

    stage: str
    fraction: float
    seconds_left: float | None = None


Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Limits:
    """What requests may take.

    Attributes:
        session: bytes of memory that the requests of one session may take together.
        server: bytes that all may take together.
        seconds: that one may run.
    """

    session: int | None = None
    server: int | None = None
    seconds: float | None = None


@dataclass(eq=False)
class Ticket:
    """A request: cancel it, or ask whether it is over."""

    owner: Hashable
    session: Hashable = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _answered: bool = False
    _began: float | None = None
    _long: bool = False
    _left: float | None = None  # expected seconds, at the time of the last report
    _told: float = 0.0
    _until: float | None = None  # when it must be over, since something newer waits
    _memory: int = 0

    def cancel(self) -> None:
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work is over, finished or not; False if the time ran out."""
        return self._over.wait(timeout)


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    work: Callable[[Report], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    progress: Callable[[Progress], None]
    deliver: Callable[[Callable[[], None]], Any]

    def tell(self, callback: Callable, value: Any) -> None:
        """Call ``callback(value)`` on the page's own thread, unless that is of no use any more."""
        ticket = self.ticket

        def call() -> None:
            # Deliveries may overtake each other on the way: no progress after the answer.
            if ticket.cancelled or ticket._answered:
                return
            ticket._answered = callback is not self.progress
            callback(value)

        self.deliver(call)


class Broker:
    """Does work at ``workers`` places at a time.

    Args:
        workers: how many requests are under way at once, long ones not counted.
        pool: of processes that do it; None: it is done on threads of this process, where a long
            request keeps its place.
        limits: of each request.
    """

    def __init__(
        self, workers: int = 1, pool: Pool | None = None, limits: Limits | None = None
    ) -> None:
        self._places, self._pool, self._limits = workers, pool, limits or Limits()
        self._serving = 0  # threads that hold a place
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, _Request] = {}  # by owner, the newest, in their order
        self._running: dict[Ticket, None] = {}
        self._turn, self._turns = itertools.count(1), OrderedDict()
        self._lasted: OrderedDict[Hashable, float] = OrderedDict()  # seconds, by owner
        self._closed = False

    def submit(
        self,
        owner: Hashable,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[Progress], None] = lambda _: None,
        deliver: Callable[[Callable[[], None]], Any] = lambda call: call(),
        session: Hashable = None,
    ) -> Ticket:
        """Have ``work(report)`` done.

        Args:
            owner: whose request it is; an older one of the same owner is cancelled, or finished
                first if it is nearly done.
            work: called with ``report(stage, fraction)``, which raises :class:`Cancelled` when
                the work is to end. Where processes do it, it and its answer must be picklable: a
                function of a module, or a ``functools.partial`` of one.
            done, failed, progress: called with the result, the exception, the progress; never
                after a cancel.
            deliver: how such a call reaches the page's own thread.
            session: who takes turns with other sessions; None: the owner.
        """
        ticket = Ticket(owner, owner if session is None else session)
        request = _Request(ticket, work, done, failed, progress, deliver)
        with self._lock:
            self._drop(owner)
            for running in self._running:
                if running.owner == owner and not running.cancelled:
                    self._supersede(running)
            ahead = sum(
                one.session != ticket.session and not one.cancelled and not one._long
                for one in (*self._running, *(r.ticket for r in self._waiting.values()))
            )
            self._waiting[owner] = request
            busy = self._serving >= self._places
            self._employ()
        if ahead and busy:
            said = f"waiting for {ahead} other run{'s' * (ahead > 1)}"
            request.tell(progress, Progress(said, 0.0))
        return ticket

    def cancel(self, owner: Hashable) -> None:
        """Cancel what ``owner`` has waiting and under way, if anything."""
        with self._lock:
            self._drop(owner)
            for ticket in self._running:
                if ticket.owner == owner:
                    ticket.cancel()

    def close(self) -> None:
        """Give up everything; processes are killed, threads end when they come to it."""
        with self._lock:
            self._closed = True
            for owner in list(self._waiting):
                self._drop(owner)
            for ticket in self._running:
                ticket.cancel()
        if self._pool is not None:
            self._pool.close()

    # -- who is next -----------------------------------------------------------------------------

    def _drop(self, owner: Hashable) -> None:
        """Give up what waits of ``owner``, if anything. Caller must hold the lock."""
        waiting = self._waiting.pop(owner, None)
        if waiting is not None:
            waiting.ticket.cancel()
            waiting.ticket._over.set()

    def _supersede(self, ticket: Ticket) -> None:
        """Something newer waits: finish what is nearly done, cancel what is not."""
        now = time.monotonic()
        ran = now - (ticket._began or now)
        if ticket._left is not None:
            left = ticket._left - (now - ticket._told)
        else:
            left = self._lasted.get(ticket.owner, 0.0) - ran
        # What has had its turn and is more than half done is worth more than a new beginning.
        patience = max(NEARLY, ran)
        if left > patience or ticket._long:
            ticket.cancel()
        elif ticket._until is None:
            ticket._until = now + patience

    def _employ(self) -> None:
        """Have a thread at each place while there is work. Caller must hold the lock."""
        if self._serving < self._places and self._next(look=True) is not None:
            self._serving += 1
            threading.Thread(target=self._serve, daemon=True, name="workbench").start()

    def _next(self, look: bool = False) -> _Request | None:
        """The request whose session was served least recently. Caller must hold the lock."""
        busy = {ticket.owner for ticket in self._running if not ticket._long}
        able = [request for owner, request in self._waiting.items() if owner not in busy]
        if not able:
            return None
        found = min(able, key=lambda one: self._turns.get(one.ticket.session, 0))
        if look:
            return found
        del self._waiting[found.ticket.owner]
        session = found.ticket.session
        self._turns[session] = next(self._turn)
        self._turns.move_to_end(session)
        while len(self._turns) > SESSIONS:
            self._turns.popitem(last=False)
        self._running[found.ticket] = None
        found.ticket._began = time.monotonic()
        return found

    def _serve(self) -> None:
        while True:
            with self._lock:
                request = self._next()
                if request is None:
                    self._serving -= 1
                    return
                self._employ()  # a further place, if there is further work
            self._do(request)
            if request.ticket._long:  # its place was given to others
                with self._lock:
                    self._employ()
                return

    # -- the work --------------------------------------------------------------------------------

    def _do(self, request: _Request) -> None:
        ticket, callback, value = request.ticket, None, None
        try:
            carry = self._on_thread if self._pool is None else self._in_process
            callback, value = request.done, carry(request)
        except Cancelled:
            pass
        except Exception as error:
            known = isinstance(error, ValueError | TypeError | NotImplementedError)
            if not known and not ticket.cancelled:
                log.error("a run failed: %r", error, exc_info=self._pool is None)
            callback, value = request.failed, error
        finally:
            with self._lock:
                del self._running[ticket]
                self._lasted[ticket.owner] = time.monotonic() - ticket._began
                self._lasted.move_to_end(ticket.owner)
                while len(self._lasted) > SESSIONS:
                    self._lasted.popitem(last=False)
            if callback is not None:
                with suppress(Exception):  # of a page that has gone
                    request.tell(callback, value)
            ticket._over.set()

    def _heard(self, request: _Request, stage: str, fraction: float) -> None:
        ticket, now = request.ticket, time.monotonic()
        began = ticket._began
        left = (now - began) * (1 - fraction) / fraction if fraction > 0.02 else None
        ticket._left, ticket._told = left, now
        request.tell(request.progress, Progress(stage, fraction, left))

    def _is_over(self, ticket: Ticket) -> bool:
        if ticket._until is not None and time.monotonic() > ticket._until:
            ticket.cancel()
        return ticket.cancelled

    def _on_thread(self, request: _Request) -> Any:
        import torch

        ticket = request.ticket
        reported = time.monotonic()

        def report(stage: str, fraction: float) -> None:
            nonlocal reported
            if self._is_over(ticket):
                raise Cancelled
            if time.monotonic() - reported >= REPORT_EVERY:
                reported = time.monotonic()
                self._heard(request, stage, fraction)

        torch.set_num_threads(1)  # of this thread: small tensors lose by more
        try:
            with torch.no_grad():  # grad mode belongs to a thread
                return request.work(report)
        except (Cancelled, Exception):
            raise
        except BaseException as error:  # SystemExit, say: a run that fails, and not its thread
            log.exception("a run ended its thread")
            raise RuntimeError(
                f"it ended with {error!r}; what a run calls must not end the process."
            ) from None

    def _in_process(self, request: _Request) -> Any:
        content = pickle.dumps(request.work)
        worker = self._pool.take()
        request.ticket._began = time.monotonic()
        idle = False
        try:
            worker.do(content, self._limits.session)
            answer = self._watched(request, worker)
            idle = not request.ticket._long  # the priority of others cannot be raised again
        finally:
            request.ticket._memory = 0
            if idle:
                self._pool.give_back(worker)
            else:
                worker.kill()
        what, *rest = answer
        if what == "cancelled":
            raise Cancelled
        if what == "failed":
            raise rest[0]
        return rest[0]

    def _watched(self, request: _Request, worker: Process) -> tuple:
        """The worker's last word on a request, which is held to its limits meanwhile."""
        ticket, asked = request.ticket, None
        most, limits = self._limits.session, self._limits
        began = worker.seconds or 0.0
        while True:
            said = worker.hear(LOOK_EVERY)
            now = time.monotonic()
            if self._is_over(ticket):
                if asked is None:
                    worker.cancel()
                    asked = now
                elif now - asked > POLITE:
                    raise Cancelled
            if said is not None and said[0] == "progress":
                self._heard(request, *said[1:])
            elif said is not None and said[0] == "claim":
                worker.grant(self._claimed(ticket, said[1]))
            elif said is not None:
                return said
            ran = now - ticket._began
            if not ticket._long and ran > SHARE:
                took = worker.seconds
                if took is None or took - began > SHARE or ran > SLEPT:
                    self._make_room(ticket, worker)
            if limits.seconds is not None and ran > limits.seconds:
                raise ValueError(
                    f"The run took more than the {limits.seconds:g} s that this server gives one; "
                    "ask for less, or run it by itself: workbench run study.yaml."
                )
            if most is not None and worker.grown > 1.5 * most + 2**28:
                raise ValueError(
                    f"The run took more than the {most / 1e6:.0f} MB of memory that this server "
                    "gives one; ask for less, or run it by itself: workbench run study.yaml."
                )

    def _claimed(self, ticket: Ticket, need: int) -> int | None:
        """Grant memory (None), or say how much there is."""
        with self._lock:
            others = [one for one in self._running if one is not ticket]
            free = []
            if self._limits.session is not None:
                mine = sum(one._memory for one in others if one.session == ticket.session)
                free.append(self._limits.session - mine)
            if self._limits.server is not None:
                free.append(self._limits.server - sum(one._memory for one in others))
            if not free or need <= min(free):
                ticket._memory = need
                return None
            return max(0, min(free))

    def _make_room(self, ticket: Ticket, worker: Process) -> None:
        """Let a request that takes long go on beside the others."""
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, worker.pid, 19)
        with self._lock:
            ticket._long = True
            self._serving -= 1
            long = [one for one in self._running if one._long and not one.cancelled]
            if len(long) > MOST_LONG:
                min(long, key=lambda one: one._began).cancel()
            self._employ()


_shared: Broker | None = None


def shared() -> Broker:
    """The broker of this process: that of a server, or one thread, made at first use."""
    global _shared
    if _shared is None:
        _shared = Broker()
    return _shared


def use(broker: Broker | None) -> Broker | None:
    """Have pages and notebooks of this process use ``broker``, None: one that is made when it is
    asked for; the one before."""
    global _shared
    before, _shared = _shared, broker
    return before
