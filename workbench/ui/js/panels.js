// Panels that show one noise level of a result together: a scrubber on top, canvases beneath, in as many
// columns as suit the room. A page adds panels with `panel` and draws in CSS pixels.
const PANELS_CSS = `:host { display: block; height: 100%; }
.wb-player { position: absolute; inset: 0; display: flex; flex-direction: column; outline: none; font: 12px/1.35 var(--wb-font); color: var(--wb-text); background: var(--wb-surface); }
.wb-player:focus-visible { box-shadow: inset 0 0 0 2px var(--wb-accent); }
.scrub { flex: none; display: flex; align-items: center; gap: 8px; padding: 5px 10px; border-bottom: 1px solid var(--wb-line); }
.scrub input { flex: 1 1 0; min-width: 60px; accent-color: var(--wb-accent); }
.scrub output { flex: none; min-width: 10.5em; font-variant-numeric: tabular-nums; }
.scrub button, .scrub a { font: inherit; line-height: 24px; height: 26px; padding: 0 10px; border: 1px solid var(--wb-line); border-radius: 5px; background: var(--wb-surface); color: var(--wb-text); cursor: pointer; text-decoration: none; white-space: nowrap; box-sizing: border-box; }
.scrub button:hover, .scrub a:hover { background: var(--wb-hover); } .scrub button[disabled] { opacity: .5; cursor: default; } .scrub[hidden] { display: none; } .scrub label { display: flex; align-items: center; gap: 5px; white-space: nowrap; } .scrub label[hidden] { display: none; } .scrub select, .scrub input[type=number] { font: inherit; height: 26px; color: var(--wb-text); background: var(--wb-surface); border: 1px solid var(--wb-line); border-radius: 5px; box-sizing: border-box; } .scrub input[type=number] { width: 5.2em; flex: none; } .aside { flex-wrap: wrap; } .aside input[type=range] { flex: 1 1 90px; max-width: 260px; } .aside p { margin: 0; flex: 1 1 100%; color: var(--wb-muted); max-height: 2.8em; overflow: auto; } .scrub a[hidden] { display: none; }
:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.panels { flex: 1 1 0; min-height: 0; display: grid; gap: 1px; background: var(--wb-line); }
figure { margin: 0; min-width: 0; min-height: 0; display: flex; flex-direction: column; background: var(--wb-surface); overflow: hidden; }
figcaption { flex: none; padding: 3px 8px 0; font-weight: 600; font-size: 11.5px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
figcaption small { font-weight: 400; color: var(--wb-muted); }
canvas { flex: 1 1 0; min-height: 0; width: 100%; touch-action: none; cursor: crosshair; }
.tip { position: absolute; z-index: 5; pointer-events: none; padding: 3px 7px; border-radius: 5px; font-size: 11px; white-space: pre; background: var(--wb-text); color: var(--wb-surface); }
.tip[hidden] { display: none; }
.wait { position: absolute; inset: 0; display: grid; place-content: center; color: var(--wb-muted); } .wait[hidden] { display: none; }`;
// The colours of Okabe and Ito, told apart by any eye.
const BLUE = "#0072b2", SKY = "#56b4e9", VERMILION = "#d55e00", GREEN = "#009e73", PURPLE = "#cc79a7", ORANGE = "#e69f00";
// Viridis, eleven stops.
const VIRIDIS = [[68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140], [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37]];
const shade = (v) => { const f = Math.min(Math.max(v, 0), 1) * 10, i = Math.min(Math.floor(f), 9), w = f - i; return VIRIDIS[i].map((c, k) => Math.round(c + w * (VIRIDIS[i + 1][k] - c))); };
const short = (v) => (v == null || !Number.isFinite(v) ? "–" : Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(1) : String(Number(v.toPrecision(3))));
const { make, send } = workbench;

// Powers of ten within logarithms, as ticks.
const decades = (logs) => {
  const low = Math.ceil(Math.min(...logs)), high = Math.max(...logs), step = high - Math.min(...logs) > 3.5 ? 2 : 1, ticks = [];
  for (let k = low; k <= high; k++) if (k % step === 0) ticks.push([k, `10${[...`${k}`].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`]);
  return ticks;
};

