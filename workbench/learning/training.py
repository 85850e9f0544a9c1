"""Training a small network: the same weights to the last bit, however often it is interrupted.

Everything that decides the next step stands in one file, ``state.safetensors``: weights, averages,
the optimiser's moments, the generator, the curve. It is replaced at once or not at all, so a
process that is killed at any instant goes on, when it is started again, as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from workbench import __version__
from workbench.datasets import Data
from workbench.denoisers import Neural
from workbench.denoisers.checkpoints import data_hash, network_of, replace, write
from workbench.denoisers.precondition import edm_denoised, edm_log_density
from workbench.learning.average import decay, gamma_of
from workbench.learning.networks.base import Network
from workbench.learning.objectives.base import Objective
from workbench.learning.objectives.edm import EDMLoss
from workbench.learning.regularisers.base import Regulariser
from workbench.params import Param, check

#: Samples of which the curve's losses are means, at most.
JUDGED = 300

#: AdamW's decay of the moments of the gradient.
BETAS = (0.9, 0.99)

#: Steps at the start whose losses the card records one by one.
FIRST = 32


class TrainingError(ValueError):
    """A training that cannot be done or has failed; the text says why."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast a network is trained; its values are checked where it is used."""

    steps: Annotated[int, Param("steps of the optimiser", ge=1, le=10_000_000)] = 2500
    batch: Annotated[int, Param("samples in a step", ge=1, le=65_536)] = 128
    rate: Annotated[float, Param("learning rate at its highest", gt=0, le=10)] = 1e-3
    warmup: Annotated[int, Param("steps in which the rate rises", ge=0)] = 100
    decay: Annotated[
        Literal["cosine", "none"], Param("how the rate falls from there to the last step")
    ] = "cosine"
    weight_decay: Annotated[float, Param("decoupled decay of the weights", ge=0, le=10)] = 0.01
    clip: Annotated[float, Param("largest norm of a step's gradient", gt=0, le=1e9)] = 1.0
    held_out: Annotated[int, Param("points of the set that are not trained on", ge=0)] = 0
    split: Annotated[
        Literal["random", "last"],
        Param("which are held out: drawn by the seed, or the last of the set"),
    ] = "random"
    most: Annotated[int, Param("points trained on, at most; 0: all others", ge=0)] = 0
    skip: Annotated[int, Param("points passed over before those trained on", ge=0)] = 0
    classes: Annotated[bool, Param("whether the labels condition the network")] = False
    dropout: Annotated[float, Param("share of labels that are dropped", ge=0, le=1)] = 0.1
    centre: Annotated[
        Literal["each", "all", "none"],
        Param("mean subtracted: of each coordinate, of all alike, or none"),
    ] = "each"
    averages: Annotated[
        tuple[float, ...],
        Param("relative lengths of the weights' averages", gt=0, lt=0.288, fewest=1),
    ] = (0.1, 0.05)
    seed: Annotated[int, Param("of weights, batches and noise", ge=0, le=2**53)] = 0
    every: Annotated[int, Param("steps between two points of the curve", ge=1)] = 250
    levels: Annotated[
        tuple[float, ...], Param("noise levels rho of the curve", gt=0, le=1e6, fewest=1)
    ] = (0.1, 0.2, 0.4, 0.7, 1.2, 2.0)
    precision: Annotated[
        Literal["float32", "float16"], Param("in which the weights are written at the end")
    ] = "float32"


