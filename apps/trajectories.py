"""Trajectories: a live sampler, played and scrubbed beside the exact flow."""

import json
from functools import partial

import panel as pn

from workbench.ui.page import PlayerPane, StudyPage
from workbench.ui.section import FigureRow, Section, choice, lens_section, note
from workbench.ui.tasks import Seen, exact_parts, explored, flow_seen, shapes

TITLE = "Trajectories"
DESCRIPTION = "Watch a sampler walk from noise to data, beside the exact probability flow."

ABOUT = r"""
A run of the sampler you chose, from pure noise (left end of the time axis) to data (right end).
Space plays, the arrow keys step from node to node, dragging the axis scrubs.

* The axis is $\log \rho$ with $\rho = \sigma/\alpha$, the noise level in units of the data: on it
  every process draws the same curves. Process time $t$ stands beneath; each tick is a node of the
  grid.
* States are shown as $x/\sqrt{\alpha^2+\sigma^2/v}$, with $v$ the data's variance per coordinate,
  so that noise and data fit one picture for every process.
* The exact probability flow is drawn from the same starting points over the run, and the RMS
  distance to it, per coordinate, is the sampler's error at that node. A Gaussian has it in closed
  form; for other data it is integrated until it is converged.
* For two-dimensional data the contours are the density $p_t$ and the arrows the flow: exact where
  the model is a formula. The density of a network is integrated over noise levels from its denoised
  states, and comes with its exact flow.
"""

PROCESSES = """
## One mode, every process

Along the probability flow of Gaussian data the denoised state D carries a mode of variance λ with
the amplitude √(λ / (λ + ρ²)) of its end: a function of ρ = σ/α alone, whatever the process. In time
each process draws it elsewhere. The mode is that of largest variance in these data; your process is
drawn with your parameters, the others with their defaults. Source: Wang & Vastola 2023,
arXiv:2303.02490.
"""

MODES = """
## When the modes emerge

Modes are eigenvectors of the covariance of the data that the denoiser knows, ranked by variance.
Half of a mode's amplitude is there at ρ = √(3λ), half of its power at ρ = √λ, which is also where
the ideal linear denoiser passes half of it on: what varies most comes first. For data that are not
Gaussian this is the truth about the Gaussian with their mean and covariance. Source: Wang & Vastola
2023, arXiv:2303.02490.
"""

TELEPORT = """
## How much of a run can be skipped

At high noise the score is nearly that of the Gaussian with the data's mean and covariance, whose
flow is known in closed form. Samples are carried by it from pure noise to ρ in one step, and from
there by a fine solver along the flow of your denoiser; drawn is how far they end from where the
solver alone takes them. Where the curve rises, the data stop being Gaussian. In the grey band a
displacement cannot be told from zero: its edge is what doubling the solver's steps changes, and
rounding. Source: Wang & Vastola 2024, arXiv:2412.09726.
"""

SHAPE = """
## The shape of a path

Each path in a plane of its own, in units of its chord, from noise on the left to the sample on the
right; dashed the denoised state, dots coloured by the noise level, arrows on the first path. The
principal plane is that of the two principal directions of the path's own states about their mean,
all nodes alike: no plane holds more of it. The chord plane is that of the line from noise (0, 0) to
the sample (1, 0) and of what deviates most from it. Beside the share of variance in the plane stand
that of Gaussian data of the same mean and covariance, in closed form, and that of paths that
wander: even those have three quarters of theirs in two directions.

The shape depends on the state: with the data's scale taken out, or under a variance-preserving
process, a path is bent; of x/alpha from a noise level far above the data it is a straight line to
many digits, whatever the data. Switch the state and see. Beside it the distance from the chord, and
the angle by which the direction x/alpha - D has turned. Sources: Wang & Vastola 2023,
arXiv:2303.02490; Chen et al. 2024, arXiv:2405.11326; Antognini & Sohl-Dickstein 2018,
arXiv:1806.08805 (paths that wander).
"""

COMMITMENT = """
## When a path has decided, and what a nudge changes

From which noise level on the most probable class and the nearest data point no longer change. First
a few samples, and beneath what the same become when they are nudged at each noise level; then how
far white noise of a given size, added to the state there, changes the sample. In a Gaussian world a
late nudge changes more pixels and an early one is damped; what an early one changes, where the data
are not Gaussian, is which picture comes out. Source: Raya & Ambrogioni 2023, arXiv:2305.19693.
"""

UTURN = """
## There and back

Data points noised to a level and drawn back: what they keep of their class, of themselves, and of
each band of frequency, which is what has emerged of the band in the denoised state, for a denoiser
that is right. Two clones are drawn back from one noised state by independent noise; they have one
class as often as a point and its return. Theory has three noise levels at which classes are
decided, by three definitions that are told apart above, and one of collapse, from which on single
points are. Sources: Sclocchi, Favero & Wyart 2024, arXiv:2402.16991; Biroli et al. 2024,
arXiv:2402.18491.
"""

#: The lenses of the section on shape, and what is said of each.
SHAPES = {"geometry": SHAPE, "commitment": COMMITMENT, "uturn": UTURN}

