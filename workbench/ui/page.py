"""A dashboard around a study: its form, its URL, its progress, one view of its result, and sections
beneath it.

An app says what to compute and how to show it; everything else is here. The URL holds the whole
study. A change in the form is validated at once; an error is shown beside its control while the
last good result stays, and a valid study goes to the broker, where it replaces an older request.
"""

from __future__ import annotations

import io
import operator
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import AnyWidgetComponent

from workbench.studies import Study, StudyError
from workbench.studies.files import keep
from workbench.studies.options import Options, joined
from workbench.studies.store import write
from workbench.ui.broker import Broker, Report, shared
from workbench.ui.form import (
    CANCELLED,
    Control,
    controls,
    edited,
    option_controls,
    placed,
    problems_of,
)
from workbench.ui.player import MODULE
from workbench.ui.section import Section, Work
from workbench.ui.session import Address, Session, chips, download, page_of, query

__all__ = ["PlayerPane", "StudyPage"]

#: Widths of the controls in the sidebar: one or two in a row [px].
FULL, HALF = 300, 146


class PlayerPane(AnyWidgetComponent):
    """The player on a Panel page; see :class:`workbench.ui.player.Player`."""

    _esm = MODULE
    data = param.Bytes(b"")
    frame = param.Number(0.0)
    playing = param.Boolean(False)