def draws(shape, level: int) -> Tensor:
    """The noise of the curve's losses at a noise level, by its place among them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(level))


def split(count: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """The places of the points trained on, and of those held out, of a set of ``count``.

    Digits are written by few hands, one after the other: the last of them are other writers'.

    Raises:
        TrainingError: more held out than there are.
    """
    held = settings.held_out
    if held >= count:
        raise TrainingError(
            f"held_out was {held}; the set has {count} points, and some must be trained on."
        )
    order = np.arange(count)
    if settings.split == "random":
        order = np.random.default_rng(settings.seed).permutation(count)
    order = torch.from_numpy(order)
    trained = order[: count - held][settings.skip :][: settings.most or None]
    if not len(trained):
        raise TrainingError(
            f"skip was {settings.skip}; only {count - held} of the {count} points are not held out."
        )
    return trained, order[count - held :]


@dataclass(frozen=True)
class Trained:
    """A training that has ended.

    Attributes:
        path: the checkpoint.
        card: what it says of itself.
        denoiser: the network with its longest average of weights.
    """

    path: Path
    card: dict[str, Any]
    denoiser: Neural


def train(
    data: Data,
    network: Network | Callable[..., Network],
    folder: str | Path,
    *,
    objective: Objective | None = None,
    regularisers: Sequence[Regulariser] = (),
    settings: Settings | None = None,
    out: str | Path | None = None,
    study: dict[str, Any] | None = None,
    start: str | Path | None = None,
    command: str = "",
    save_every: float = 10.0,
    on_step: Callable[[int, int, dict], None] | None = None,
) -> Trained:
    """Train a network on a data set, or go on where an interrupted training stood.

    Args:
        data: the points, and labels where the network is conditioned on them.
        network: a class of networks, called as ``network(event_shape, classes)``.
        folder: where the state is written.
        out: the checkpoint at the end, its card beside it; None: ``network.safetensors`` there.
        objective: None: :class:`EDMLoss`.
        regularisers: penalties that are added.
        settings: None: those of :class:`Settings`.
        study: the training as plain values, for the card.
        start: a checkpoint of such a network, whose weights it begins with; None: fresh weights.
        command: with which it was started, for the card.
        save_every: seconds between two states that are written.
        on_step: called as ``on_step(done, total, curve)``; raise in it to stop.

    Raises:
        TrainingError: values that do not go together; a loss that is not finite; a folder that
            holds the state of another training.
        CheckpointError: a ``start`` that cannot be used.
    """
    run = _Run(data, network, Path(folder), objective, regularisers, settings, study, start)
    with _one_thread():
        run.resume()
        run.go(save_every, on_step)
    path = run.write(Path(out or Path(folder) / "network.safetensors"), command)
    return Trained(path, run.card, Neural.load(path))


def peek(
    data: Data,
    network: Network | Callable[..., Network],
    folder: str | Path,
    *,
    out: str | Path,
    **options: Any,
) -> Path | None:
    """Write the network of a training under way, as far as it has come, as a checkpoint.

    Args:
        data, network, folder: of the training.
        out: the checkpoint.
        options: further ones of :func:`train` that decide the weights.

    Returns:
        ``out``; None while no state has been written.
    """
    names = ("objective", "regularisers", "settings", "study", "start")
    run = _Run(data, network, Path(folder), *(options.get(name) for name in names))
    run.resume()
    if not run.step:
        return None
    return run.write(Path(out), "")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: a matrix product on several threads may round in another one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """A training under way."""

    def __init__(
        self, data, network, folder, objective=None, regularisers=(), settings=None, study=None,
        start=None,
    ) -> None:  # fmt: skip
        self.folder, self.objective = folder, objective or EDMLoss()
        self.regularisers, self.settings = tuple(regularisers or ()), settings or Settings()
        s = self.settings
        try:
            check(Settings, vars(s))
        except ValueError as error:
            raise TrainingError(str(error)) from None
        chosen, left = split(len(data.points), s)
        trained, held = data.points[chosen], data.points[left]
        if s.classes and data.labels is None:
            raise TrainingError(f"classes was true, and {data.name} has no labels.")
        if s.classes and not bool((data.labels >= 0).all()):
            raise TrainingError(f"{data.name} has labels below 0; classes are counted from 0.")
        self.classes = int(data.labels.max()) + 1 if s.classes else 0
        self.labels = data.labels[chosen] if s.classes else None
        self.held_labels = data.labels[left] if s.classes else None
        if s.centre == "each":
            centre = trained.mean(0)
        else:
            mean = trained.mean() if s.centre == "all" else trained.new_zeros(())
            centre = mean.expand(trained.shape[1:]).contiguous()
        # Numbers of a card, the same on every machine: not the last bits of a sum.
        self.centre = centre.mul(1e6).round().div(1e6).float()
        self.spread = round((trained - self.centre).square().mean().sqrt().item(), 4)
        if not self.spread > 0:
            raise TrainingError(f"{data.name} has points that are all alike; there is no spread.")
        self.trained, self.held = trained.float(), held.float()
        self.fitted = self.objective.fitted(self.trained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            self.network = network(trained.shape[1:], self.classes)
        began = {} if start is None else {"start": self._begin(Path(start))}
        for one in self.regularisers:
            if one.takes == "log_density" and not hasattr(self.network, "value"):
                raise TrainingError(
                    f"{type(one).__name__} asks for a log-density, and "
                    f"{type(self.network).__name__} has none; take a network that is the gradient "
                    "of a potential, such as Potential."
                )
        self.network.train()
        self.drops = any(isinstance(m, torch.nn.Dropout) and m.p for m in self.network.modules())
        self.generator = torch.Generator().manual_seed(s.seed + 1)
        self.weights = dict(self.network.named_parameters())
        self.gammas = [gamma_of(length) for length in s.averages]
        self.averages = [
            {k: v.detach().clone() for k, v in self.weights.items()} for _ in s.averages
        ]
        self.moments = {
            name: {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
            for name, weight in self.weights.items()
        }
        self.step, self.seconds, self.sum, self.count = 0, 0.0, 0.0, 0
        self.curve: dict[str, list] = {"step": [], "loss": [], "training": [], "held_out": []}
        self.first: list[float] = []
        self.card = {
            "network": _plain(_named(self.network, self.network.parameters_given)),
            "event_shape": list(trained.shape[1:]),
            "classes": self.classes,
            "predicts": "edm",
            "sigma_data": self.spread,
            "largest_rho": round(self.objective.largest, 4),
            "data": {
                "name": data.name,
                "sha256": data_hash(data.points),
                "trained_on": len(trained),
                "held_out": len(held),
            },
            "objective": _plain(_named(self.objective, asdict(self.objective))),
            "regularisers": _plain([_named(one, asdict(one)) for one in self.regularisers]),
            "settings": _plain(asdict(s)),
            "study": study or {},
            **began,
        }

    def _begin(self, start: Path) -> str:
        """Take over the weights of a checkpoint; what it is, for the card."""
        other, card, _ = network_of(start)
        wanted = {k: tuple(v.shape) for k, v in self.network.state_dict().items()}
        if wanted != {k: tuple(v.shape) for k, v in other.state_dict().items()}:
            raise TrainingError(
                f"start was {start.name[:80]}, a network {card['network']} with "
                f"{card['classes']} classes for {tuple(card['event_shape'])}; its weights do not "
                "fit this network. Take the same network and data of that shape."
            )
        self.network.load_state_dict(other.state_dict())
        return hashlib.sha256(start.read_bytes()).hexdigest()

    @property
    def key(self) -> str:
        """What tells one training from another."""
        return hashlib.sha256(json.dumps(self.card, sort_keys=True).encode()).hexdigest()

    # -- one step --------------------------------------------------------------------------------

    def denoise(self, y: Tensor, rho: Tensor, labels: Tensor | None, network=None) -> Tensor:
        network = network or self.network
        level = rho.reshape(-1, *(1,) * (y.ndim - 1))
        call = lambda x, noise: network(x, noise, labels)  # noqa: E731
        return edm_denoised(call, y, level, self.spread, self.centre)

    def log_density(self, y: Tensor, rho: Tensor, labels: Tensor | None) -> Tensor:
        call = lambda x, noise: self.network.value(x, noise, labels)  # noqa: E731
        return edm_log_density(call, y, rho, self.spread, self.centre)

    def advance(self) -> None:
        s, draw = self.settings, {"generator": self.generator}
        chosen = torch.randint(len(self.trained), (s.batch,), **draw)
        points = self.trained[chosen]
        labels = None
        if self.labels is not None:
            dropped = torch.rand(s.batch, **draw) < s.dropout
            labels = self.labels[chosen].masked_fill(dropped, self.classes)
        rho = self.objective.levels(s.batch, self.generator)
        noise = torch.randn(points.shape, **draw)
        y = points + rho.reshape(-1, *(1,) * (points.ndim - 1)) * noise
        with self._dropping():
            loss, total = self._losses(points, y, rho, labels)
        if not math.isfinite(total.item()):
            raise TrainingError(
                f"the loss was {total.item()} at step {self.step}: the training has diverged; take "
                f"a smaller rate than {s.rate:g}, or a smaller weight of a regulariser."
            )
        for weight in self.weights.values():
            weight.grad = None
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), s.clip)
        self._descend()
        self.step += 1
        with torch.no_grad():
            for gamma, average in zip(self.gammas, self.averages, strict=True):
                left = 1 - decay(gamma, self.step)
                torch._foreach_lerp_(list(average.values()), list(self.weights.values()), left)
        self.sum, self.count = self.sum + loss.item(), self.count + 1
        if len(self.first) < FIRST:
            self.first.append(float(f"{loss.item():.6g}"))

    def _losses(self, points, y, rho, labels) -> tuple[Tensor, Tensor]:
        """The objective's mean loss, and that with the regularisers."""
        denoised = self.denoise(y, rho, labels)
        loss = self.fitted.loss(points, denoised, rho, self.spread).mean()
        total = loss
        for one in self.regularisers:
            if one.weight:
                few = getattr(one, "samples", len(y))
                part = None if labels is None else labels[:few]
                form = self.denoise if one.takes == "denoiser" else self.log_density
                call = lambda v, level, part=part, form=form: form(v, level, part)  # noqa: E731
                total = total + one.weight * one.penalty(call, y[:few], rho[:few], self.generator)
        return loss, total

    @torch.no_grad()
    def _descend(self) -> None:
        """A step of AdamW: the function, as the class imports torch's compiler, for seconds."""
        rows = [(w, w.grad, self.moments[k]) for k, w in self.weights.items() if w.grad is not None]
        weights, gradients, moments = zip(*rows, strict=True)
        parts = ([one[part] for one in moments] for part in ("exp_avg", "exp_avg_sq"))
        adamw(
            list(weights),
            list(gradients),
            *parts,
            [],
            [one["step"] for one in moments],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.rate(),
            weight_decay=self.settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        """What dropout drops in this step: torch draws it from its global generator, which is
        seeded by the step, so that a training goes on from any of them, and put back."""
        if not self.drops:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + (self.step << 20))
            yield

    def rate(self) -> float:
        s = self.settings
        rate = s.rate * min(1.0, (self.step + 1) / s.warmup if s.warmup else 1.0)
        if s.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * self.step / s.steps))
        return rate

    # -- the curve -------------------------------------------------------------------------------

    def judge(self) -> None:
        """A point of the curve: squared error per coordinate of the first average's network."""
        self.curve["step"].append(self.step)
        self.curve["loss"].append(float(f"{self.sum / max(1, self.count):.6g}"))
        self.sum, self.count = 0.0, 0
        self.network.eval()
        network = self.averaged
        for name, points, labels in (
            ("training", self.trained, self.labels),
            ("held_out", self.held, self.held_labels),
        ):
            found = []
            points, labels = points[:JUDGED], None if labels is None else labels[:JUDGED]
            for index, level in enumerate(self.settings.levels if len(points) else ()):
                noised = points + level * draws(points.shape, index)
                rho = torch.full((len(points),), level)
                with torch.no_grad():
                    denoised = self.denoise(noised, rho, labels, network)
                found.append(float(f"{(denoised - points).square().mean().item():.6g}"))
            self.curve[name].append(found)
        self.network.train()

    def averaged(self, *given: Tensor | None) -> Tensor:
        """The network with the weights of the first average."""
        return torch.func.functional_call(self.network, self.averages[0], given)

    # -- the loop and its state ------------------------------------------------------------------

    def go(self, save_every: float, on_step) -> None:
        began, saved = time.process_time(), time.monotonic()
        before, steps = self.seconds, self.settings.steps
        if on_step:
            on_step(self.step, steps, self.curve)
        while self.step < steps:
            self.advance()
            last = self.step == steps
            if self.step % self.settings.every == 0 or last:
                self.judge()
            now = time.monotonic()
            self.seconds = before + time.process_time() - began
            if now - saved >= save_every or last:
                self.save()
                saved = now
            if on_step:
                on_step(self.step, steps, self.curve)

    @property
    def state(self) -> Path:
        return self.folder / "state.safetensors"

    def save(self) -> None:
        from safetensors.torch import save

        tensors = {f"weights/{k}": v.detach() for k, v in self.weights.items()}
        for index, average in enumerate(self.averages):
            tensors |= {f"average{index}/{k}": v for k, v in average.items()}
        for name, moments in self.moments.items():
            tensors |= {f"optimiser/{part}/{name}": value for part, value in moments.items()}
        tensors["generator"] = self.generator.get_state()
        # As hexadecimal: the sum goes on from its last bit.
        numbers = {"step": self.step, "sum": self.sum.hex(), "count": self.count}
        numbers |= {"seconds": self.seconds, "curve": self.curve, "first": self.first}
        header = {"training": self.key, "numbers": json.dumps(numbers)}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self.state, save({k: v.contiguous() for k, v in tensors.items()}, header))

    def resume(self) -> None:
        from safetensors import SafetensorError, safe_open

        if not self.state.exists():
            return
        try:
            with safe_open(self.state, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise TrainingError(f"{self.state} cannot be read: {error}.") from None
        if header.get("training") != self.key:
            raise TrainingError(
                f"{self.folder} holds the state of another training (other data, network or "
                "settings); give another folder, or delete it."
            )
        numbers = json.loads(header["numbers"])
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weights/{name}"])
                for part, value in self.moments[name].items():  # in the weight's own layout
                    value.copy_(tensors[f"optimiser/{part}/{name}"])
            for index, average in enumerate(self.averages):
                for name, value in average.items():
                    value.copy_(tensors[f"average{index}/{name}"])
        self.generator.set_state(tensors["generator"])
        self.step, self.count = numbers["step"], numbers["count"]
        self.sum, self.seconds = float.fromhex(numbers["sum"]), numbers["seconds"]
        self.curve, self.first = numbers["curve"], numbers["first"]

    # -- the end ---------------------------------------------------------------------------------

    def write(self, path: Path, command: str) -> Path:
        precision = getattr(torch, self.settings.precision)
        tensors = {name: value.to(precision) for name, value in self.averages[0].items()}
        tensors["centre"] = self.centre
        curve = {"rho": list(self.settings.levels), "first": self.first, **self.curve}
        card = {**self.card, "average": self.settings.averages[0], "curve": curve}
        if self.step < self.settings.steps:
            card["step"] = self.step
        write(
            path,
            tensors,
            card,
            command=command,
            cpu_seconds=round(self.seconds, 1),
            parameters=sum(value.numel() for value in self.weights.values()),
            versions={"workbench": __version__, "torch": torch.__version__},
        )
        return path


def _named(one: object, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"name": type(one).__name__, **parameters}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))
