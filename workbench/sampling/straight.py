r"""Programs as matrix products on one buffer, for denoisers that are a softmax over a few centres.

Where :math:`D(x) = g\,x + k\,\mu\,\mathrm{softmax}(W [x; 1])` at every noise level (isotropic
mixtures of one variance), a row ``out = sum of c * register + c_D D(at)`` is linear in the
registers and the responsibilities. All registers are slots of one buffer, the coordinates of all
samples side by side, each with a row of ones::

    [x_1 .. x_d 1 | y_1 .. y_d 1 | ... | r_1 .. r_K]     each (n,)

so that a row of the program is two products and a softmax, whose matrices are made once for all
noise levels. For many samples or coordinates the exponentials are not normalised before they are
summed, and what is linear in the registers is added to the quotient of the sums.

Where :math:`y = k x + c D(x)` is all that a step wants of D, an evaluation and the combination
after it are one operation. What else of the step reads D is given :math:`(y - k x)/c` instead: of
Heun's step, with :math:`x' = k' x + c_1 D + c_2 D_2`,

.. math:: y = k x + c D(x),\qquad x' = (k' - c_1 k/c)\,x + (c_1/c)\,y + c_2 D(y).

Nothing cancels as long as :math:`c_1/c` is no large number: an error of y's last digit is one of
x'.

Textbook form of what each operation does::

    r = softmax(log w_k - |alpha mu_k|^2 / 2 l + alpha mu_k . x / l),    l = alpha^2 v + sigma^2
    D = (alpha v x + sigma^2 sum_k r_k mu_k) / l
    out = sum c register + c_D D + noise z
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.denoisers.posterior import FEW, LEAST, LOG2E, NARROW, Softmaxes
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step

if TYPE_CHECKING:
    from workbench.sampling.loop import Run

#: Size of logits [nats] from which their powers are kept off numbers too small to be normal.
DEEP = 60.0
#: Logarithm of the ratio of two components [nats] up to which no power of it overflows, with room
#: for five standard deviations, and up to which none is too small to be normal.
RELATIVE, SHALLOW = 36.0, 15.0
#: Scales of registers stay above this, and below its inverse.
SCALES = 2.0**-20
#: The largest coefficient of a register that stands for another's D.
LARGEST = 4.0


class Operation(NamedTuple):
    """``out = combine [registers; r] + noise z``, ``r`` the responsibilities at slot ``at``.

    Attributes:
        at: slot of the state that is denoised; None: nothing is.
        out: slot that is written.
        logits: (K, d + 1); of "relative" ones (K - 1, d + 1).
        how: of many samples what keeps powers of the logits from overflowing: they are formed
            "relative" to the last component's, whose power is then 1, or the "top" of each sample
            is taken off; "double" if this is in float64, where the dtype of the run would round
            too much (of few, too).
        deep: whether powers of these logits may be too small for normal numbers, which are slow.
        combine: of few samples a matrix (d, buffer); of many, slots with their coefficients, the
            first with None for 1.
        keep: of many samples the coefficient of the responsibilities' mean.
        noise: coefficient of fresh noise, or 0.
    """

    at: int | None
    out: int
    logits: Tensor | None
    how: str
    deep: bool
    combine: Tensor | list[tuple[int, float | Tensor | None]]
    keep: float
    noise: float


@dataclass(frozen=True)
class Straight:
    """A program on one buffer; it holds no state of a run.

    A state so far from all centres that a power overflows ends as no number: such a run is to be
    walked row by row.

    Attributes:
        steps: of each step its operations, and the slot where it leaves ``x`` over a factor.
        first: slots of the registers that a run begins with, by name.
        slots, dim: number of slots, and of coordinates.
        sums: (d + 1, K), the centres over a row of ones, and zeros below; of many samples the one
            in the middle is last.
        few: whether responsibilities are normalised before they are summed.
    """

    steps: tuple[tuple[tuple[Operation, ...], int, Tensor | None], ...]
    first: dict[str, int]
    slots: int
    dim: int
    sums: Tensor
    few: bool

    @cached_property
    def _double(self) -> bool:
        return any(one.how == "double" for operations, *_ in self.steps for one in operations)

    @cached_property
    def _scales(self) -> Tensor:
        """Of each step what ``x`` is to be multiplied with, (steps, 1, 1)."""
        one = torch.ones((), dtype=self.sums.dtype)  # on the host, as the others
        scales = [one if scale is None else scale for *_, scale in self.steps]
        return torch.stack(scales).to(self.sums).reshape(-1, 1, 1)

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
            mul(held[name].mT, 1.0, out=state[slot])  # a copy that transposes is slower
        kernel = (self._few if self.few else self._many)(space, whole, state)
        total, rooms, ends = len(self.steps), None, None
        if recorder is not None and (records := recorder.states_alone()) is not None:
            records[0] = x
            recorder, records = None, records[1:].mT
        else:
            records = x.new_empty(total, d, n) if path is not None and self.few else None
        if records is not None:
            rooms = records.unbind()
            if path is not None:
                path.append(records)
        elif path is not None:
            ends = []
        if recorder is not None and recorder.wants(0):
            recorder.keep(0, steps[0].start, x, None)
        with torch.inference_mode():
            for index, (operations, place, scale) in enumerate(self.steps):
                run.step = step = steps[index]
                for operation in operations:
                    kernel(operation)
                    if operation.at is not None:
                        run.evaluations += 1
                    if operation.noise:
                        state[operation.out].add_(run.noise().mT, alpha=operation.noise)
                now = state[place]
                if rooms is not None:
                    now, scale = _times(now, scale, rooms[index]), None
                elif ends is not None:
                    ends += torch.aminmax(now)
                if on_step is None and recorder is None:
                    continue
                with torch.inference_mode(False):
                    held["x"] = _times(now, scale).mT
                    if recorder is not None and recorder.wants(index + 1):
                        recorder.keep(index + 1, step.end, held["x"], None)
                    if on_step is not None:
                        on_step(index + 1, total)
        if ends:
            path.append(torch.stack(ends).reshape(total, 1, 2) * self._scales)
        held["x"] = now.mT if scale is None else mul(now.mT, scale, out=x.new_empty(n, d))

    def _few(self, space: Tensor, whole: list, state: list):
        """For few samples: a product, a softmax, a product."""
        k, n = self.sums.shape[1], space.shape[1]
        registers, share, logits = space[:-k], space[-k:], space.new_empty(k, n)
        wide = space.new_empty(0), space.new_empty(0)
        if self._double:
            wide = space.new_empty(self.dim + 1, n, dtype=torch.float64), logits.double()
        seen, doubles = wide

        def kernel(one: Operation) -> None:
            if one.at is None:
                mm(one.combine, registers, out=state[one.out])
                return
            if one.how == "double":
                mm(one.logits, seen.copy_(whole[one.at]), out=doubles)
                share.copy_(softmax(doubles, 0))
            else:
                softmax(mm(one.logits, whole[one.at], out=logits), 0, out=share)
            mm(one.combine, space, out=state[one.out])

        return kernel

    def _many(self, space: Tensor, whole: list, state: list):
        """For many: powers of two less the largest, their sums and the quotient."""
        k, n, d = self.sums.shape[1], space.shape[1], self.dim
        logits, most, ratios = space.new_empty(k, n), space.new_empty(n), space.new_ones(k, n)
        others = ratios[:-1]
        sums = space.new_empty(len(self.sums), n)
        above, below = sums[:d], sums[d]
        seen = doubles = tops = most
        if self._double:
            seen = space.new_empty(d + 1, n, dtype=torch.float64)
            doubles, tops = logits.double(), most.double()

        def kernel(one: Operation) -> None:
            out = state[one.out]
            (slot, c), *further = one.combine
            base = state[slot] if c is None else mul(state[slot], c, out=out)
            for slot, c in further:
                base = torch.add(base, state[slot], alpha=c, out=out)
            if one.at is None:
                if base is not out:
                    out.copy_(base)
                return
            if one.how == "relative":
                powers, those = ratios, mm(one.logits, whole[one.at], out=others)
            elif one.how == "top":
                powers = those = mm(one.logits, whole[one.at], out=logits)
                those.sub_(torch.amax(those, 0, out=most))
            else:
                mm(one.logits, seen.copy_(whole[one.at]), out=doubles)
                powers = those = logits.copy_(doubles.sub_(torch.amax(doubles, 0, out=tops)))
            if one.deep:
                those.clamp_min_(LEAST)
            those.exp2_()
            mm(self.sums, powers, out=sums)
            torch.addcdiv(base, above, below, value=one.keep, out=out)

        return kernel


def _times(value: Tensor, scale: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``scale * value``, None being 1."""
    if scale is not None:
        return mul(value, scale, out=out)
    return value if out is None else out.copy_(value)


