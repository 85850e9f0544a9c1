"""A table on a page whose rows are chosen, by mouse or by keyboard, and whose columns sort."""

from __future__ import annotations

import param

from workbench.ui.component import Component


class Rows(Component):
    """A table of which up to two rows are chosen.

    Texts are only texts, never HTML. Sorting is left to Python: a click on the head of a column
    changes ``order``.

    Attributes:
        columns: of each its key, its title, the room below which it is left out [px; 0: never],
            and whether it holds numbers.
        rows: mappings of ``name``, ``cells`` (a text for each column) and ``bad``.
        pictures: by name, the picture of a run's end (:class:`workbench.studies.glance.Glance`),
            its ``error`` as a text, and in ``told`` what that is.
        selected: names of rows.
        order: key of a column; with a minus, the other way.
    """

    columns = param.List([])
    rows = param.List([])
    pictures = param.Dict({})
    selected = param.List([])
    order = param.String("-date")

    _esm = """
    const CSS = `
    .wb-rows { overflow: auto; max-height: max(48vh, 260px); container-type: inline-size;
      font: 13px/1.45 system-ui, sans-serif; }
    table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
    caption { position: absolute; width: 1px; height: 1px; overflow: hidden; }
    th, td { padding: 5px 8px; text-align: left; white-space: nowrap; border-bottom: 1px solid
      color-mix(in srgb, currentColor 15%, transparent); }
    td.name { max-width: min(220px, 34vw); overflow: hidden; text-overflow: ellipsis;
      font-weight: 600; }
    thead th { position: sticky; top: 0; background: Canvas; z-index: 1; }
    th.number, td.number { text-align: right; }
    th button { all: unset; cursor: pointer; font-weight: 600; }
    th button:focus-visible, input:focus-visible { outline: 2px solid #0072b2;
      outline-offset: 2px; }
    tbody tr { cursor: pointer; }
    tbody tr:hover { background: color-mix(in srgb, currentColor 6%, transparent); }
    tr[aria-selected=true] { background: color-mix(in srgb, #0072b2 22%, transparent) !important; }
    td.name canvas { width: 44px; height: 30px; margin: -4px 8px -4px 0; vertical-align: middle;
      border-radius: 4px; background: color-mix(in srgb, currentColor 6%, transparent); }
    td.bad { color: #d55e00; font-weight: 600; }
    input { width: 16px; height: 16px; margin: 0; vertical-align: middle; }
    `;
    const { make, send } = workbench;
    export default { render({ model, el }) {
      const columns = model.get("columns");
      const rooms = columns.filter(([, , room]) => room).map(([key, , room]) =>
        `@container (max-width: ${room}px) { .c-${key} { display: none; } }`).join("\\n");
      const heads = new Map();
      const body = make("tbody");
      const row = make("tr", {}, make("th", { ariaLabel: "Selected" }));
      for (const [key, title, , number] of columns) {
        const button = make("button",
          { type: "button", textContent: title, ariaLabel: `Sort by ${title}` });
        button.addEventListener("click", () => {
          const now = model.get("order");
          send(model, { order: now === key ? "-" + key : key });
        });
        const head = make("th", { scope: "col", className: `c-${key} ${number ? "number" : ""}` });
        head.append(button);
        heads.set(key, [head, button, title]);
        row.append(head);
      }
      const sorted = () => {
        const order = model.get("order"), down = order.startsWith("-");
        for (const [key, [head, button, title]] of heads) {
          const mine = order === key || order === "-" + key;
          head.ariaSort = mine ? (down ? "descending" : "ascending") : "none";
          button.textContent = title + (mine ? (down ? " ↓" : " ↑") : "");
        }
      };
      const marked = () => {
        const chosen = model.get("selected");
        for (const one of body.rows) {
          const is = chosen.includes(one.dataset.name);
          one.ariaSelected = is;
          one.querySelector("input").checked = is;
        }
      };
      const toggle = (name) => {
        const chosen = model.get("selected");
        send(model, { selected: chosen.includes(name) ? chosen.filter((one) => one !== name)
          : [...chosen, name].slice(-2) });
        marked();
      };
      // The end of a run: points of a plane, or its first images.
      const paint = (canvas, { kind, shape, data }) => {
        const g = canvas.getContext("2d");
        const raw = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const w = canvas.width = 88, h = canvas.height = 60;
        if (kind === "plane") {
          g.fillStyle = "#3a9bd5";
          const left = (w - h) / 2 - 1.5, scale = h / 255;
          for (let p = 0; p < shape[0]; p++)
            g.fillRect(left + raw[2 * p] * scale, raw[2 * p + 1] * scale - 1.5, 3, 3);
          return;
        }
        const [count, rows, columns] = shape, side = Math.min(w / count, h) - 4;
        for (let k = 0; k < count; k++)
          for (let y = 0; y < rows; y++)
            for (let x = 0; x < columns; x++) {
              const v = 255 - raw[(k * rows + y) * columns + x];
              g.fillStyle = `rgb(${v},${v},${v})`;
              g.fillRect(2 + k * w / count + x * side / columns, (h - side) / 2 + y * side / rows,
                side / columns + 0.5, side / rows + 0.5);
            }
      };
      const pictured = () => {
        const pictures = model.get("pictures"), at = columns.findIndex(([key]) => key === "error");
        for (const one of body.rows) {
          const found = pictures[one.dataset.name];
          if (!found) continue;
          if (at >= 0) {
            const { told: title, error: textContent } = found;
            Object.assign(one.cells[at + 1], { title, textContent });
          }
          const canvas = one.querySelector("canvas");
          canvas.title = "Its final states";
          if (found.data) paint(canvas, found); else canvas.style.visibility = "hidden";
        }
      };
      const drawn = () => {
        const held = body.getRootNode().activeElement?.closest("tr")?.dataset.name;
        body.replaceChildren(...model.get("rows").map(({ name, cells, bad }) => {
          const box = make("input", { type: "checkbox", ariaLabel: `Select ${name}` });
          box.addEventListener("change", () => toggle(name));
          const one = make("tr", {}, make("td", {}, box), ...cells.map((text, i) => {
            const [key, , , number] = columns[i];
            const cell = make("td", { textContent: text, title: key === "name" ? text : "" });
            cell.className = `c-${key} ${key === "name" ? "name" : ""} ${number ? "number" : ""} ` +
              (bad && key === "state" ? "bad" : "");
            if (key === "name") cell.prepend(make("canvas", { ariaHidden: "true" }));
            return cell;
          }));
          one.dataset.name = name;
          one.addEventListener("click", (e) => { if (e.target !== box) toggle(name); });
          return one;
        }));
        marked();
        pictured();
        const again = [...body.rows].find((one) => one.dataset.name === held);
        again?.querySelector("input").focus();
      };
      const table = make("table", {}, make("caption", { textContent: "Stored runs and sweeps" }),
        make("thead", {}, row), body);
      el.append(make("style", { textContent: CSS + rooms }),
        make("div", { className: "wb-rows" }, table));
      model.on("change:rows", drawn);
      model.on("change:pictures", pictured);
      model.on("change:selected", marked);
      model.on("change:order", sorted);
      drawn();
      sorted();
    } }
    """
