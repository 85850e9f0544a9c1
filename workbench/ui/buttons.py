"""Buttons of the pages: one that is pressed and may hand over a file, one that opens a file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, ClassVar

import param

from workbench.ui.component import Component

LOOKS = """
:host { display: block; }
button, label { display: inline-flex; align-items: center; height: 29px; padding: 0 12px;
  font: 13px/1 var(--wb-font); border: 1px solid var(--wb-line); border-radius: 6px;
  color: var(--wb-text); background: var(--wb-surface); cursor: pointer; white-space: nowrap; }
button:hover, label:hover { background: var(--wb-hover); }
button:disabled { color: var(--wb-muted); cursor: default; background: none; }
.danger { color: var(--wb-bad); }
button:focus-visible, label:focus-within { outline: 2px solid var(--wb-accent);
  outline-offset: 1px; }
input { position: absolute; width: 1px; height: 1px; opacity: 0; }
"""


class Button(Component):
    """A button.

    Attributes:
        label: what stands on it.
        danger: whether it takes something away.
        disabled: whether it can be pressed.
        clicks: how often it was.
        filename, content: the file that it hands over each time ``content`` changes.
    """

    label = param.String("")
    danger = param.Boolean(False)
    disabled = param.Boolean(False)
    clicks = param.Integer(0)
    filename = param.String("")
    content = param.Bytes(b"")

    _stylesheets: ClassVar[list[str]] = [LOOKS]
    _esm = """export default { render({ model, el }) {
      const button = document.createElement("button");
      button.type = "button";
      const draw = () => {
        button.textContent = model.get("label");
        button.className = model.get("danger") ? "danger" : "";
        button.disabled = model.get("disabled");
      };
      button.addEventListener("click", () =>
        workbench.send(model, { clicks: model.get("clicks") + 1 }));
      model.on("change:content", () => {
        const content = model.get("content");
        if (content.byteLength) workbench.save(model.get("filename"), content);
      });
      for (const name of ["label", "danger", "disabled"]) model.on(`change:${name}`, draw);
      el.append(button);
      draw();
    } }"""

    def __init__(self, label: str, on_click: Callable[[], None], **params: Any) -> None:
        super().__init__(label=label, margin=(4, 4), **params)
        self.param.watch(lambda event: self.disabled or on_click(), "clicks")

    def hand_over(self, content: bytes) -> None:
        """Have the browser save a file."""
        self.content = content
        self.content = b""  # nothing is held, and the same file can be asked for again


class Opener(Component):
    """A button that opens a file of the reader's.

    Attributes:
        label: what stands on it.
        accept: endings of files, as of an HTML input.
        given: the name of the file, its content in base64, and a count.
    """

    label = param.String("")
    accept = param.String("")
    given = param.Dict({})

    _stylesheets: ClassVar[list[str]] = [LOOKS]
    _esm = """export default { render({ model, el }) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "file", accept: model.get("accept") });
      let count = 0;
      input.addEventListener("change", () => {
        if (input.files[0]) workbench.read(input.files[0], (file) => {
          workbench.send(model, { given: { ...file, count: ++count } });
          input.value = "";
        });
      });
      label.append(model.get("label"), input);
      el.append(label);
    } }"""

    def __init__(self, label: str, on_file: Callable[[str, bytes], None], **params: Any) -> None:
        super().__init__(label=label, margin=(4, 4), **params)
        self._on_file = on_file
        self.param.watch(self._on_given, "given")

    def _on_given(self, event) -> None:
        content = content_of(event.new)
        if content is not None:
            self._on_file(str(event.new.get("name", ""))[:80], content)


def content_of(file: Any) -> bytes | None:
    """The content of a file that the browser has sent in base64; None of what is none."""
    try:
        return base64.b64decode(file.get("data", ""), validate=True)
    except (AttributeError, TypeError, ValueError):
        return None