#: The lenses of the section, and what is said of each.
PARTS = {"processes": PROCESSES, "emergence": MODES, "teleportation": TELEPORT}


def parts_section(
    title: str, parts: dict[str, str], compute, more, choices: tuple[pn.widgets.Select, ...] = ()
) -> Section:
    """A section of several lenses: of each what is said of it, what was found, and its figures.

    Args:
        choices: what is shown of parts that were computed for all of their values, by these with
            a blank between.
    """
    texts = {
        name: pn.pane.HTML(note(text), sizing_mode="stretch_width", margin=(4, 10))
        for name, text in parts.items()
    }
    rows = {name: FigureRow() for name in parts}
    latest: dict[str, tuple] = {}

    def put(name: str) -> None:
        sentence, drawn = latest[name]
        if isinstance(sentence, dict):
            key = " ".join(choice.value for choice in choices)
            sentence, drawn = sentence[key], drawn[key]
        texts[name].object = note(parts[name], sentence)
        rows[name].put(drawn)

    def show(result: tuple[dict, dict]) -> None:
        sentences, drawn = result
        for name in parts:
            latest[name] = sentences[name], drawn[name]
            put(name)

    def choose(event) -> None:
        for name, (sentence, _) in latest.items():
            if isinstance(sentence, dict):
                put(name)

    for one in choices:
        one.param.watch(choose, "value")
    wrap = {"flex-wrap": "wrap"}
    head = [pn.Row(*choices, sizing_mode="stretch_width", styles=wrap, margin=0)] if choices else []
    shown = [part for name in parts for part in (texts[name], rows[name])]
    view = pn.Column(*head, *shown, sizing_mode="stretch_width", margin=(0, 6))
    return Section(title, compute=compute, show=show, view=view, more=more)


def exact_section() -> Section:
    """What is known exactly of the study, in three parts."""
    return parts_section("Exact truth", PARTS, exact_parts, lambda: {"lenses": tuple(PARTS)})


def shape_section() -> Section:
    """The shape of the paths, of a state that the reader chooses; and when they have decided."""
    states = {"scaled by noise and data": "scaled", "x as it is": "x", "x/alpha (EDM)": "ratio"}
    state = choice("State", states, 200)
    state.value = "scaled"
    planes = {"principal directions": "principal", "chord and deviation": "chord"}
    kind = choice("Plane", planes, 180)
    kind.value = "principal"
    lenses = tuple(name for name in SHAPES if name != "geometry")
    of = {"states": tuple(states.values()), "planes": tuple(planes.values()), "lenses": lenses}
    return parts_section("Shape", SHAPES, shapes, lambda: of, (state, kind))


def number_of(text: str, most: float) -> float:
    """A place on the time axis, from the text of an address; the beginning for what is none."""
    try:
        return min(max(float(text), 0.0), most)
    except ValueError:
        return 0.0


def view_of(text: str) -> dict:
    """Zoom and layers, from the text of an address; none for what cannot be read."""
    try:
        view = json.loads(text[:4000])
    except ValueError:
        return {}
    return view if isinstance(view, dict) else {}


def page():
    player = PlayerPane(sizing_mode="stretch_both", margin=0)

    def show(seen: Seen) -> None:
        first = not player.data
        player.param.update(data=seen.scene, flow=b"")
        if seen.coming:
            flow.start(partial(flow_seen, *seen.coming))
        if first:  # at pure noise, and it plays; later runs keep the reader's place
            moment = made.moment.get("frame", "")
            frame = number_of(moment, seen.run.sizes["time"] - 1.0)
            player.param.update(
                view=view_of(made.moment.get("view", "")), frame=frame, playing=not moment
            )

    def within() -> bool:
        """Whether the states within each step are shown."""
        view = player.view if player.data else view_of(made.moment.get("view", ""))
        return view.get("within") is True

    def follow(event) -> None:
        if player.data and bool(event.old.get("within")) != bool(event.new.get("within")):
            made.again()

    def show_other(seen: Seen | None) -> None:
        other_flow.cancel()
        player.param.update(other=b"" if seen is None else seen.scene, other_flow=b"")
        if seen is not None and seen.coming:
            other_flow.start(partial(flow_seen, *seen.coming))

    def show_flow(result: tuple[bytes, list[str]]) -> None:
        player.flow, said = result
        made.add_facts(said)

    def show_other_flow(result: tuple[bytes, list[str]]) -> None:
        player.other_flow = result[0]

    made = StudyPage(
        title=TITLE,
        compute=explored,
        show=show,
        view=player,
        summary=lambda seen: seen.facts,
        dataset=lambda seen: seen.run,
        about=ABOUT,
        sections=[lens_section(), exact_section(), shape_section()],
        show_other=show_other,
        more=lambda: {"within": True} if within() else {},
        sight=player.sight,
    )
    # The exact flow of a network takes longer than its run: the picture does not wait for it.
    flow, other_flow = made.beside(show_flow), made.beside(show_other_flow)
    made.begun.append(flow.cancel)
    player.param.watch(follow, "view")
    made.bench.link(player, compare="compare")
    return made.page()
