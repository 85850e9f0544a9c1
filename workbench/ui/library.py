"""The page of a folder: its stored runs and sweeps; find, compare, open again, download, delete."""

from __future__ import annotations

from functools import partial
from html import escape
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

import panel as pn

from workbench.studies import Study, StudyError
from workbench.studies.library import (
    Comparison,
    Library,
    beside_each_other,
    deleted,
    glances,
    look,
    packed,
    yaml_of,
)
from workbench.ui.broker import shared
from workbench.ui.buttons import Button, Opener
from workbench.ui.form import sentence_of
from workbench.ui.listing import (
    ANYWHERE,
    COLUMNS,
    KINDS,
    MOST_ROWS,
    NUMBERS,
    cells_of,
    error_of,
    facts_of,
    html_table,
    matches,
    ordered,
    study_text,
)
from workbench.ui.rows import Rows
from workbench.ui.section import PLAIN, FigureRow, Sentence, Work, choice
from workbench.ui.session import Address, Confirm, Session, chips, query
from workbench.ui.shell import page_of
from workbench.ui.tasks import sweep_opened

#: Largest entry that is handed over through the page [bytes].
MOST_DOWNLOAD = 100 * 2**20

#: As narrow as a narrow screen, whatever is inside.
NARROW = {"min-width": "0", "max-width": "100%"}

#: Most rows that get a picture and an error, and how many at a time.
MOST_GLANCES, AT_A_TIME = 100, 8


def _shown(row: pn.Row, shown: bool) -> None:
    """Show or hide a row of widgets: those that are drawn later miss the dark theme."""
    row.styles = NARROW | {"flex-wrap": "wrap", "display": "flex" if shown else "none"}


def _link(address: str, text: str) -> str:
    """A link that opens in a new tab."""
    address = escape(address, quote=True)
    return f'<a href="{address}" target="_blank" rel="noopener" style="color:inherit">{text}</a>'