// A header of JSON behind its length, and the arrays it names.
function unpack(view) {
  const length = view.getUint32(0, true), head = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + 4, length));
  const data = JSON.parse(head), start = view.byteOffset + 4 + length;
  const whole = new Float32Array(view.buffer.slice(start, view.byteOffset + view.byteLength));
  for (const one of Object.values(data.arrays)) {
    const count = one.shape.reduce((a, b) => a * b, 1);
    one.values = one.bytes ? new Uint8Array(whole.buffer, 4 * one.at, count) : whole.subarray(one.at, one.at + count);
  }
  return data;
}

// What has come under a name of the model; null before it has.
function received(model, name) {
  const view = model.get(name);
  return view?.byteLength ? unpack(view instanceof DataView ? view : new DataView(view)) : null;
}

// A small picture of which `ink(row, column)` is each pixel's [red, green, blue, alpha].
function raster(rows, columns, ink) {
  const small = new OffscreenCanvas(columns, rows), image = new ImageData(columns, rows);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) image.data.set(ink(r, c), 4 * (r * columns + c));
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

// The largest square of a canvas, and the row and column of a table in one, null outside of it.
const square = (w, h) => { const side = Math.max(20, Math.min(w, h) - 6); return { side, left: (w - side) / 2, top: (h - side) / 2 }; };
const cellAt = (x, y, { cell, left, top }, rows, columns) => {
  const r = Math.floor((y - top) / cell), c = Math.floor((x - left) / cell);
  return r >= 0 && c >= 0 && r < rows && c < columns ? [r, c] : null;
};