def straight(program: Program, model: Denoiser, like: Tensor, constants=()) -> Straight | None:
    """``program`` as operations on one buffer; None where it, or the model, is of another kind.

    Args:
        program: the sampler on its grid.
        model: a denoiser.
        like: states (n, *event) of the shape, dtype and device of the run's.
        constants: names of registers beside ``x`` that a run begins with.
    """
    never = type(model).softmaxes is Denoiser.softmaxes
    if never or like.ndim != 2 or not all(map(_plain, program.rows)) or program.by_mode:
        return None
    nodes = dict.fromkeys([row.node for row in program.rows if type(row) is Evaluate])
    rules = model.softmaxes([(node.alpha, node.sigma) for node in nodes], like)
    if rules is None:
        return None
    places = dict(zip(nodes, range(len(nodes)), strict=True))
    return _Layout(program, places, rules, like, ("x", *constants)).straight()


def _plain(row: Row) -> bool:
    if type(row) is Evaluate:
        return row.of == "denoised"
    return type(row) is Combine


class Pattern(NamedTuple):
    """How the rows of a step become operations, whatever their numbers.

    Attributes:
        lines: of each operation the row that evaluates and the row that combines (or None), and
            what is said otherwise in the latter: :class:`Substitution`.
        outs: the register that each writes.
        after: the registers that are read after each.
        before: those that are read from the first on.
    """

    lines: tuple[tuple[int | None, int | None, tuple[Substitution, ...]], ...]
    outs: tuple[str, ...]
    after: tuple[frozenset[str], ...]
    before: frozenset[str]


