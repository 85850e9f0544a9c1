r"""Programs as matrix products on one buffer, for denoisers that are a softmax over a few centres.

Where :math:`D(x) = g\,x + k\,\mu\,\mathrm{softmax}(W [x; 1])` at every noise level (isotropic
mixtures of one variance), a row ``out = sum of c * register + c_D D(at)`` is linear in the
registers and the responsibilities. All registers are slots of one buffer, the coordinates of all
samples side by side, each with a row of ones::

    [x_1 .. x_d 1 | y_1 .. y_d 1 | ... | r_1 .. r_K]     each (n,)

so that a row of the program is two products and a softmax, whose matrices are made once for all
noise levels. For many samples or coordinates the exponentials are not normalised before they are
summed, and what is linear in the registers is added to the quotient of the sums.

Textbook form of what each operation does::

    r = softmax(log w_k - |alpha mu_k|^2 / 2 l + alpha mu_k . x / l),    l = alpha^2 v + sigma^2
    D = (alpha v x + sigma^2 sum_k r_k mu_k) / l
    out = sum c register + c_D D + noise z
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.denoisers.posterior import FEW, LOG2E, Softmaxes
from workbench.sampling.fusing import reads
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step

if TYPE_CHECKING:
    from workbench.sampling.loop import Run

__all__ = ["Straight", "straight"]

#: Coordinates up to which what is linear in the registers is a matrix, too.
NARROW = 16
#: Size of logits [nats] from which their powers are kept off numbers too small to be normal.
DEEP = 60.0


class Operation(NamedTuple):
    """``out = combine [registers; r] + noise z``, ``r`` the responsibilities at slot ``at``.

    Attributes:
        at: slot of the state that is denoised; None: nothing is.
        out: slot that is written.
        logits: (K, d + 1), in float64 where the dtype of the run would round too much.
        careful: whether it is.
        deep: whether powers of these logits may be too small for normal numbers, which are slow.
        combine: of few samples a matrix (d, buffer); of many, slots with their coefficients.
        keep: of many samples the coefficient of the responsibilities' mean.
        noise: coefficient of fresh noise, or 0.
    """

    at: int | None
    out: int
    logits: Tensor | None
    careful: bool
    deep: bool
    combine: Tensor | tuple[tuple[int, float], ...]
    keep: float
    noise: float


@dataclass(frozen=True)
class Straight:
    """A program on one buffer; it holds no state of a run.

    Attributes:
        steps: of each step its operations and the slot where it leaves ``x``.
        first: slots of the registers that a run begins with, by name.
        slots, dim: number of slots, and of coordinates.
        sums: (d + 1, K), the centres over a row of ones.
        few: whether responsibilities are normalised before they are summed.
    """

    steps: tuple[tuple[tuple[Operation, ...], int], ...]
    first: dict[str, int]
    slots: int
    dim: int
    sums: Tensor
    few: bool

    def walk(self, run: Run, steps: Sequence[Step], held: dict, recorder, on_step, path) -> None:
        """Walk it.

        Args:
            run: what counts evaluations and draws noise.
            steps: those of the program.
            held: the registers at the start, ``x`` (n, d) among them, which is kept up to date.
            recorder, on_step, path: as in the loop.
        """
        x, d, width = held["x"], self.dim, self.dim + 1
        n, (rows, k) = len(x), (self.slots * width, self.sums.shape[1])
        space = x.new_zeros(rows + (k if self.few else 0), n)
        space[d:rows:width] = 1.0
        whole = [space[i * width : (i + 1) * width] for i in range(self.slots)]
        state = [slot[:d] for slot in whole]
        for name, slot in self.first.items():
            state[slot].copy_(held[name].mT)
        kernel = (self._few if self.few else self._many)(space, whole, state)
        total, rooms = len(self.steps), None
        if recorder is not None and (records := recorder.columns_of_all()) is not None:
            recorder.keep(0, steps[0].start, x, None)
            recorder, records = None, records[1:]
        else:
            records = None if path is None else x.new_empty(total, d, n)
        if records is not None:
            rooms = records.unbind()
            if path is not None:
                path.append(records)
        for index, (operations, place) in enumerate(self.steps):
            run.step = step = steps[index]
            if recorder is not None and index == 0 and recorder.wants(0):
                recorder.keep(0, step.start, x, None)
            for operation in operations:
                kernel(operation)
                if operation.at is not None:
                    run.evaluations += 1
                if operation.noise:
                    state[operation.out].add_(run.noise().mT, alpha=operation.noise)
            now = state[place]
            if rooms is not None:
                now = rooms[index].copy_(now)
            if on_step is not None or recorder is not None:
                held["x"] = now.mT
            if recorder is not None and recorder.wants(index + 1):
                recorder.keep(index + 1, step.end, held["x"], None)
            if on_step is not None:
                on_step(index + 1, total)
        held["x"] = now.mT

    def _few(self, space: Tensor, whole: list, state: list):
        """For few samples: a product, a softmax, a product."""
        k, n = self.sums.shape[1], space.shape[1]
        registers, share, logits = space[:-k], space[-k:], space.new_empty(k, n)
        wide = space.new_empty(0), space.new_empty(0)
        if any(one.careful for operations, _ in self.steps for one in operations):
            wide = space.new_empty(self.dim + 1, n, dtype=torch.float64), logits.double()
        seen, doubles = wide

        def kernel(one: Operation) -> None:
            if one.at is None:
                mm(one.combine, registers, out=state[one.out])
                return
            if one.careful:
                mm(one.logits, seen.copy_(whole[one.at]), out=doubles)
                share.copy_(softmax(doubles, 0))
            else:
                softmax(mm(one.logits, whole[one.at], out=logits), 0, out=share)
            mm(one.combine, space, out=state[one.out])

        return kernel

    def _many(self, space: Tensor, whole: list, state: list):
        """For many: powers of two less the largest, their sums and the quotient."""
        k, n, d = self.sums.shape[1], space.shape[1], self.dim
        logits, sums, most = space.new_empty(k, n), space.new_empty(d + 1, n), space.new_empty(n)
        above, below = sums[:d], sums[d]
        seen = doubles = tops = most
        least = -1000.0 if space.dtype == torch.float64 else -100.0
        if any(one.careful for operations, _ in self.steps for one in operations):
            seen = space.new_empty(d + 1, n, dtype=torch.float64)
            doubles, tops = logits.double(), most.double()

        def kernel(one: Operation) -> None:
            out = state[one.out]
            (slot, c), *others = one.combine
            mul(state[slot], c, out=out)
            for slot, c in others:
                out.add_(state[slot], alpha=c)
            if one.at is None:
                return
            if one.careful:
                mm(one.logits, seen.copy_(whole[one.at]), out=doubles)
                torch.amax(doubles, 0, out=tops)
                logits.copy_(doubles.sub_(tops))
            else:
                mm(one.logits, whole[one.at], out=logits)
                torch.amax(logits, 0, out=most)
                logits.sub_(most)
            if one.deep:
                logits.clamp_min_(least)
            mm(self.sums, logits.exp2_(), out=sums)
            out.addcdiv_(above, below, value=one.keep)

        return kernel


def straight(program: Program, model: Denoiser, like: Tensor, constants=()) -> Straight | None:
    """``program`` as operations on one buffer; None where it, or the model, is of another kind.

    Args:
        program: the sampler on its grid.
        model: a denoiser.
        like: states (n, *event) of the shape, dtype and device of the run's.
        constants: names of registers beside ``x`` that a run begins with.
    """
    if like.ndim != 2 or program.by_mode or not all(map(_plain, program.rows)):
        return None
    nodes = dict.fromkeys(row.node for row in program.rows if type(row) is Evaluate)
    rules = model.softmaxes([(node.alpha, node.sigma) for node in nodes], like)
    if rules is None:
        return None
    places = dict(zip(nodes, range(len(nodes)), strict=True))
    return _Layout(program.fused, places, rules, like, ("x", *constants)).made()


def _plain(row: Row) -> bool:
    if type(row) is Evaluate:
        return row.of == "denoised"
    return type(row) is Combine


class _Layout:
    """Which register is in which slot when, and the matrices of all operations at once."""

    def __init__(self, program, places, rules: Softmaxes, like: Tensor, first) -> None:
        self.program, self.places, self.rules, self.like = program, places, rules, like
        d, k = rules.centres.shape
        self.few = len(like) * k <= FEW and d <= NARROW
        self.first = {name: slot for slot, name in enumerate(first)}

    def made(self) -> Straight:
        slots = dict(self.first)
        used, drafts, lines, ends = len(slots), [], [], []
        for step, after in zip(self.program.steps, self._needed(), strict=True):
            for row, needed in zip(step.rows, after, strict=True):
                line, noise = {}, 0.0
                if type(row) is Combine:
                    at, c, terms, noise = None, 0.0, row.terms, row.noise
                elif type(row) is Evaluate:
                    at, c, terms = slots[row.at], 1.0, ()
                else:
                    at, c, terms, noise = slots[row.at], row.c, row.added, row.noise
                    line[at] = row.k
                for name, value in terms:
                    line[slots[name]] = value
                place = None if at is None else self.places[row.node]
                if place is not None:
                    line[at] = line.get(at, 0.0) + c * self.rules.gain[place]
                    c *= self.rules.keep[place]
                taken = slots.values()
                out = next(slot for slot in range(used + 1) if slot not in taken)
                used = max(used, out + 1)
                drafts.append((at, out, place, c, noise))
                lines.append(line)
                slots[row.out] = out
                for name in [name for name in slots if name not in needed]:
                    del slots[name]
            ends.append((len(step.rows), slots["x"]))
        operations = iter(self._operations(drafts, lines, used))
        steps = [(tuple(islice(operations, number)), last) for number, last in ends]
        centres = self.rules.centres
        sums = torch.cat([centres, torch.ones_like(centres[:1])]).to(self.like.dtype)
        return Straight(tuple(steps), self.first, used, len(centres), sums, self.few)

    def _needed(self) -> list[list[set[str]]]:
        """For every row of every step the registers that are read after it."""
        live, steps = {"x"}, []
        for step in reversed(self.program.steps):
            after = []
            for row in reversed(step.rows):
                after.append(live)
                live = live - {row.out}
                live.update(reads(row))
                live.add("x")
            steps.append(after[::-1])
        return steps[::-1]

    def _operations(self, drafts: list, lines: list[dict], used: int) -> list[Operation]:
        rules, dtype = self.rules, self.like.dtype
        weights = rules.weights if self.few else rules.weights * LOG2E
        exact, short = weights.unbind(), weights.to(dtype).unbind()
        made = []
        for draft, combine in zip(drafts, self._combined(drafts, lines, used), strict=True):
            at, out, place, c, noise = draft
            if place is None:
                made.append(Operation(at, out, None, False, False, combine, c, noise))
                continue
            careful, deep = rules.careful[place], rules.sizes[place] > DEEP
            logits = (exact if careful else short)[place]
            made.append(Operation(at, out, logits, careful, deep, combine, c, noise))
        return made

    def _combined(self, drafts: list, lines: list[dict], used: int) -> list:
        """``combine`` of every operation."""
        dtype, device, d = self.like.dtype, self.like.device, len(self.rules.centres)
        if not self.few:
            terms = [list(line.items()) or [(0, 0.0)] for line in lines]
            # A tensor of no dimensions is twice as fast a factor as a Python number.
            factors = torch.tensor([line[0][1] for line in terms], dtype=dtype).unbind()
            pairs = zip(terms, factors, strict=True)
            return [[(line[0][0], factor), *line[1:]] for line, factor in pairs]
        numbers = [
            [*map(line.get, range(used), repeat(0.0)), draft[3]]
            for line, draft in zip(lines, drafts, strict=True)
        ]
        numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        eye = torch.eye(d, d + 1, dtype=torch.float64, device=device)
        linear = (numbers[:, None, :used, None] * eye[:, None]).reshape(len(lines), d, -1)
        shares = numbers[:, used, None, None] * self.rules.centres
        with_shares = torch.cat([linear, shares], 2).to(dtype).unbind()
        without = linear.to(dtype).unbind() if None in [draft[0] for draft in drafts] else ()
        return [
            without[i] if draft[0] is None else with_shares[i] for i, draft in enumerate(drafts)
        ]


mm, mul, softmax = torch.mm, torch.mul, torch.softmax