class StudyPage:
    """One session of a dashboard.

    Args:
        title: of the page.
        compute: ``(study, report) -> result``, a function of a module; runs in a worker process,
            see :mod:`workbench.ui.tasks`. Of a page with options of its own, and of its sections,
            the first argument is ``(study, options)``.
        show: ``result -> None``; puts the result into ``view``, on the page's own thread.
        view: what is shown.
        summary: ``result -> sentences`` about it, as short texts.
        dataset: ``result -> xarray.Dataset`` offered for download.
        about: Markdown that explains the picture.
        sections: beneath the picture, closed until the reader opens them.
        broker: who does the work; the process's shared one by default.
        options: what the page asks for beside the study; it stands at the head of the form and in
            the URL.
        hidden: sections and entries of the study that the page has no use for; its form leaves
            them out, and its URL keeps them.
    """

    def __init__(
        self,
        title: str,
        compute: Callable[[Study, Report], Any],
        show: Callable[[Any], None],
        view: pn.viewable.Viewable,
        summary: Callable[[Any], list[str]],
        dataset: Callable[[Any], Any],
        about: str = "",
        sections: Sequence[Section] = (),
        broker: Broker | None = None,
        options: type[Options] | None = None,
        hidden: Sequence[str] = (),
    ) -> None:
        self.title, self.study = title, Study()
        self.options, self._hidden = options and options(), set(hidden)
        self._compute, self._show, self._summary, self._dataset = compute, show, summary, dataset
        self._broker, self._sections = broker or shared(), list(sections)
        self._session, self._result, self._quiet = Session(), None, False
        self._widgets: dict[str, Any] = {}
        # Flat boxes that stay: a widget that moved to a new container would lose its connection.
        self._own = pn.FlexBox(margin=(4, 6), gap="0px", visible=options is not None)
        self._common = pn.FlexBox(margin=(4, 6), gap="0px")
        self._break = pn.Spacer(width=FULL, height=4)  # the run's controls begin a line
        self._rare = pn.Column(sizing_mode="stretch_width", margin=(6, 0))
        self._problem = pmui.Alert(severity="error", visible=False, sizing_mode="stretch_width")
        self._facts = pn.pane.HTML(
            "", sizing_mode="stretch_width", margin=(6, 10), styles={"flex": "1 1 300px"}
        )
        self._work = Work(
            self._broker,
            self._session.deliver,
            self._on_done,
            self._on_failed,
            self._on_cancelled,
            self._session.number,
        )
        self._view, self._about = view, about
        self._address = Address(width=0, height=0, margin=0)

    # -- layout ------------------------------------------------------------------------------

    def page(self) -> pmui.Page:
        """The page itself, with the study of its URL; the run begins when the browser is there."""
        reset = pmui.Button(
            label="Reset", icon="restart_alt", variant="text", size="small", on_click=self._on_reset
        )
        study = download(
            "Study", "description", "study.yaml", lambda: io.StringIO(self.study.to_yaml())
        )
        data = download("Data", "dataset", "run.zarr.zip", self._zipped)
        main = [
            pn.Row(
                self._facts,
                self._work.row,
                reset,
                study,
                data,
                self._address,
                sizing_mode="stretch_width",
                styles={"flex-wrap": "wrap"},  # the buttons go beneath on a narrow screen
                margin=0,
            ),
            self._problem,
            self._view,
            *(
                section.attach(self._broker, self._session.deliver, self._session.number)
                for section in self._sections
            ),
        ]
        if self._about:
            text = pn.pane.Markdown(self._about, sizing_mode="stretch_width", margin=(0, 16))
            main.append(
                pmui.Accordion(
                    ("What is shown", text),
                    title_variant="subtitle2",
                    sizing_mode="stretch_width",
                    margin=(10, 10),
                )
            )
        self._read(query())
        self._address.param.watch(self._on_address, "search")
        self._session.open(on_leave=self._leave, on_here=self._start)
        return page_of(
            title=f"{self.title} · Diffusion Workbench",
            sidebar=[
                self._own,
                self._common,
                pmui.Accordion(
                    ("More", self._rare),
                    title_variant="subtitle2",
                    sizing_mode="stretch_width",
                    margin=(10, 4),
                    elevation=0,
                ),
            ],
            sidebar_width=330,
            main=[pn.Column(*main, sizing_mode="stretch_width", margin=(6, 10))],
        )

    # -- the form ----------------------------------------------------------------------------

    def _build_form(self) -> None:
        """Controls for what is asked; those that are still wanted keep their widget."""
        own = option_controls(self.options) if self.options else []
        wanted = own + [c for c in controls(self.study) if not {c.section, c.key} & self._hidden]
        kept = {c.key: self._widgets.get(c.key) for c in wanted}
        self._quiet = True
        try:
            for control in wanted:
                widget = kept[control.key]
                if widget is None or (
                    control.choices and list(widget.options) != list(control.options)
                ):
                    kept[control.key] = self._widget(control)
                elif not control.upload:
                    widget.value = _shown(control)
        finally:
            self._quiet = False
        self._widgets = kept
        _put(self._own, [kept[c.key] for c in own])
        wanted = wanted[len(own) :]
        common = [c for c in wanted if not c.rare]
        run = next((i for i, c in enumerate(common) if c.section == "run"), len(common))
        shown = [kept[c.key] for c in common]
        _put(self._common, [*shown[:run], self._break, *shown[run:]])
        _put(self._rare, [kept[c.key] for c in wanted if c.rare])

    def _widget(self, control: Control) -> Any:
        common = {
            "label": control.label,
            "description": control.help,
            "size": "small",
            "width": FULL if control.key == control.section else HALF,
            "margin": (16 if control.key == control.section else 8, 4, 6, 4),
        }
        if control.upload:
            made = pmui.FileInput(accept=".npy,.csv,.txt", label=control.label, width=FULL)
            made.param.watch(lambda event: self._on_upload(control.key, made), "value")
            return made
        if control.many:
            common |= {"width": FULL, "options": control.options, "value": list(control.value)}
            common["visual_size"] = common.pop("size")
            made = pmui.MultiChoice(**common)
        elif control.choices:
            made = pmui.Select(options=control.options, value=control.value, **common)
        elif control.kind is bool:
            common.pop("size")
            made = pmui.Checkbox(value=control.value, **common)
        else:
            # A text: what is typed reaches the study's own check, whatever it is.
            made = pmui.TextInput(value=_shown(control), **common)
        made.param.watch(lambda _: self._on_change(control.key), "value")
        return made

    def _on_change(self, key: str) -> None:
        if self._quiet:
            return
        mine = self.options.keys() if self.options else ()
        values = {
            k: w.value
            for k, w in self._widgets.items()
            if k not in mine and not isinstance(w, pmui.FileInput)
        }
        try:
            if key in mine:  # one at a time: the study's own controls may hold what is not allowed
                value = self._widgets[key].value
                value = joined(value) if isinstance(value, list) else value
                self._accept(self.study, self.options.changed({key: value}))
            else:
                self._accept(edited(self.study, key, values))
        except StudyError as error:
            self._tell(error.problems)

    def _on_upload(self, key: str, widget: pmui.FileInput) -> None:
        if not widget.value:
            return
        name = widget.filename if isinstance(widget.filename, str) else ""
        try:
            content = bytes(widget.value)
            if self.options and key in tuple(self.options.keys()):
                self._accept(self.study, self.options.uploaded(key, content, name))
            else:
                self._accept(self.study.changed({key: keep(content)}))
        except StudyError as error:
            self._tell(error.problems)

    def _accept(self, study: Study, options: Options | None = None) -> None:
        self.study, self.options = study, options or self.options
        self._build_form()
        self._tell({})
        self._address.search = self._query()
        self._start()

    def _query(self) -> str:
        """The address's query: the study, and the page's own options."""
        own = f"&{self.options.to_query()}" if self.options else ""
        return f"?{self.study.to_query()}{own}"

    def _tell(self, problems: dict[str, str]) -> None:
        """Show each sentence beside its control; those without one above the picture."""
        beside, rest = placed(problems, self._widgets)
        for key, widget in self._widgets.items():
            sentence = beside[key]
            if hasattr(widget, "error_state"):
                widget.param.update(error_state=bool(sentence), helper_text=sentence)
            elif sentence:
                rest = f"{rest} {sentence}".strip()
        self._problem.param.update(title=rest, severity="error", visible=bool(rest))

    def _on_reset(self, _) -> None:
        self._accept(Study(), self.options and type(self.options)())

    # -- the URL -----------------------------------------------------------------------------

    def _read(self, search: str) -> None:
        """Take over what can be read of an address, and say what cannot."""
        flat, options = Study.flat_of_query(search), None
        others: dict[str, str] = {}
        if self.options:
            mine = self.options.keys()
            own = {key: flat.pop(key) for key in mine if key in flat}
            options, others = type(self.options).salvage(own)
        study, problems = Study.salvage(flat)
        self._accept(study, options)
        self._tell(problems | others)

    def _on_address(self, event) -> None:
        """The reader went back or forward."""
        if event.new != self._query():
            self._read(event.new)

    # -- the work ----------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._session.here:
            return
        asked = self.study if self.options is None else (self.study, self.options)
        self._work.start(partial(self._compute, asked))
        for section in self._sections:
            section.follow(asked)

    def _leave(self) -> None:
        """The session is over: nothing is to be computed for it any more."""
        for part in (self._work, *self._sections):
            part.cancel()

    def _on_done(self, result: Any) -> None:
        self._result = result
        self._show(result)
        self._facts.object = chips(self._summary(result))

    def _on_failed(self, error: Exception) -> None:
        self._tell(problems_of(error))

    def _on_cancelled(self) -> None:
        self._problem.param.update(title=CANCELLED, severity="info", visible=True)

    def _zipped(self) -> io.BytesIO:
        """The result as a Zarr store in a zip file."""
        packed = io.BytesIO()
        if self._result is None:
            return packed
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "run.zarr"
            write(self._dataset(self._result), store)
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(store.rglob("*")):
                    archive.write(file, file.relative_to(folder))
        packed.seek(0)
        return packed


def _put(box: Any, objects: list) -> None:
    """New objects, unless they are the same: the page would be told of all of them again."""
    if len(box.objects) != len(objects) or any(map(operator.is_not, box.objects, objects)):
        box.objects = objects


def _shown(control: Control) -> Any:
    """A control's value as its widget holds it: numbers as text, a list as one."""
    if control.many:
        return list(control.value)
    return control.value if control.choices or control.kind is bool else str(control.value)