class Substitution(NamedTuple):
    """``(y - k x) / c`` for D of row ``evaluated``, where ``y = k x + c D`` was formed from it."""

    evaluated: int
    d: str
    x: str
    y: str


class _Line:
    """An operation of a pattern that is being made."""

    def __init__(self, place: int, row: tuple) -> None:
        self.evaluated, self.combined = (place, None) if len(row) == 2 else (None, place)
        self.out, self.noise, self.substitutions = row[0], row[-1] is True, []
        self.reads = {row[1]} if len(row) == 2 else set(row[1])

    def without(self, rest: list[_Line], after: _Line, live: frozenset[str]) -> list[_Line] | None:
        """Of an evaluation that ``after`` combines: the later lines that read D, which can do
        without; None if not all can.
        """
        d, (x,), y = self.out, self.reads, after.out
        plain = not after.noise and y not in (x, d) and after.reads <= {d, x}
        wanted, moved, readers = y != d, False, []
        for line in rest:
            if wanted and d in line.reads:
                if not plain or moved or line.combined is None:
                    return None
                readers.append(line)
            wanted = wanted and line.out != d
            moved = moved or line.out in (x, y)
        return None if wanted and d in live else readers


def _pattern(structure: tuple, live: frozenset[str], alone: frozenset[int]) -> Pattern:
    """That of a step.

    Args:
        structure: of each row (out, at), or (out, registers, whether there is noise).
        live: registers that later steps read.
        alone: evaluations that stay rows of their own.
    """
    lines = [_Line(place, row) for place, row in enumerate(structure)]
    for i, line in enumerate(lines):
        after = lines[i + 1] if i + 1 < len(lines) else None
        if after is None or line.combined is not None or line.evaluated in alone:
            continue
        (x,), d = line.reads, line.out
        if after.evaluated is not None or d not in after.reads or d == x:
            continue
        readers = line.without(lines[i + 2 :], after, live)
        if readers is None:
            continue
        for reader in readers:
            reader.substitutions.append(Substitution(line.evaluated, d, x, after.out))
            reader.reads = reader.reads - {d} | {after.out} | ({x} & after.reads)
        after.evaluated, after.reads = line.evaluated, after.reads - {d} | {x}
        lines[i] = None
    lines, after = [line for line in lines if line is not None], []
    for line in reversed(lines):
        after.append(live)
        live = (live - {line.out}) | line.reads | {"x"}
    return Pattern(
        tuple((line.evaluated, line.combined, tuple(line.substitutions)) for line in lines),
        tuple(line.out for line in lines),
        tuple(after[::-1]),
        live,
    )


