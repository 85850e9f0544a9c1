"""The page of networks: a training shaped by a form, carried out as a durable job, and watched.

The training goes on in a process of its own whether anybody looks or not. The page looks once a
second at the job, and has a worker draw the network whenever its state was written anew: its
losses beside those of the best denoisers on the same draws, samples from fixed seeds, its field.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from workbench.denoisers import checkpoints
from workbench.denoisers.checkpoints import CheckpointError
from workbench.learning import Settings
from workbench.params import declared, shown
from workbench.registry import entries
from workbench.studies import Study, StudyError, files
from workbench.studies import training as trainings
from workbench.studies.options import joined, split
from workbench.studies.training import Training
from workbench.studies.watching import Pipeline, Watched, is_pipeline, pipeline, watch
from workbench.ui.buttons import Button, content_of
from workbench.ui.form import Control, _control, _of_choice, problems_of, sentence_of, words
from workbench.ui.formpage import FormPage
from workbench.ui.section import ROOM, Section, Sentence, lens_section
from workbench.ui.session import query
from workbench.ui.shell import Tab
from workbench.ui.sketch import Sketch
from workbench.views.figures import BLUE, GREY, SKY, VERMILION, colour, plain

#: Milliseconds between two looks at a job.
LOOK_EVERY = 1000

TITLES = {"data": "Data", "network": "Network", "objective": "Objective"}

#: The network that is looked at where the address asks for nothing: one that ships.
FIRST = "ring"

#: Pages that a network of others opens on.
LOOKED_AT = ("trajectories", "gap", "gauge", "frequency", "seeds")

#: Settings that stand open in the form; others are folded away.
OPEN = ("steps", "batch", "rate", "held_out", "classes")

#: What a job's state is called.
SAID = {
    "": "not trained yet",
    "queued": "waiting for its turn",
    "running": "training",
    "done": "trained",
    "failed": "failed",
    "cancelled": "cancelled",
}

#: Curves of the first figure: by set and denoiser the colour, the dash, and the label.
CURVES = {
    ("training", "memorised"): (GREY, "dotted", "memorises the set (training)"),
    ("held_out", "law"): (VERMILION, "dashed", "least possible (held out)"),
    ("training", ""): (SKY, "solid", "network, training"),
    ("held_out", ""): (BLUE, "solid", "network, held out"),
}


def training_controls(training: Training) -> list[Control]:
    """Every control of the form for a training, in order."""
    flat, found = training.to_flat(), []
    for key, title in TITLES.items():
        found += _of_choice(key, key, title, getattr(training, key), flat)
    groups = declared(Settings)
    for key, one in groups.items():
        control = _control(f"training.{key}", "training", one, flat[f"training.{key}"])
        found.append(replace(control, rare=key not in OPEN, slide=None))
    held = split(flat["regularisers"])
    one = _control("regularisers", "training", trainings.ENTRIES["regularisers"], held)
    choices = tuple(dict.fromkeys((*entries("regulariser"), *held)))
    found.append(replace(one, label="Regularisers", choices=choices, many=True))
    for choice in training.regularisers:
        place = f"regularisers.{choice.name}"
        for part in _of_choice(place, "training", choice.name, choice, flat)[1:]:
            found.append(replace(part, label=f"{choice.name}: {part.label}"))
    start = _control("start", "training", trainings.ENTRIES["start"], flat["start"])
    return [*found, replace(start, label="Begin with the weights of", upload=True, rare=True)]


class Pictures:
    """The three figures of the page, whose data are replaced in place.

    Attributes:
        row: the figures beside each other.
    """

    def __init__(self) -> None:
        empty: dict[str, list] = {"x": [], "y": []}
        self.levels = {key: ColumnDataSource(empty) for key in CURVES}
        self.steps = ColumnDataSource({"xs": [], "ys": [], "color": [], "rho": []})
        self.samples, self.points = ColumnDataSource(empty), ColumnDataSource(empty)
        segments = {"x0": [], "y0": [], "x1": [], "y1": []}
        self.field, self.truth = ColumnDataSource(segments), ColumnDataSource(segments)
        self.mosaic = ColumnDataSource({"image": [], "dw": [], "dh": []})
        share = "loss / linear loss"
        self.over_levels = _figure("Loss at each noise level", "noise level ρ [x]", share)
        for key, (color, dash, label) in CURVES.items():
            source = self.levels[key]
            self.over_levels.line("x", "y", source=source, color=color, line_dash=dash,
                                  line_width=2, legend_label=label)  # fmt: skip
            self.over_levels.scatter("x", "y", source=source, color=color, size=5)
        self.over_levels.add_tools(HoverTool(tooltips=[("ρ", "@x{0.000}"), ("share", "@y{0.000}")]))
        self.over_steps = _figure("Loss as it is trained", "step", share)
        lines = self.over_steps.multi_line("xs", "ys", source=self.steps, color="color",
                                           line_width=2, legend_field="rho")  # fmt: skip
        self.over_steps.add_tools(HoverTool(tooltips=[("ρ", "@rho")], renderers=[lines]))
        self.over_levels.y_range.start = self.over_steps.y_range.start = 0.0
        self.drawn = _figure("What it draws", "", "", match_aspect=True)
        self.drawn.scatter("x", "y", source=self.points, color=GREY, size=3, alpha=0.5,
                           legend_label="data")  # fmt: skip
        common = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1", "line_width": 1.2}
        self.drawn.segment(**common, source=self.truth, color=VERMILION, alpha=0.7,
                           legend_label="best denoiser")  # fmt: skip
        self.drawn.segment(**common, source=self.field, color=SKY, legend_label="network")
        self.drawn.scatter("x", "y", source=self.samples, color=BLUE, size=4,
                           legend_label="its samples")  # fmt: skip
        sides = {self.drawn: "below", self.over_levels: "below", self.over_steps: "right"}
        for one, side in sides.items():
            legend = one.legend[0]
            one.center.remove(legend)
            one.add_layout(legend, side)
            legend.label_text_font_size, legend.spacing, legend.padding = "11px", 4, 2
            legend.margin, legend.border_line_alpha = 2, 0.0
            legend.ncols = 2 if side == "below" else "auto"
        self.drawn.legend.click_policy = "hide"
        self._legends = [one.legend[0] for one in sides]
        named = {one.label.value: one for one in self.over_levels.legend[0].items}
        self._entries = {key: named[label] for key, (_, _, label) in CURVES.items()}
        self._name(False)
        self.images = _figure("What it draws", "", "", match_aspect=True)
        self.images.image("image", x=0, y=0, dw="dw", dh="dh", source=self.mosaic,
                          color_mapper=LinearColorMapper("Greys256", low=-1, high=1,
                                                         nan_color="#00000000"))  # fmt: skip
        self.images.axis.visible = self.images.grid.visible = False
        tall = {"height": "max(210px, 50cqh - 10px)", "flex": "1 1 270px"}
        style = ROOM | tall | {"min-width": "min(270px, 100%)", "max-height": "none"}
        self._places = [
            pn.Column(
                pn.pane.Bokeh(one, sizing_mode="stretch_both"),
                sizing_mode="stretch_both",
                styles=style,
            )
            for one in (self.drawn, self.images, self.over_levels, self.over_steps)
        ]
        self.images.visible = self._places[1].visible = False
        self.row = pn.Row(
            *self._places,
            sizing_mode="stretch_both",
            styles={"flex-wrap": "wrap", "gap": "8px 16px", "flex": "none", "max-height": "none"},
            margin=0,
        )

    def clear(self) -> None:
        for source in (*self.levels.values(), self.steps, self.samples, self.points, self.field,
                       self.truth, self.mosaic):  # fmt: skip
            source.data = {name: [] for name in source.data}
        self._name(False)

    def _name(self, there: bool) -> None:
        """Legends, where there is something that they name."""
        for legend in self._legends:
            legend.visible = there

    def show(self, seen: Watched) -> None:
        """Draw a network as it is now."""
        rho, curve, floors = np.array(seen.rho), seen.curve, seen.floors
        self._name(True)
        for (kind, name), source in self.levels.items():
            known = floors.get(kind, {})
            latest = curve[kind][-1] if curve[kind] else []
            values = known.get(name, []) if name else latest
            if len(values) == len(rho):
                share = np.array(values) / np.array(known["linear"])
                source.data = {"x": rho, "y": share}
            else:
                source.data = {"x": [], "y": []}
            self._entries[kind, name].visible = bool(len(source.data["x"]))
        kind = "held_out" if "held_out" in floors else "training"
        rows = np.array(curve[kind]).reshape(-1, len(rho)) / np.array(floors[kind]["linear"])
        self.steps.data = {
            "xs": [curve["step"]] * len(rho),
            "ys": list(rows.T),
            "color": [colour(i) for i in range(len(rho))],
            "rho": [f"ρ {level:g}" for level in rho],
        }
        named = "held out" if kind == "held_out" else "training"
        self.over_steps.title.text = f"Loss as it is trained ({named})"
        flat = seen.samples.reshape(len(seen.samples), -1)
        plane = flat.shape[1] == 2
        image = seen.samples.ndim == 3 or (seen.samples.ndim == 4 and not plane)
        self._places[0].visible, self._places[1].visible = not image, image
        self.images.visible = image
        if image:
            mosaic = _mosaic(seen.samples)
            height, width = mosaic.shape
            self.mosaic.data = {"image": [mosaic], "dw": [width / height], "dh": [1.0]}
            return
        a, b = (0, 1) if plane else _widest(seen.points)
        self.drawn.title.text = "What it draws" if plane else f"Coordinates {a + 1} and {b + 1}"
        self.points.data = {"x": seen.points[:, a], "y": seen.points[:, b]}
        self.samples.data = {"x": flat[:, a], "y": flat[:, b]}
        for source, ends in ((self.field, seen.denoised), (self.truth, seen.truth)):
            to = seen.places + 0.3 * (ends - seen.places)
            source.data = {"x0": seen.places[:, 0], "y0": seen.places[:, 1],
                           "x1": to[:, 0], "y1": to[:, 1]}  # fmt: skip


def _figure(title: str, across: str, up: str, **more: Any) -> figure:
    made = figure(
        title=title,
        x_axis_label=across,
        y_axis_label=up,
        tools="pan,box_zoom,wheel_zoom,reset",
        toolbar_location="above",
        min_height=180,
        sizing_mode="stretch_both",
        x_axis_type="log" if "ρ" in across else "auto",
        **more,
    )
    plain(made)
    if "ρ" in across:
        made.x_range.flipped = True  # noise left, data right
    return made


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Images (n, [channels,] height, width) as one, dark ink on light, the first at the top."""
    images = images.mean(1) if images.ndim == 4 else images
    side = int(np.ceil(np.sqrt(len(images))))
    height, width = images.shape[1:]
    whole = np.full((side * (height + 1), side * (width + 1)), np.nan, dtype=np.float32)
    for i, one in enumerate(images):
        y, x = (i // side) * (height + 1), (i % side) * (width + 1)
        whole[y : y + height, x : x + width] = np.clip(-one, -1, 1)
    return whole[::-1]


def _widest(points: np.ndarray) -> tuple[int, int]:
    order = np.argsort(-points.reshape(len(points), -1).var(0))
    return int(order[0]), int(order[1])


class TrainingPage(FormPage):
    """One session of the page.

    Args:
        title: of the page.
        about: Markdown that explains it.
        folder: whose checkpoints may be opened; None: none.
    """

    def __init__(self, title: str, about: str, folder: Path | None = None) -> None:
        super().__init__(title, about, HANDED)
        self.training, self._folder = Training(), folder
        self.seen: Watched | None = None
        self.opened = ""  # the checkpoint that is looked at, by its name or the hash of its content
        self._drawn: tuple | None = None  # state that the pictures show, or will
        self._under = False  # whether a worker is at it
        self._place: Path | None = None  # the checkpoint that is looked at
        self._pipeline: Path | None = None  # that was read last, or will be
        self.train = Button("Train", self._on_train)
        self.cancel = Button("Cancel", self._on_cancel, disabled=True)
        self.fork = Button("Fork", self._on_fork, disabled=True)
        self.pictures = Pictures()
        self.sketch = Sketch(self._on_sketch, margin=(6, 10))
        self.list = pn.pane.HTML("", sizing_mode="stretch_width", margin=(4, 12))
        self.path = pn.widgets.TextInput(label="Open a network of the folder", width=320,
                                         placeholder="name.safetensors, or a pipeline")  # fmt: skip
        self.opening = Sentence()
        self.foreign = pn.pane.HTML("", sizing_mode="stretch_width", margin=(4, 12))
        self.truth: Section = lens_section("fit")
        self.truth.title = "Truth"
        self._sections = {"truth": self.truth}
        self._work = self._new_work(self._on_watched, self._on_failed)
        self._foreign = self._new_work(
            self._on_pipeline, lambda error: self.opening.say(sentence_of(error))
        )

    # -- layout ------------------------------------------------------------------------------

    def page(self) -> pn.Template:
        self._read(query() or f"?open={FIRST}")
        wide = {"sizing_mode": "stretch_width", "margin": (0, 6)}
        networks = pn.Column(self.path, self.opening, self.foreign, self.list, **wide)
        tabs = [
            *self._section_tabs(),
            Tab("draw", "Draw points", pn.Column(self.sketch, **wide)),
            Tab("networks", "Networks", networks),
        ]
        self.path.visible = self._folder is not None
        self.path.param.watch(lambda event: event.new and self._on_path(event.new), "value")
        self.form.on_edit(self.edit)
        return self._framed(self.pictures.row, tabs, (self.train, self.cancel, self.fork))

    def _begin(self) -> None:
        self._begun = True
        self._list()
        if self._pipeline is not None:
            self._foreign.start(partial(pipeline, self._pipeline))
        if pn.state.curdoc is not None:
            pn.state.curdoc.add_periodic_callback(self._look, LOOK_EVERY)
        self._look()

    # -- the address -------------------------------------------------------------------------

    def _query(self) -> str:
        own = self.training.to_query()
        parts = [own] if own else []
        if self.opened:
            parts = [f"open={quote(self.opened)}"]
        if self.story is not None:
            parts.append(f"story={self.story.slug}")
        return f"?{'&'.join(parts)}" if parts else "?"

    def _read(self, search: str) -> None:
        flat = dict(parse_qsl(search.lstrip("?"), keep_blank_values=True, max_num_fields=200))
        self._take_moment(flat)
        problems: dict[str, str] = {}
        opened = flat.pop("open", "")
        if opened and not flat:
            try:
                self._open(opened)
                return
            except (CheckpointError, files.FileError) as error:
                problems["open"] = str(error)
        training, wrong = Training.salvage(flat)
        self._accept(training, problems | wrong)

    # -- the form ----------------------------------------------------------------------------

    def _accept(self, training: Training, problems: Mapping[str, str] | None = None) -> None:
        self.training, self.opened, self._typed = training, "", {}
        self._tell(problems or {})
        self._anew()

    def _anew(self) -> None:
        """Another training, or another network: what is drawn is of the one before."""
        self._work.cancel()
        self.seen, self._drawn, self._under = None, None, False
        self.fork.disabled = True
        self._locked(self.pictures.clear)
        self.address.search = self._query()
        self.bench.param.update(chips=[
            [key, title, words(getattr(self.training, key).name)] for key, title in TITLES.items()
        ])  # fmt: skip
        self._look()

    def _controls(self) -> list[Control]:
        return training_controls(self.training)

    def edit(self, key: str, value: Any) -> None:
        """Change one control of the form, as its reader does; an empty key resets all."""
        wanted = {one.key: one for one in self._controls()}
        if not key:
            self._accept(Training())
            return
        if key not in wanted:
            return
        if wanted[key].upload and value:
            value = files.keep(content_of(value) or b"")
        value = joined(value) if isinstance(value, list) else value
        changes = {k: v for k, v in self._typed.items() if not k.startswith(f"{key}.")}
        self._typed[key] = value
        try:
            self._accept(self.training.changed({**changes, key: value}))
        except StudyError as error:
            self._tell(error.problems)

    # -- training ----------------------------------------------------------------------------

    def _job(self) -> trainings.TrainingJob | None:
        return None if self.opened else trainings.job_of(self.training)

    def _on_train(self) -> None:
        try:
            self.opened = ""
            trainings.submit(self.training)
        except (StudyError, OSError, ValueError) as error:
            self._say_why(error)
        self._look()

    def _on_cancel(self) -> None:
        job = self._job()
        if job is not None:  # it is asked, and killed after a while: not on the pages' thread
            threading.Thread(target=job.cancel, daemon=True, name="cancel").start()

    def _on_fork(self) -> None:
        """A new training that begins with the weights of the network that is shown."""
        if self.seen is None:
            return
        self._accept(self.training.changed({"start": self.seen.file}))
        self._say(
            "This is a new training, which begins with the weights that were shown: change what "
            "you like, and train it.",
            "info",
        )

    def _look(self) -> None:
        """Say how far the training is, and have the network drawn if there is a newer one."""
        job = self._job()
        said = {"state": ""} if job is None else job._said()
        state = "done" if self.opened else said["state"]
        under = state in ("queued", "running")
        text = SAID[state] if not self.opened else "a stored network"
        if state == "running":
            left = said.get("seconds_left")
            text += f": {said.get('fraction', 0.0):.0%}" + (f", {left:.0f} s left" if left else "")
        if state == "failed":
            text += f": {said.get('reason', '')[:300]}"
        if self._under and self.seen is None:
            text += "; its picture is being drawn"
        facts = [escape(text), *self._facts()]
        if facts != self.bench.facts:
            self.bench.facts = facts
        again = "Continue" if state in ("failed", "cancelled") else "Train"
        self.train.param.update(label=again, disabled=under or state == "done")
        self.cancel.disabled = not under
        if self._begun:  # for a browser, and not for a page that is only asked for
            self._draw(job)

    def _facts(self) -> list[str]:
        if self.seen is None:
            return []
        data = self.seen.card["data"]
        return [
            f"step {self.seen.step}",
            f"{data['trained_on']} points, {data['held_out']} held out",
        ]

    def _draw(self, job: trainings.TrainingJob | None) -> None:
        place = self._place if self.opened else job and job.folder
        if not place:
            return
        written = [place] if self.opened else [place / "network.safetensors",
                                               place / "state.safetensors"]  # fmt: skip
        newest = next((one for one in written if one.is_file()), None)
        if newest is None:
            return
        now = (str(newest), newest.stat().st_mtime_ns)
        if now == self._drawn or self._under:
            return
        self._drawn, self._under = now, True
        self._work.start(partial(watch, place))

    def _on_failed(self, error: Exception) -> None:
        self._under = False
        problems = problems_of(error)
        if self.opened and self.seen is None:  # a file that cannot be looked at is not open
            self._accept(self.training, problems)
        else:
            self._say(" ".join(problems.values()))

    def _on_watched(self, seen: Watched | None) -> None:
        self._under = False
        if seen is None:
            self._drawn = None
            return
        if self.opened and self.seen is None:
            self.training = _trained(seen.card, self.training)
            self._tell({})
        self._locked(partial(self.pictures.show, seen))
        self.seen, self.fork.disabled = seen, False
        self.truth.follow(self._study())

    def _locked(self, call: Callable[[], None]) -> None:
        """Have ``call`` change figures: that takes the lock of the document, in its turn."""
        document = pn.state.curdoc
        if document is None or document.session_context is None:
            call()
        else:
            document.add_next_tick_callback(call)

    def _study(self) -> Study:
        """The network as the model of a study of its own data."""
        study = self.seen.card["study"]
        data = study["data"] if study else self.seen.card["data"]["name"]
        return Study(
            data=data,
            denoiser={"name": "Neural", "file": self.seen.file},
            process="EDM",
            seeds={"count": 64},
        )

    def _on_tab(self, key: str) -> None:
        super()._on_tab(key)
        if key == "networks":
            self._list()

    def _on_sketch(self, content: bytes) -> None:
        """Points that were drawn: the data of a training that is over soon."""
        self._accept(
            self.training.changed(
                {
                    "data": "points",
                    "data.file": files.keep(content),
                    "network": "MLP",
                    "training.held_out": 0,
                    "training.steps": 1500,
                    "training.rate": 0.005,
                    "training.every": 100,
                    "training.classes": False,
                    "training.most": 0,
                    "training.skip": 0,
                }
            )
        )
        self._on_train()

    # -- stored networks ---------------------------------------------------------------------

    def _list(self) -> None:
        """What there is to look at: trainings of this folder, networks that ship, the folder."""
        rows = []
        for job in trainings.jobs()[:30]:
            try:
                training = job.study
            except StudyError:
                continue
            name = f"{words(training.network.name)} on {words(training.data.name)}"
            rows.append((f"?{training.to_query()}", name, f"{training.training.steps} steps",
                         SAID[job.state]))  # fmt: skip
        for name in checkpoints.shipped():
            rows.append((f"?open={quote(name)}", name, "ships", "trained"))
        for name in self._allowed():
            rows.append((f"?open={quote(name)}", name, f"in {self._folder}", ""))
        body = "".join(
            f'<tr><td><a href="./networks{escape(address, quote=True)}" style="color:inherit">'
            f"{escape(name)}</a></td><td>{escape(what)}</td><td>{escape(state)}</td></tr>"
            for address, name, what, state in rows
        )
        style = "font:13px/1.6 var(--wb-font);border-spacing:12px 0"
        self.list.object = f'<table style="{style}"><tbody>{body}</tbody></table>'

    def _allowed(self) -> list[str]:
        """The networks of the folder that may be opened, by their names in it."""
        if self._folder is None or not self._folder.is_dir():
            return []
        root = self._folder.resolve()
        return [one.name for one in sorted(self._folder.iterdir()) if _may_open(one, root)][:200]

    def _on_path(self, text: str) -> None:
        text = text.strip()
        try:
            self._open(text.removeprefix(f"{self._folder}/"))
            self.opening.say("")
        except (CheckpointError, files.FileError) as error:
            self.opening.say(str(error))

    def _open(self, name: str) -> None:
        """Look at a stored network: one that ships, one of the folder, or one by its content."""
        if name in checkpoints.shipped():
            place = checkpoints.shipped_folder() / f"{name}.safetensors"
        elif name in self._allowed():
            place = self._folder / name
            if is_pipeline(place):
                self.moment["tab"], self._pipeline = "Networks", place
                self.opening.say(f"{name} is being read.", "info")
                self.foreign.object = ""
                if not self.opened:
                    self._accept(self.training)
                if self._begun:
                    self._foreign.start(partial(pipeline, place))
                return
        elif files.is_hash(name):
            place = files.place(name)
        else:
            raise CheckpointError(_refused(name, self._folder, self._allowed()))
        self.opened, self._place, self._typed = name, place, {}
        if name in checkpoints.shipped():  # a file of others is read where it can do no harm
            _, card = checkpoints.read(place)
            self.training = _trained(card, self.training)
        self._tell({})
        self._anew()

    def _on_pipeline(self, found: Pipeline) -> None:
        """A network of others has been read: where it can be looked at."""
        self.opening.say("")
        self.foreign.object = _opened_on(self._pipeline.name, found)


def _may_open(one: Path, root: Path) -> bool:
    """Whether a network of a folder may be opened: it is one, and nothing of it lies outside."""
    if one.suffix in files.CARDED:
        both = (one, one.with_suffix(".json"))
        return all(part.is_file() and part.resolve().is_relative_to(root) for part in both)
    if one.suffix == ".safetensors" or (one.suffix == ".zip" and one.is_file()):
        return one.resolve().is_relative_to(root)
    if not (one / "model_index.json").is_file():
        return False
    return all(part.resolve().is_relative_to(root) for part in (one, *one.rglob("*")))


def _opened_on(name: str, found: Pipeline) -> str:
    """Links to the pages on which a network of others can be looked at."""
    denoiser = {"name": "Neural", "file": found.file, "label": found.label}
    rows, pages = [], entries("page")
    for data in found.data:
        address = Study(data=data, denoiser=denoiser, seeds={"count": 64}).to_query()
        links = " · ".join(
            f'<a href="./{page}?{escape(address, quote=True)}" style="color:inherit">'
            f"{pages[page].facts['title']}</a>"
            for page in LOOKED_AT
        )
        rows.append(f"<tr><td>{escape(words(data))}</td><td>{links}</td></tr>")
    shape = " x ".join(map(str, found.shape))
    said = (
        "Open it beside data of its shape; it is tried on them first:"
        if rows
        else f"No data set here has its shape, {shape}: give yours on any page as the data "
        f"“points”, a NumPy array (N, {shape.replace(' x ', ', ')}), and this network as the "
        f"file {found.file}."
    )
    style = "font:13px/1.6 var(--wb-font);border-spacing:12px 0"
    return (
        f"<p><b>{escape(name)}</b>: {escape(found.said)}</p><p>{escape(said)}</p>"
        f'<table style="{style}"><tbody>{"".join(rows)}</tbody></table>'
    )


def _trained(card: Mapping[str, Any], otherwise: Training) -> Training:
    """The training that left a checkpoint, by its card; of a file of other makers ``otherwise``."""
    try:
        return Training(**card["study"]) if card.get("study") else Training()
    except (StudyError, TypeError):
        return otherwise


def _refused(name: str, folder: Path | None, allowed: list[str]) -> str:
    """Why a checkpoint cannot be opened; its name never reaches the file system."""
    if folder is None:
        return (
            f"{shown(name)} is no network that ships; to open your own, start the workbench with "
            "their folder: workbench serve --networks FOLDER."
        )
    if "/" in name or "\\" in name or name.startswith("."):
        return (
            f"{shown(name)} lies outside of {folder}, the one folder whose networks may be opened "
            "here; copy it there, or start the workbench with another: --networks FOLDER."
        )
    there = ", ".join(allowed[:8]) or "none"
    return f"there is no network {shown(name)} in {folder}; there are: {there}."


def _script(page: TrainingPage) -> str:
    lines = json.dumps(page.training.to_dict(), indent=4).replace("null", "None")
    lines = lines.replace("true", "True").replace("false", "False")
    return (
        "from workbench.studies.training import Training, submit\n\n"
        f"training = Training(**{lines})\n"
        "job = submit(training)  # a process of its own, which outlives this one\n"
        "net = job.result()      # waits; a denoiser\n"
    )


def _weights(page: TrainingPage) -> dict[str, Any]:
    if page.seen is None:
        return {"note": "There is no network to hand over yet; train one, or open one."}
    return {"name": "network.safetensors", "content": files.place(page.seen.file).read_bytes()}


#: What the bar's menus hand over, by name: a text, or the content of a file.
HANDED: dict[str, Callable[[TrainingPage], dict[str, Any]]] = {
    "link": lambda page: {"text": page._query()},
    "study": lambda page: {"name": "training.yaml", "text": page.training.to_yaml()},
    "yaml": lambda page: {"text": page.training.to_yaml()},
    "command": lambda page: {"text": "workbench train training.yaml --out network.safetensors"},
    "python": lambda page: {"text": _script(page)},
    "script": lambda page: {"name": "training.py", "text": _script(page)},
    "data": _weights,
    "notebook": lambda page: {
        "note": "The notebook of networks is notebooks/bring_your_own.ipynb; export the training "
        "as a file, and give it to workbench train."
    },
}
