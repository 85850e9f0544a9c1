"""The explorer: a study as a form beside the player, for JupyterLab.

The form is read off the registries, as on the pages. A change is checked at once, an error is shown
under its control while the last good picture stays, and a valid study goes to the broker, where it
replaces an older request.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Callable
from html import escape
from queue import SimpleQueue
from threading import RLock
from typing import TYPE_CHECKING

import ipywidgets as widgets

from workbench.studies import Exploration, Study, StudyError, explore
from workbench.ui.broker import Broker, Progress, Report, Ticket
from workbench.ui.form import (
    CANCELLED,
    Control,
    controls,
    edited,
    facts,
    placed,
    problems_of,
    progress_text,
)
from workbench.ui.player import Player, scene_of

if TYPE_CHECKING:
    import xarray

_owners = itertools.count()

#: Seconds between two looks at what has arrived, while :meth:`Explorer.wait` blocks.
LOOK_EVERY = 0.02

STYLE = """<style>
.wb-explorer, .wb-explorer .widget-box { overflow: visible; }
.wb-explorer { gap: 12px 16px; padding: 4px 0 8px; }
.wb-explorer .wb-form { gap: 3px; }
.wb-explorer .wb-form > .wb-section { margin-top: 9px; padding-top: 9px;
  border-top: 1px solid var(--jp-border-color2, #8884); }
.wb-explorer .wb-form > .wb-section:first-child { margin-top: 0; padding-top: 0; border-top: 0; }
.wb-explorer .wb-form, .wb-explorer .wb-control { min-width: 0; }
.wb-explorer .wb-control > * { margin: 0; width: auto; min-width: 0; }
.wb-explorer .wb-control .widget-label { justify-content: flex-start; text-align: left;
  color: var(--jp-ui-font-color2, inherit); }
.wb-explorer .wb-section .widget-label { font-weight: 600;
  color: var(--jp-ui-font-color1, inherit); }
.wb-explorer .wb-control input[type="number"], .wb-explorer .wb-control select {
  flex: 1 1 0; width: 0; min-width: 0; text-align: left;
  font-variant-numeric: tabular-nums; }
.wb-explorer .widget-dropdown > select { background-image: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='-1 -2 20 18'%3E%3Cpath d='M4 6l5 5 5-5' \
fill='none' stroke='%23888' stroke-width='2'/%3E%3C/svg%3E"); }
.wb-explorer .wb-wrong input, .wb-explorer .wb-wrong select {
  border-color: var(--jp-error-color1, #d32f2f) !important; }
.wb-explorer .wb-sentence .widget-html-content { font-size: 12px; line-height: 1.35;
  color: var(--jp-error-color1, #d32f2f); overflow-wrap: anywhere; height: auto;
  padding: 2px 0 4px; }
.wb-explorer .wb-note .widget-html-content { color: var(--jp-ui-font-color2, inherit); }
.wb-explorer .wb-fold { margin: 12px 0 0; }
.wb-explorer .wb-fold .jupyter-widget-Accordion-child { margin: 0; }
.wb-explorer .wb-fold .jupyter-widget-Collapse-header { padding: 3px 8px; background: none;
  border-color: var(--jp-border-color2, #8884); color: var(--jp-ui-font-color1, inherit); }
.wb-explorer .wb-fold .jupyter-widget-Collapse-contents { padding: 8px; background: none;
  border-color: var(--jp-border-color2, #8884); color: inherit; }
.wb-explorer .wb-strip { gap: 8px; min-height: 30px; align-items: center; }
.wb-explorer .wb-strip > * { margin: 0; }
.wb-explorer .wb-facts .widget-html-content { display: flex; flex-wrap: wrap; gap: 2px 16px;
  font-size: 12px; line-height: 1.5; height: auto; color: var(--jp-ui-font-color1, inherit);
  font-variant-numeric: tabular-nums; }
.wb-explorer .wb-stage-text .widget-html-content { font-size: 12px; line-height: 1.4; height: auto;
  color: var(--jp-ui-font-color2, inherit); font-variant-numeric: tabular-nums; }
.wb-explorer .wb-strip .widget-hprogress { flex: 0 0 auto; }
.wb-explorer .wb-strip .progress { align-self: center; height: 6px; margin: 0; }
.wb-explorer .wb-strip button { height: 24px; line-height: 22px; }
</style>"""


@functools.cache
def of_kernel() -> Broker:
    """The thread that explorers compute on, whatever computes for pages that are served from here:
    what a notebook has defined need not be picklable."""
    return Broker()


class Explorer(widgets.Box):
    """A study to change and to watch, in a notebook.

    The first run is done when the explorer is made; later ones follow each change of the form.

    Args:
        study: to begin with; the default study if there is none.
        broker: who does the work; by default a thread that all explorers of the kernel share.

    Attributes:
        study: what the form says.
        exploration: the last finished run, with all that is shown of it.
        player: the :class:`workbench.ui.player.Player`; its ``frame`` and ``playing`` can be set.

    Raises:
        StudyError: a study that cannot be run.
        TypeError: something that is not a study.
    """

    _broker: Broker | None = None

    def __init__(self, study: Study | None = None, broker: Broker | None = None) -> None:
        if study is not None and not isinstance(study, Study):
            raise TypeError(f"study was {study!r}; it must be a Study, e.g. wb.Study(data='ring').")
        self.study, self.exploration, self.player = study or Study(), None, Player()
        self._broker, self._owner = broker or of_kernel(), f"explorer {next(_owners)}"
        self._ticket: Ticket | None = None
        self._error: Exception | None = None
        self._arrived: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock, self._quiet = RLock(), False
        self._fields: dict[str, _Field] = {}
        self._lay_out()
        self.player.observe(self._on_dropped, "dropped")
        self._refresh()
        self._start()
        self.wait()

    @property
    def run(self) -> xarray.Dataset:
        """The last finished run; see :attr:`workbench.Trajectory.dataset`."""
        return self.exploration.run

    def wait(self, timeout: float | None = None) -> Exploration:
        """Block until the run under way is over and its result in place, and return it.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            TimeoutError: the run takes longer; it goes on.
            Exception: what the last run failed with.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._ticket.wait(LOOK_EVERY):
                # The event loop is held up by this very call: what has arrived is taken here.
                self._take()
                if until is not None and time.monotonic() > until:
                    raise TimeoutError(f"the run was not over after {timeout:g} s; it goes on.")
        except KeyboardInterrupt:
            self._broker.cancel(self._owner)
            raise
        self._take()
        if self._error is not None:
            raise self._error
        return self.exploration

    def close(self) -> None:
        """Cancel what is under way and take the explorer off every page that shows it."""
        if self._broker is not None:  # else it was refused before it was made
            self._broker.cancel(self._owner)
        super().close()

    # -- layout ------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        self._form = widgets.VBox(layout={"flex": "0 0 auto", "width": "290px"}).add_class(
            "wb-form"
        )
        self._rare = widgets.VBox().add_class("wb-form")
        self._fold = widgets.Accordion([self._rare], titles=["More"]).add_class("wb-fold")
        self._facts = widgets.HTML().add_class("wb-facts")
        self._stage = widgets.HTML().add_class("wb-stage-text")
        self._bar = widgets.FloatProgress(min=0.0, max=1.0, layout={"width": "110px"})
        cancel = widgets.Button(description="Cancel", layout={"width": "68px"})
        cancel.on_click(self._on_cancel)
        self._busy = widgets.HBox([self._bar, self._stage, cancel]).add_class("wb-strip")
        strip = widgets.HBox([self._facts, self._busy]).add_class("wb-strip")
        self._problem = widgets.HTML().add_class("wb-sentence")
        shown = widgets.VBox(
            [strip, self._problem, self.player],
            layout={"flex": "1 1 420px", "min_width": "0"},
        )
        style = widgets.HTML(STYLE, layout={"display": "none"})
        super().__init__([self._form, shown, style], layout={"flex_flow": "row wrap"})
        self.add_class("wb-explorer")
        self._set_busy(False)
        self._say("")

    def _refresh(self) -> None:
        """Controls for ``self.study``; those that are still wanted keep their widget."""
        wanted = controls(self.study)
        fields = {}
        self._quiet = True
        try:
            for control in wanted:
                field = self._fields.get(control.key)
                if field is None or not field.suits(control):
                    field = _Field(control, self._on_change)
                field.update(control)
                fields[control.key] = field
        finally:
            self._quiet = False
        self._fields = fields
        common = [fields[c.key].box for c in wanted if not c.rare]
        _set_children(self._form, [*common, self._fold])
        _set_children(self._rare, [fields[c.key].box for c in wanted if c.rare])

    def _say(self, text: str, wrong: bool = True) -> None:
        """A sentence above the picture."""
        self._problem.value = escape(text)
        self._problem.layout.display = None if text else "none"
        (self._problem.remove_class if wrong else self._problem.add_class)("wb-note")

    def _tell(self, problems: dict[str, str]) -> None:
        """Each sentence under its control; those without one above the picture."""
        by_control, rest = placed(problems, self._fields)
        for key, sentence in by_control.items():
            self._fields[key].say(sentence)
            if sentence and self._fields[key].control.rare:
                self._fold.selected_index = 0
        self._say(rest)

    def _set_busy(self, busy: bool) -> None:
        self._busy.layout.display = None if busy else "none"
        self._facts.layout.display = "none" if busy else None

    # -- the form ----------------------------------------------------------------------------

    def _on_change(self, key: str) -> None:
        with self._lock:
            if self._quiet:
                return
            values = {name: field.input.value for name, field in self._fields.items()}
            self._turn_to(lambda: edited(self.study, key, values))

    def _on_dropped(self, change) -> None:
        """A study was dropped on the picture: its file, or a picture that holds it."""
        if not change["new"]:
            return
        self.player.dropped = ""
        with self._lock:
            self._turn_to(lambda: Study.parse(change["new"]))

    def _turn_to(self, make: Callable[[], Study]) -> None:
        """Show and run another study, or say why there is none."""
        try:
            self.study = make()
        except StudyError as error:
            self._tell(error.problems)
            return
        self._refresh()
        self._tell({})
        self._start()

    # -- the work ----------------------------------------------------------------------------

    def _start(self) -> None:
        study, self._error = self.study, None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # a script
            self._loop = None

        def work(report: Report) -> tuple[Exploration, bytes]:
            found = explore(study, report)
            return found, scene_of(found)

        self._ticket = self._broker.submit(
            self._owner,
            work,
            done=self._on_done,
            failed=self._on_failed,
            progress=self._on_progress,
            deliver=self._deliver,
        )

    def _deliver(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on the kernel's own thread, by its event loop or by :meth:`wait`."""
        self._arrived.put(call)
        try:
            self._loop.call_soon_threadsafe(self._take)
        except (AttributeError, RuntimeError):  # no loop, or one that has ended
            self._take()

    def _take(self) -> None:
        with self._lock:
            while not self._arrived.empty():
                self._arrived.get_nowait()()

    def _on_progress(self, progress: Progress) -> None:
        self._stage.value = escape(progress_text(progress))
        self._bar.value = progress.fraction
        self._set_busy(True)

    def _on_done(self, result: tuple[Exploration, bytes]) -> None:
        first = self.exploration is None
        self.exploration, scene = result
        self.player.show(scene)
        if first:  # it opens at pure noise; later runs keep the reader's place on the axis
            self.player.playing = True
        said = facts(self.exploration)
        self._facts.value = "".join(f"<span>{escape(text)}</span>" for text in said)
        self._set_busy(False)

    def _on_failed(self, error: Exception) -> None:
        self._error = error
        self._set_busy(False)
        self._tell(problems_of(error))

    def _on_cancel(self, _) -> None:
        self._broker.cancel(self._owner)
        self._set_busy(False)
        self._say(CANCELLED, wrong=False)


class _Field:
    """A control as widgets: the input, and the sentence under it when its value is not allowed."""

    def __init__(self, control: Control, on_change: Callable[[str], None]) -> None:
        self.control = control
        common = {"description": control.label, "value": self._value(control)}
        if control.choices:
            options = list(control.options.items())
            self.input = widgets.Dropdown(options=options, **common)
        elif control.kind is bool:
            self.input = widgets.Checkbox(indent=False, **common)
        else:
            kinds = {int: widgets.IntText, float: widgets.FloatText, str: widgets.Text}
            kind = str if control.optional else control.kind
            self.input = kinds[kind](continuous_update=False, **common)
        if control.kind is not bool:
            self.input.style.description_width = "136px"
        self.input.observe(lambda _: on_change(control.key), "value")
        self.sentence = widgets.HTML(layout={"display": "none"}).add_class("wb-sentence")
        self.box = widgets.VBox([self.input, self.sentence]).add_class("wb-control")
        if control.key == control.section:
            self.box.add_class("wb-section")

    def suits(self, control: Control) -> bool:
        """Whether this field can show ``control``."""
        mine = self.control
        traits = ("kind", "label", "choices", "optional")
        return all(getattr(mine, name) == getattr(control, name) for name in traits)

    def update(self, control: Control) -> None:
        self.control = control
        self.input.value, self.input.tooltip = self._value(control), control.help

    @staticmethod
    def _value(control: Control) -> object:
        """What the input holds: an optional number as a text, which may be empty."""
        plain = not control.choices and control.kind is not bool
        return str(control.value) if plain and control.optional else control.value

    def say(self, sentence: str) -> None:
        """Show what is wrong; an empty sentence when nothing is."""
        self.sentence.value = escape(sentence)
        self.sentence.layout.display = None if sentence else "none"
        (self.box.add_class if sentence else self.box.remove_class)("wb-wrong")


def _set_children(box: widgets.Box, children: list[widgets.Widget]) -> None:
    """New children, unless they are the same: the browser would draw them all again."""
    if list(box.children) != children:
        box.children = children