class _Layout:
    """Which register is in which slot when, and the matrices of all operations at once."""

    def __init__(self, program, places, rules: Softmaxes, like: Tensor, first) -> None:
        d, k = rules.centres.shape
        self.few = len(like) * k <= FEW and d <= NARROW
        rules = rules if self.few else rules.with_last(rules.middle)
        self.program, self.places, self.rules, self.like = program, places, rules, like
        self.first = {name: slot for slot, name in enumerate(first)}

    def straight(self) -> Straight:
        assigned: dict[tuple, tuple] = {}
        slots, used, drafts, ends = self.first, len(self.first), [], []
        scales = dict.fromkeys(slots.values(), 1.0)
        gains, keeps = self.rules.gain, self.rules.keep
        for pattern, numbers in self._steps():
            key = (id(pattern), *slots.items())
            if key not in assigned:
                assigned[key] = self._assigned(pattern, slots)
            writes, slots = assigned[key]
            for (out, of), (at, node, c, line, noise) in zip(writes, numbers, strict=True):
                line = {of[name]: value for name, value in line.items()}
                place = None
                if node is not None:
                    at, place = of[at], self.places[node]
                    line[at] = line.get(at, 0.0) + c * gains[place]
                    c *= keeps[place]
                scale = scales.get(at, 1.0)
                if not self.few:
                    line, scales[out] = self._scaled(line, scales)
                    c, noise = c / scales[out], noise / scales[out]
                drafts.append((at, out, place, c, noise, scale, line))
                used = max(used, out + 1)
            place = slots["x"]
            ends.append((len(numbers), place, 1.0 if self.few else scales[place]))
        operations = iter(self._operations(drafts, used))
        factors = self._factors([scale for *_, scale in ends])
        steps = [
            (tuple(islice(operations, number)), place, factor)
            for (number, place, _), factor in zip(ends, factors, strict=True)
        ]
        sums = self.rules.sums.to(self.like.dtype)
        return Straight(tuple(steps), self.first, used, len(self.rules.centres), sums, self.few)

    @staticmethod
    def _scaled(line: dict[int, float], scales: dict[int, float]) -> tuple[dict, float]:
        """Registers are held over a scale each, so that of the largest term of a sum nothing need
        be multiplied: coefficients of what is held, that term first, and the sum's own scale.
        """
        line = {slot: c * scales[slot] for slot, c in line.items()}
        if not line:
            return {0: 0.0}, 1.0
        largest = max(line, key=lambda slot: abs(line[slot]))
        scale = line.pop(largest)
        if not SCALES < abs(scale) < 1 / SCALES:
            return {largest: scale} | line, 1.0
        return {largest: 1.0} | {slot: c / scale for slot, c in line.items()}, scale

    def _factors(self, numbers: Sequence[float]) -> list[Tensor | None]:
        """As tensors of no dimensions, which are twice as fast as Python numbers; None for 1."""
        tensors = torch.tensor(numbers, dtype=self.like.dtype).unbind()
        return [None if c == 1.0 else t for c, t in zip(numbers, tensors, strict=True)]

    def _steps(self) -> list[tuple[Pattern, list[tuple]]]:
        """Of every step its pattern and of each operation what it reads and evaluates there, the
        coefficient of D, those of the registers, and that of the noise.
        """
        live, steps, patterns = frozenset("x"), [], {}
        for step in reversed(self.program.steps):
            structure = tuple(
                [
                    (row.out, row.at)
                    if type(row) is Evaluate
                    else (row.out, tuple([name for name, _ in row.terms]), row.noise != 0.0)
                    for row in step.rows
                ]
            )
            alone, numbers = frozenset(), None
            while numbers is None:
                key = structure, live, alone
                pattern = patterns.get(key) or patterns.setdefault(key, _pattern(*key))
                numbers, cancels = _numbers(pattern, step.rows)
                alone |= {cancels}
            live = pattern.before
            steps.append((pattern, numbers))
        return steps[::-1]

    @staticmethod
    def _assigned(pattern: Pattern, slots: dict[str, int]) -> tuple[list, dict[str, int]]:
        """Of each operation the slot that it writes and where it finds registers; and where they
        are in the end.
        """
        places = []
        for name, needed in zip(pattern.outs, pattern.after, strict=True):
            taken = slots.values()
            out = next(slot for slot in range(len(slots) + 1) if slot not in taken)
            places.append((out, slots))
            slots = {other: slot for other, slot in slots.items() if other in needed} | {name: out}
        return places, slots

    def _operations(self, drafts: list[tuple], used: int) -> list[Operation]:
        rules, dtype = self.rules, self.like.dtype
        weights, sizes, d = rules.weights, rules.sizes, len(rules.centres)
        relative = [not self.few and size < RELATIVE for size in rules.apart]
        combines = self._matrices(drafts, used) if self.few else self._terms(drafts)
        which = [draft[2] for draft in drafts if draft[2] is not None]
        if not self.few:
            shift = torch.tensor(relative)[:, None, None] * weights[:, -1:]
            weights = ((weights - shift.to(weights)) * LOG2E)[which]
            scales = [draft[5] for draft in drafts if draft[2] is not None]
            weights[..., :d] *= weights.new_tensor(scales)[:, None, None]
            sizes = [
                DEEP * apart / SHALLOW if small else size
                for small, apart, size in zip(relative, rules.apart, sizes, strict=True)
            ]
            which = range(len(which))
        exact, short = weights.unbind(), weights.to(dtype).unbind()
        operations, rows = [], iter(which)
        for (at, out, place, c, noise, *_), combine in zip(drafts, combines, strict=True):
            if place is None:
                operations.append(Operation(at, out, None, "", False, combine, c, noise))
                continue
            how = "double" if rules.careful[place] else "relative" if relative[place] else "top"
            logits = (exact if how == "double" else short)[next(rows)]
            logits = logits[:-1] if how == "relative" else logits
            deep = sizes[place] > DEEP
            operations.append(Operation(at, out, logits, how, deep, combine, c, noise))
        return operations

    def _terms(self, drafts: list[tuple]) -> list[list]:
        """``combine`` of every operation on many samples."""
        lines = [list(draft[-1].items()) for draft in drafts]
        factors = self._factors([line[0][1] for line in lines])
        pairs = zip(lines, factors, strict=True)
        return [[(line[0][0], factor), *line[1:]] for line, factor in pairs]

    def _matrices(self, drafts: list[tuple], used: int) -> Sequence[Tensor]:
        """``combine`` of every operation on few samples."""
        dtype, device, d = self.like.dtype, self.like.device, len(self.rules.centres)
        slots = range(used)
        numbers = [[*map(draft[-1].get, slots, repeat(0.0)), draft[3]] for draft in drafts]
        numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        eye = torch.eye(d, d + 1, dtype=torch.float64, device=device)
        linear = (numbers[:, None, :used, None] * eye[:, None]).reshape(len(drafts), d, -1)
        shares = numbers[:, used, None, None] * self.rules.centres
        with_shares = torch.cat([linear, shares], 2).to(dtype).unbind()
        if all([draft[2] is not None for draft in drafts]):
            return with_shares
        without = linear.to(dtype).unbind()
        return [
            without[i] if draft[2] is None else with_shares[i] for i, draft in enumerate(drafts)
        ]


def _numbers(pattern: Pattern, rows: Sequence[Row]) -> tuple[list[tuple] | None, int | None]:
    """Of each operation the register and node it evaluates at, the coefficient of D, those of the
    registers and that of the noise; or None, and the evaluation without which a substitution
    would cancel.
    """
    numbers, formed = [], {}
    for evaluated, combined, substitutions in pattern.lines:
        if combined is None:
            row = rows[evaluated]
            numbers.append((row.at, row.node, 1.0, {}, 0.0))
            continue
        row = rows[combined]
        line = dict(row.terms)
        for place, d, x, y in substitutions:
            k, c = formed[place]
            ratio = line.pop(d) / c
            if abs(ratio) > LARGEST:
                return None, place
            if k:
                line[x] = line.get(x, 0.0) - ratio * k
            line[y] = line.get(y, 0.0) + ratio
        at = node = None
        c = 0.0
        if evaluated is not None:
            at, node = rows[evaluated].at, rows[evaluated].node
            c = line.pop(rows[evaluated].out)
            formed[evaluated] = line.get(at, 0.0), c
        numbers.append((at, node, c, line, row.noise))
    return numbers, None


mm, mul, softmax = torch.mm, torch.mul, torch.softmax