class LibraryPage:
    """One session of the page.

    Args:
        title: of the page.
        found: the folder that it lists.
    """

    def __init__(self, title: str, found: Library) -> None:
        self.title, self.library, self.entries, self.chosen = title, found, {}, []
        self._session, self._quiet = Session(), False
        wide = {"sizing_mode": "stretch_width"}
        self.text = pn.widgets.TextInput(
            label="Find", width=250, placeholder="words", margin=(4, 6), stylesheets=[PLAIN]
        )
        names = {ANYWHERE: ANYWHERE, **{title: key for key, title, _ in COLUMNS}}
        self.where = choice("in", names, 140)
        self.kind = choice("Kind", KINDS, 150)
        again = Button("Look again", self.look)
        columns = [[key, title, room, key in NUMBERS] for key, title, room in COLUMNS]
        self.rows = Rows(columns=columns, margin=(0, 10), visible=False, **wide)
        self.problem = Sentence()
        texts = [pn.pane.HTML("", margin=(4, 12), **wide) for _ in range(3)]
        self.said, self.head, self.body = texts
        self.trouble = Sentence()
        self.zip = Button("Data", self._pack, filename="run.zarr.zip")
        self.yaml = Button("Study", self._hand_yaml, filename="study.yaml")
        self.delete = Button("Delete", self._ask, danger=True)
        self.confirm = Confirm(self._delete, yes="Yes, delete it", no="Keep it", margin=(0, 6))
        flow = {"styles": NARROW | {"flex-wrap": "wrap"}, "margin": (0, 6), **wide}
        self.buttons = pn.Row(self.zip, self.yaml, self.delete, **flow)
        self.measure = choice("Measure", [], 150)
        self.axis = choice("over", [], 170)
        self.drawing = pn.Row(self.measure, self.axis, **flow)
        self.figure = FigureRow(visible=False)
        for part in (self.buttons, self.drawing):
            _shown(part, False)
        self.address = Address(width=0, height=0, margin=0)
        work = partial(Work, shared(), self._session)
        self.listing = work(self._listed, self._failed)
        self.detail = work(self._shown, self._failed)
        self.packing = work(self.zip.hand_over, self._failed)
        self.deleting = work(self._deleted, self._not_deleted)
        self.glances, self.waiting = {}, []
        self.looking = work(self._glanced, self._failed)
        self.file = Opener("Open a study file", self._uploaded, accept=".yaml,.yml,.json")
        self.top = pn.Row(
            self.text,
            self.where,
            self.kind,
            again,
            self.file,
            self.looking.row,
            self.listing.row,
            self.packing.row,
            self.deleting.row,
            self.address,
            **flow,
        )

    def page(self) -> pn.Template:
        self._read(query())
        for widget in (self.text, self.where, self.kind):
            widget.param.watch(lambda _: self._changed(), "value")
        self.rows.param.watch(lambda _: self._changed(), ["selected", "order"])
        for widget in (self.measure, self.axis):
            widget.param.watch(lambda _: self._quiet or self._open(), "value")
        self.address.param.watch(self._moved, "search")
        self._session.open(on_leave=self._leave)
        self._session.soon(self.look)
        parts = [self.top, self.problem, self.said, self.rows, self.detail.row, self.head]
        parts += [self.trouble, self.buttons, self.confirm, self.drawing, self.figure, self.body]
        main = pn.Column(*parts, sizing_mode="stretch_width", margin=(6, 6), styles=NARROW)
        return page_of(self.title, main)

    # -- the address ---------------------------------------------------------------------------

    def _query(self) -> str:
        state = {"text": self.text.value, "in": self.where.value, "kind": self.kind.value}
        state = {key: value for key, value in state.items() if value not in ("", ANYWHERE)}
        told = [*state.items(), ("order", self.rows.order)]
        return "?" + urlencode([*told, *(("selected", name) for name in self.rows.selected)])

    def _read(self, search: str) -> None:
        """Take over what can be read of an address, and say what cannot."""
        pairs = parse_qsl(search.lstrip("?"), keep_blank_values=True, max_num_fields=None)[:20]
        flat, wrong = dict(pairs), []
        keys = [key for key, *_ in COLUMNS]
        allowed = {
            "in": [ANYWHERE, *keys],
            "kind": list(KINDS.values()),
            "order": [*keys, *(f"-{key}" for key in keys)],
        }
        told = {key: ", ".join(values) for key, values in allowed.items()}
        told["order"] = f"{', '.join(keys)}; with a minus, the other way"
        known = {"in": ANYWHERE, "kind": "all", "order": "-date"}
        for key, values in allowed.items():
            if key in flat and flat[key] not in values:
                wrong.append(f"{key} was {flat[key][:40]!r}; it must be one of {told[key]}.")
            elif key in flat:
                known[key] = flat[key]
        self._quiet = True
        self.text.value = flat.get("text", "")[:200]
        self.where.value, self.kind.value = known["in"], known["kind"]
        names = dict.fromkeys(value for key, value in pairs if key == "selected")
        self.rows.param.update(order=known["order"], selected=list(names)[:2])
        self._quiet = False
        self._say(" ".join(wrong))

    def _moved(self, event) -> None:
        """The reader went back or forward."""
        if event.new != self._query():
            self._read(event.new)
            self._show_rows()

    def _changed(self) -> None:
        if not self._quiet:
            self._say("")
            self._show_rows()

    # -- the list ------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the folder again."""
        self.listing.start(partial(look, self.library.folder))

    def _listed(self, known: dict) -> None:
        entries = self.library.take(known)
        self.entries, self.chosen = {entry.name: entry for entry in entries}, []
        names = [entry.name for entry in entries if entry.state != "broken"][:MOST_GLANCES]
        self.glances = self.library.seen()
        self.waiting = [name for name in names if name not in self.glances]
        self._glanced({})

    def _glanced(self, few: dict) -> None:
        """Have pictures and errors follow the list, a few at a time."""
        self.library.see(few)
        self.glances |= few
        self.rows.pictures = {
            name: {**one.picture, "told": one.told, "error": error_of(one)}
            for name, one in self.glances.items()
        }
        if self.rows.order.endswith("error") or not few:
            self._show_rows()
        few, self.waiting = self.waiting[:AT_A_TIME], self.waiting[AT_A_TIME:]
        if few:
            self.looking.start(partial(glances, self.library.folder, few))

    def _show_rows(self) -> None:
        asked = (self.text.value, self.where.value, self.kind.value)
        shown = [entry for entry in self.entries.values() if matches(entry, *asked)]
        shown = ordered(shown, self.rows.order, self.glances)
        folder, count = escape(str(self.library.folder)), len(self.entries)
        if not count:
            made = "" if self.library.folder.is_dir() else f"mkdir -p {folder} and then "
            said = (
                f"No runs are in <b>{folder}</b> yet. Make one with <code>{made}workbench run "
                f"study.yaml -o {folder}/first.zarr</code>, and look again."
            )
        else:
            few = f", the first {MOST_ROWS} shown" if len(shown) > MOST_ROWS else ""
            said = (
                f"{len(shown)} of {count} in <b>{folder}</b>{few}. Choose one, or two to compare."
            )
        self.said.object = said
        made = [
            {"name": one.name, "cells": cells_of(one), "bad": one.state != "whole"}
            for one in shown[:MOST_ROWS]
        ]
        if made != self.rows.rows:
            self.rows.rows = made
        self.rows.visible = bool(count)
        gone = [name for name in self.rows.selected if name not in self.entries]
        if gone:
            told = ", ".join(repr(name[:80]) for name in gone)
            before = f"{self.problem.title} " if self.problem.visible else ""
            self._say(f"{before}No run or sweep is named {told} here.")
            self._select([name for name in self.rows.selected if name in self.entries])
        self.address.search = self._query()
        if self.rows.selected != self.chosen:
            left = [name for name in self.chosen if name not in self.rows.selected]
            if len(self.chosen) == len(self.rows.selected) == 2 and left:
                self._say(
                    f"Two are compared at a time: {self.rows.selected[-1]} takes the place of "
                    f"{left[0]}.",
                    "info",
                )
            self.chosen = list(self.rows.selected)
            self._show_chosen()

    # -- what is chosen ------------------------------------------------------------------------

    def _show_chosen(self) -> None:
        one = self.entries[self.chosen[0]] if len(self.chosen) == 1 else None
        self.confirm.drop()
        _shown(self.drawing, False)
        _shown(self.buttons, one is not None)
        self.figure.visible = False
        self.head.object = self.body.object = ""
        self.trouble.say(one.problem if one else "", "warning")
        if one is None:
            self.detail.cancel()
            if self.chosen:
                pair = tuple(self.chosen)
                self.detail.start(
                    partial(beside_each_other, self.library.folder, *pair),
                    done=lambda found: self._shown(self._compared(*pair, found)),
                )
            return
        large = one.size > MOST_DOWNLOAD or one.more
        self.zip.param.update(filename=f"{one.name}.zip", disabled=large)
        self.yaml.disabled = not one.study
        self.head.object = f"<h3>{escape(one.name)}</h3>{chips(facts_of(one))}{self._links(one)}"
        if large:
            place = escape(str(self.library.folder / one.name))
            self.head.object += f"<p>It is too large for a download: copy it from {place}.</p>"
        if one.study:
            self.body.object = study_text(yaml_of(one))
        if one.kind == "sweep":
            self._open()

    def _links(self, entry) -> str:
        """The study on its pages, in new tabs."""
        if not entry.study:
            return ""
        try:
            study = entry.checked()
        except (StudyError, TypeError) as error:
            return f"<p>Its study does not open on a page: {escape(str(error))}</p>"
        return self._pages_of(study, "its base " if entry.kind == "sweep" else "")

    def _pages_of(self, study: Study, base: str = "") -> str:
        """Links to a study on its pages."""
        query = study.to_query()
        links = " · ".join(
            _link(f"./{page}?{query}", f"Open {base}in {page.title()}")
            for page in ("trajectories", "samplers")
        )
        return f"<p>{links}</p>"

    def _compared(self, a: str, b: str, found: Comparison) -> dict:
        if not {a, b} <= self.entries.keys():
            return {"for": []}
        rows = [
            [key, *("" if value is None else value for value in pair)]
            for key, pair in found.fields.items()
        ]
        told = html_table(["", a, b], rows, "In what the studies differ") if rows else ""
        rms = found.rms
        rms = "" if rms is None else f"RMS difference of the final states {rms:.4g} [x]. "
        facts = "".join(
            f"<h4>{escape(name)}</h4>{chips(facts_of(self.entries[name]))}" for name in (a, b)
        )
        return {
            "for": [a, b],
            "trouble": " ".join(found.warnings),
            "head": f"<h3>{escape(a)} and {escape(b)}</h3><p>{escape(rms + found.note)}</p>"
            + self._beside(self.entries[a], self.entries[b]),
            "body": (told or "<p>The studies are the same.</p>") + facts,
        }

    def _beside(self, one, other) -> str:
        """A link to the two, played beside each other on one time axis."""
        try:
            first, second = (entry.checked().to_query() for entry in (one, other))
        except (StudyError, TypeError):
            return ""
        address = f"./trajectories?{first}&pin={quote(second, safe='')}"
        return f"<p>{_link(address, 'Play the two beside each other')}</p>"

    def _uploaded(self, name: str, content: bytes) -> None:
        """Offer the study of a file on its pages."""
        try:
            study = Study.parse(content.decode("utf-8"))
        except UnicodeDecodeError:
            self._say(f"{name} is no study: it is no text.")
            return
        except (StudyError, ValueError) as error:
            self._say(f"{name} is no study: {sentence_of(error)}")
            return
        self._select([])
        self._say("")
        self._show_rows()
        self.head.object = f"<h3>{escape(name)}</h3>{self._pages_of(study)}"
        self.body.object = study_text(study.to_yaml())

    def _open(self) -> None:
        """Read a sweep, and draw what is chosen of it."""
        name, measure, axis = self.chosen[0], self.measure.value, self.axis.value
        self.detail.start(partial(sweep_opened, self.library.folder, name, measure, axis))

    def _shown(self, made: dict) -> None:
        if made["for"] != self.chosen:
            return
        if "head" in made:
            self.head.object = made["head"]
        if "trouble" in made:
            self.trouble.say(made["trouble"], "warning")
        self.body.object = made["body"]
        if "drawn" in made:
            self._quiet = True
            self.measure.param.update(options=made["measures"], value=made["measure"])
            self.axis.param.update(options=made["axes"], value=made["axis"])
            self._quiet = False
            self.figure.put(made["drawn"])
            _shown(self.drawing, True)
            self.figure.visible = True

    def _ask(self) -> None:
        if len(self.chosen) == 1:
            name = self.chosen[0]
            self.confirm.ask(f"Delete {name}? It moves to .trash in the folder.", name)

    def _delete(self, name: str) -> None:
        self.deleting.start(partial(deleted, self.library.folder, name))

    def _deleted(self, gone: Path) -> None:
        self._say(f"Moved to {gone}; move it back to have it again.", "info")
        self._select([])
        self.look()

    def _not_deleted(self, error: Exception) -> None:
        self._failed(error)
        self.look()

    def _hand_yaml(self) -> None:
        self.yaml.hand_over(yaml_of(self.entries[self.chosen[0]]).encode())

    def _pack(self) -> None:
        """Have what is chosen packed, and hand it over when it is."""
        if len(self.chosen) == 1:
            self.packing.start(partial(packed, self.library.folder, self.chosen[0]))

    # -- the session ---------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        self._say(sentence_of(error))

    def _leave(self) -> None:
        for work in (self.listing, self.detail, self.looking, self.packing, self.deleting):
            work.cancel()

    def _select(self, names: list[str]) -> None:
        """Choose rows, without what follows from a choice of the reader's."""
        self._quiet = True
        self.rows.selected = names
        self._quiet = False

    def _say(self, sentence: str, severity: str = "error") -> None:
        self.problem.say(sentence, severity)