// `build(panels, data)` adds the panels of what came; `keys(event)` answers a key and says whether it did.
// `even`: whether all panels are of one size; otherwise the first is the largest. `drawn(panels)` follows each drawing.
function panels({ model, el, label, build, keys = () => false, extra = [], even = false, drawn = () => {} }) {
  const root = make("div", { className: "wb-player", tabIndex: 0, role: "group", ariaLabel: label });
  const play = make("button", { type: "button", className: "wb-play", textContent: "Play" });
  const range = make("input", { type: "range", min: 0, max: 1, step: 1, value: 0, ariaLabel: "Noise level" }), told = make("output");
  const tip = make("div", { className: "tip", hidden: true }), wait = make("div", { className: "wait", textContent: "Nothing to show yet." });
  const grid = make("div", { className: "panels wb-stage" });
  root.append(make("div", { className: "scrub wb-bar wb-time" }, play, range, told, ...extra), grid, tip, wait);
  el.append(make("style", { textContent: PANELS_CSS }), root);
  let timer = 0, shown = [], wishes = 0;
  const self = { root, data: null, level: 0, panel, redraw, scrub, hover, pointed, scrubs, words, text, axes, outline, region, line, band, cursor, corner, bars, put, timed, wish };

  function text(name) { return getComputedStyle(root).getPropertyValue(name).trim() || "#888"; }
  // --- panels: each a caption and a canvas; `draw(g, w, h, panel)` in CSS pixels; `weight`, of how many columns.
  function panel(title, note, draw, weight = 1) {
    const caption = make("figcaption", {}, title, " ", make("small", { textContent: note }));
    caption.title = `${title} ${note}`;
    const canvas = make("canvas", { role: "img", ariaLabel: `${title} ${note}` });
    const one = { canvas, draw, weight, figure: make("figure", {}, caption, canvas) };
    grid.append(one.figure); shown.push(one);
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    return one;
  }
  function paint(one) {
    const { canvas } = one, w = canvas.clientWidth, h = canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (!w || !h) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0); g.clearRect(0, 0, w, h);
    g.font = "10.5px system-ui, sans-serif"; g.lineWidth = 1.5;
    one.draw(g, w, h, one);
  }
  function redraw() {
    const { data, level } = self;
    if (!data) return;
    range.value = level;
    told.textContent = `ρ = ${short(data.rho[level])}   t = ${short(data.t[level])}`;
    range.setAttribute("aria-valuetext", told.textContent);
    for (const one of shown) paint(one);
    root.dataset.drawn = level;
    drawn(self);
  }
  // The first panel stands at the left where the room is wide, above where it is not; on a phone all are
  // beneath each other.
  function layout() {
    const box = grid.getBoundingClientRect(), rest = shown.length - 1;
    if (rest < 0 || !box.width) return;
    if (rest === 0) { grid.style.gridTemplate = "minmax(0, 1fr) / minmax(0, 1fr)"; requestAnimationFrame(redraw); return; }
    if (even) return alike(box);
    const beside = box.width > 700, columns = box.width > 480 ? 2 : 1, rows = Math.ceil(rest / columns);
    grid.style.gridTemplate = beside
      ? `repeat(${rows}, minmax(0, 1fr)) / minmax(0, 1.15fr) repeat(2, minmax(0, .6fr))`
      : `minmax(0, 1.7fr) repeat(${rows}, minmax(0, 1fr)) / repeat(${columns}, minmax(0, 1fr))`;
    shown.forEach(({ figure }, i) => {
      figure.style.gridRow = beside && i === 0 ? `span ${rows}` : "";
      figure.style.gridColumn = columns === 2 && ((!beside && i === 0) || (i === rest && rest % 2)) ? "span 2" : "";
    });
    requestAnimationFrame(redraw);
  }
  // In as many columns as make the panels largest.
  function alike(box) {
    const n = shown.length;
    let best = 1, most = -1;
    for (let columns = 1; columns <= n; columns++) {
      const rows = Math.ceil(n / columns), w = box.width / columns, h = box.height / rows - 20, side = Math.min(w, 1.25 * h);
      if (side > most + 2) { most = side; best = columns; }
    }
    shown.forEach(({ figure }, i) => { figure.style.gridColumn = i === n - 1 && n % best ? `span ${best - n % best + 1}` : ""; });
    grid.style.gridTemplate = `repeat(${Math.ceil(n / best)}, minmax(0, 1fr)) / repeat(${best}, minmax(0, 1fr))`;
    requestAnimationFrame(redraw);
  }
  function scrub(to) { self.level = Math.min(Math.max(to, 0), self.data.rho.length - 1); send(model, { level: self.level }); redraw(); }
  function hover(event, said) {
    tip.hidden = !said; tip.textContent = said;
    const box = root.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = `${Math.min(x + 12, box.width - 190)}px`; tip.style.top = `${Math.max(y - 30, 4)}px`;
  }
  // What is under the pointer, `under(x, y, w, h)` in pixels of the canvas: `says` tells it in a tip, and `pick` is
  // called with it, or with null, where it is pressed.
  function pointed({ canvas }, under, says, pick = () => {}) {
    const hit = (event) => { const box = canvas.getBoundingClientRect(); return under(event.clientX - box.left, event.clientY - box.top, box.width, box.height); };
    canvas.addEventListener("pointerdown", (event) => pick(hit(event)));
    canvas.addEventListener("pointermove", (event) => { const one = hit(event); hover(event, one === null ? "" : says(one)); });
  }
  // Over the logarithm of the noise level, noise left: dragging chooses a level, `says` tells of a logarithm in a tip.
  function scrubs({ canvas }, says = () => "") {
    const logs = self.data.rho.map(Math.log10), low = Math.min(...logs), high = Math.max(...logs);
    const under = (event) => { const box = canvas.getBoundingClientRect(); return high - (event.clientX - box.left - 52) / (box.width - 62) * (high - low); };
    const go = (event) => { const v = under(event); scrub(logs.reduce((best, x, i) => (Math.abs(x - v) < Math.abs(logs[best] - v) ? i : best), 0)); };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); go(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) go(event); else hover(event, says(under(event))); });
  }
  // What the page wants to have computed while it is looked at; counted, so that the same can be wanted again.
  function wish(what) { send(model, { wish: { ...what, count: ++wishes } }); }
  // A panel of words, for what there is no picture of.
  function words(title, said = "It is being computed while it is looked at …") {
    panel(title, "", (g, w, h) => {
      g.fillStyle = text("--wb-muted"); g.textAlign = "center"; g.textBaseline = "middle";
      const lines = [""];
      for (const word of said.split(" ")) { const longer = `${lines.at(-1)} ${word}`.trim(); if (g.measureText(longer).width > w - 16 && lines.at(-1)) lines.push(word); else lines[lines.length - 1] = longer; }
      lines.forEach((line, i) => g.fillText(line, w / 2, h / 2 + 14 * (i - (lines.length - 1) / 2)));
    });
  }
  // --- drawing: axes of a plot in a canvas, with the functions from numbers to pixels; `log`: of y; `flip`: x from
  // right to left.
  function axes(g, w, h, { x, y, ticks, label: said, log = false, flip = false, left = 52 }) {
    const right = 10, top = 8, bottom = 28, wide = w - left - right, high = h - top - bottom;
    const span = (v) => (v - x[0]) / (x[1] - x[0] || 1), X = (v) => left + (flip ? 1 - span(v) : span(v)) * wide;
    const f = log ? (v) => Math.log10(Math.max(v, y[0])) : (v) => v, low = f(y[0]), up = f(y[1]);
    const Y = (v) => top + (1 - (f(v) - low) / (up - low || 1)) * high;
    g.strokeStyle = text("--wb-line"); g.fillStyle = text("--wb-muted"); g.lineWidth = 1; g.textAlign = "right"; g.textBaseline = "middle";
    const count = high < 70 ? 1 : 3, decade = Math.ceil(low), marks = log
      ? [...Array(Math.max(0, Math.floor(up) - decade + 1)).keys()].map((k) => 10 ** (decade + k))
      : [...Array(count + 1).keys()].map((k) => y[0] + (y[1] - y[0]) * k / count);
    const every = Math.ceil(marks.length / 5);
    marks.forEach((v, k) => { if (k % every) return; g.beginPath(); g.moveTo(left, Y(v)); g.lineTo(left + wide, Y(v)); g.stroke(); g.fillText(short(v), left - 4, Y(v), left - 6); });
    g.textAlign = "center"; g.textBaseline = "alphabetic";
    ticks.forEach(([v, name]) => { if (v >= Math.min(...x) - 1e-9 && v <= Math.max(...x) + 1e-9) g.fillText(name, X(v), h - 15); });
    const half = Math.min(g.measureText(said).width, w - 8) / 2;  // centred beneath the plot where there is room
    g.fillText(said, Math.min(Math.max(left + wide / 2, half + 4), w - half - 4), h - 3, w - 8);
    return { X, Y, left, wide, top, high };
  }
  // Two standard errors about each value, as far as the plot goes.
  function band(g, { X, Y, top, high }, xs, ys, se, color) {
    const inside = (y) => Math.min(Math.max(y, top), top + high);
    g.strokeStyle = color; g.globalAlpha = .35; g.lineWidth = 5; g.beginPath();
    ys.forEach((v, i) => { if (v != null && se[i] != null) { g.moveTo(X(xs[i]), inside(Y(v - 2 * se[i]))); g.lineTo(X(xs[i]), inside(Y(v + 2 * se[i]))); } });
    g.stroke(); g.globalAlpha = 1;
  }
  // What there would be if there were nothing to see, between two curves, in grey.
  function region(g, { X, Y }, xs, low, high) {
    g.fillStyle = text("--wb-muted"); g.globalAlpha = .25; g.beginPath();
    xs.forEach((x, i) => g.lineTo(X(x), Y(high[i]))); [...xs.keys()].reverse().forEach((i) => g.lineTo(X(xs[i]), Y(low[i])));
    g.fill(); g.globalAlpha = 1;
  }
  function outline(g, { left, top, side }) { g.strokeStyle = text("--wb-line"); g.lineWidth = 1; g.strokeRect(left + .5, top + .5, side - 1, side - 1); }
  function cursor(g, a, x) { g.strokeStyle = text("--wb-strong"); g.lineWidth = 1; g.beginPath(); g.moveTo(a.X(x), a.top); g.lineTo(a.X(x), a.top + a.high); g.stroke(); }
  function line(g, { X, Y }, xs, ys, color, dashed) {
    g.strokeStyle = color; g.lineWidth = 2; g.setLineDash(dashed ? [5, 4] : []); g.beginPath();
    let pen = false;
    ys.forEach((v, i) => { if (v == null || !Number.isFinite(v)) { pen = false; return; } if (pen) g.lineTo(X(xs[i]), Y(v)); else g.moveTo(X(xs[i]), Y(v)); pen = true; });
    g.stroke(); g.setLineDash([]);
  }
  // The corner of a plot where a box of names covers least of its curves, each a list of places [px].
  function corner({ left, top, wide, high }, width, height, curves) {
    const covered = ([x, y]) => curves.reduce((sum, at) => sum + at.reduce((n, [px, py], i) => {
      const [qx, qy] = at[Math.max(i - 1, 0)];
      return n + [0, .25, .5, .75].filter((f) => { const u = px + f * (qx - px), v = py + f * (qy - py); return u > x && u < x + width && v > y && v < y + height; }).length;
    }, 0), 0);
    const places = [top + 2, top + high - height - 2].flatMap((y) => [[left + 4, y], [left + wide - width - 4, y]]);
    return places.map((at) => [covered(at), at]).reduce((best, one) => (one[0] < best[0] ? one : best))[1];
  }
  // Numbers by name: a dot with two standard errors, a line at the exact value, the null band in grey.
  function bars(g, w, h, { value, se = [], exact = [], low = [], high = [] }, names, colors, room = 82) {
    const all = [...value, ...value.map((v, i) => v + 2 * (se[i] ?? 0)), ...exact, ...high].filter((v) => v != null);
    const most = 1.08 * Math.max(...all, 1e-9), least = Math.min(0, ...value, ...low.filter((v) => v != null)), wide = w - room - 14, step = (h - 18) / names.length;
    const X = (v) => room + (v - least) / (most - least) * wide;
    names.forEach((name, i) => {
      const y = (i + .5) * step;
      if (high[i] != null) { g.fillStyle = text("--wb-muted"); g.globalAlpha = .3; g.fillRect(X(low[i]), y - step * .32, Math.max(2, X(high[i]) - X(low[i])), step * .64); g.globalAlpha = 1; }
      g.fillStyle = text("--wb-text"); g.textAlign = "right"; g.textBaseline = "middle"; g.fillText(name, room - 6, y);
      const color = colors[i % colors.length]; g.strokeStyle = color; g.fillStyle = color;
      if (se[i] != null) { g.globalAlpha = .45; g.lineWidth = 5; g.beginPath(); g.moveTo(X(value[i] - 2 * se[i]), y); g.lineTo(X(value[i] + 2 * se[i]), y); g.stroke(); g.globalAlpha = 1; }
      g.beginPath(); g.arc(X(value[i]), y, 4, 0, 7); g.fill();
      if (exact[i] != null) { g.strokeStyle = text("--wb-text"); g.lineWidth = 2; g.beginPath(); g.moveTo(X(exact[i]), y - 8); g.lineTo(X(exact[i]), y + 8); g.stroke(); }
    });
    g.textAlign = "center"; g.textBaseline = "alphabetic"; g.fillStyle = text("--wb-muted");
    [0, .5, 1].forEach((s, i) => { g.textAlign = ["center", "center", "right"][i]; g.fillText(short(least + s * (most - least)), room + s * wide + (i === 2 ? 10 : 0), h - 4); });
    return { X, step };
  }
  // --- what came
  function show() {
    const data = received(model, "data");
    if (data) put(data);
  }
  // Builds the panels of `data` anew, also where nothing but what is to be seen of it has changed.
  function put(data) {
    const again = data === self.data;
    self.data = data; wait.hidden = true; shown = []; grid.replaceChildren(); tip.hidden = true;
    const last = data.rho.length - 1, wanted = again ? self.level : model.get("level");
    range.max = last;
    self.level = wanted < 0 || wanted > last ? last : wanted;
    build(self, data);
    layout();
  }
  // Whether what is shown has a noise level to choose.
  function timed(is) { play.disabled = range.disabled = !is; told.style.visibility = is ? "" : "hidden"; if (!is) halt(); }
  function halt() { clearInterval(timer); timer = 0; play.textContent = "Play"; }
  function toggle() {
    if (timer) return halt();
    if (!self.data) return;
    if (self.level >= self.data.rho.length - 1) scrub(0);
    play.textContent = "Pause";
    timer = setInterval(() => { if (self.level >= self.data.rho.length - 1) halt(); else scrub(self.level + 1); }, 220);
  }
  play.addEventListener("click", toggle);
  range.addEventListener("input", () => { halt(); scrub(Number(range.value)); });
  root.addEventListener("keydown", (event) => {
    if (!self.data || event.ctrlKey || event.metaKey || event.altKey) return;
    const own = event.composedPath()[0], moves = { ArrowLeft: self.level - 1, ArrowRight: self.level + 1, Home: 0, End: self.data.rho.length - 1 };
    if ((own.tagName === "SELECT" || (own.tagName === "INPUT" && own !== range)) && event.key !== "Escape") return;
    if (event.key in moves) { event.preventDefault(); halt(); scrub(moves[event.key]); }
    else if (event.key === " " && !["BUTTON", "A", "SELECT", "INPUT"].includes(own.tagName)) { event.preventDefault(); toggle(); }
    else if (keys(event)) event.preventDefault();
  });
  const sized = new ResizeObserver(layout); sized.observe(grid);
  const themed = new MutationObserver(() => redraw()); themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  model.on("change:data", show);
  show();
  return { self, end: () => { halt(); sized.disconnect(); themed.disconnect(); } };
}
