// The page "Seeds": a row for each class, a column for each seed, and what the seeds decide. Its views share
// the seed that is lit; parts of them are computed while they are looked at.
const COLOURS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#999933", "#882255", "#44aa99", "#aa4499"];
const SEED_VIEWS = [["seeds", "Seeds"], ["maps", "Maps"], ["fading", "ODE to SDE"], ["models", "Samplers and models"], ["surgery", "Surgery"]];
const OPERATIONS = [["patch", "Transplant a patch"], ["band", "Transplant a band"], ["interpolate", "Interpolate"], ["rotate", "Rotate"], ["average", "Average of all seeds"], ["search", "Search for a target"]];

export default { render({ model, el }) {
  const known = SEED_VIEWS.some(([name]) => name === model.get("look"));
  let lit = null, page = null, view = known ? model.get("look") : "seeds", kappa = 0, parts = {}, wished = "", live = null, onPatch = false;
  const cut = { operation: "patch", receiver: 0, donor: 1, rows: [0, 4], columns: [0, 4], band: "", amount: .5 };
  const follow = make("a", { textContent: "Follow", hidden: true, target: "_blank", rel: "noopener" });
  const release = make("button", { type: "button", textContent: "Let go", title: "Escape", disabled: true });
  function choose(seed) {
    const { data } = page.self, there = data.all.indexOf(seed);
    lit = there < 0 ? null : seed;
    follow.hidden = lit === null; release.disabled = lit === null;
    if (lit !== null) {
      follow.textContent = `Follow seed ${lit}`;
      const query = new URLSearchParams(data.query); query.set("seeds.first", lit); query.set("seeds.count", 1);
      follow.href = `./trajectories?${query}`;
    }
    page.self.root.dataset.seed = lit ?? "";
    page.self.redraw();
  }
  const toggle = (seed) => choose(seed === lit ? null : seed);
  release.addEventListener("click", () => choose(null));

  // --- a second bar: which view, and what that view lets its reader change
  const choice = (name, list) => make("select", { ariaLabel: name }, ...list.map(([value, textContent]) => make("option", { value, textContent })));
  const labelled = (name, control) => make("label", {}, name, control);
  const number = (name, min, value) => make("input", { type: "number", min, value, step: 1, ariaLabel: name });
  const views = choice("View", SEED_VIEWS), operation = choice("Operation", OPERATIONS), bandOf = choice("Band", []);
  const slide = make("input", { type: "range", min: 0, max: 1, step: 1, value: 0, ariaLabel: "Fresh noise" }), amount = make("input", { type: "range", min: 0, max: 1, step: .05, value: .5, ariaLabel: "Amount" });
  const receiver = number("Receiver", 0, 0), donor = number("Donor", 0, 1), told = make("output"), facts = make("p");
  const fresh = labelled("Fresh noise", slide), of = labelled("Receiver", receiver), from = labelled("Donor", donor), by = labelled("Amount", amount);
  const aside = make("div", { className: "scrub aside" }, labelled("View", views), fresh, told, operation, of, from, bandOf, by, facts);
  views.value = view;
  function look(at) { view = at; views.value = at; send(model, { look: at }); if (page.self.data) page.self.put(page.self.data); }
  views.addEventListener("change", () => look(views.value));
  slide.addEventListener("input", () => { kappa = Number(slide.value); dress(); page.self.redraw(); });
  for (const [one, key] of [[operation, "operation"], [bandOf, "band"]]) one.addEventListener("change", () => { cut[key] = one.value; operate(); });
  for (const [one, key] of [[receiver, "receiver"], [donor, "donor"]]) one.addEventListener("change", () => { cut[key] = Math.max(0, Math.floor(Number(one.value)) || 0); one.value = cut[key]; operate(); });
  amount.addEventListener("change", () => { cut.amount = Number(amount.value); operate(); });
  // What is not there yet is asked for, once.
  function wish(what) { wished = what.part; page.self.wish(what); }
  function need(name) { if (!parts[name] && wished !== name) { if (name === "surgery") operate(); else wish({ part: name }); } return parts[name]; }
  function operate() { dress(); wish({ part: "surgery", ...cut }); }
  function dress() {
    const part = parts[view], image = page.self.data?.kind === "image", fading = view === "fading" && part, cutting = view === "surgery", op = cut.operation;
    fresh.hidden = !fading; told.hidden = !fading; operation.hidden = of.hidden = !cutting; from.hidden = !cutting || op === "average"; bandOf.hidden = !cutting || op !== "band"; by.hidden = !cutting || !["interpolate", "rotate"].includes(op);
    if (fading) { slide.max = part.kappa.length - 1; kappa = Math.min(kappa, part.kappa.length - 1); slide.value = kappa; told.textContent = `κ = ${short(part.kappa[kappa])}: seed's share ${short(part.icc.value[kappa])}`; slide.setAttribute("aria-valuetext", told.textContent); page.self.root.dataset.kappa = kappa; }
    operation.options[0].disabled = !image; facts.textContent = part ? part.facts.join(" ") : ""; facts.title = facts.textContent;
  }

  // Images of values at an offset of an array, from 1 (black) to -1 (white).
  function painter(rows, columns) {
    const small = new OffscreenCanvas(columns, rows), at = small.getContext("2d"), image = new ImageData(columns, rows);
    return (g, values, off, x, y, side, reach = 1) => {
      for (let k = 0; k < rows * columns; k++) { const v = Math.round(127.5 * (1 - Math.min(Math.max(values[off + k] / reach, -1), 1))); image.data.set([v, v, v, 255], 4 * k); }
      at.putImageData(image, 0, 0); g.imageSmoothingEnabled = false;
      g.drawImage(small, x, y, side * Math.min(1, columns / rows), side * Math.min(1, rows / columns));
    };
  }
  // A table of images: names of rows and columns, where a cell is, and what it shows.
  function table(self, title, note, rowNames, columnNames, draw, { lights = () => false, pick = () => {}, says = () => "" } = {}) {
    const wide = Math.max(...rowNames.map((n) => n.length)) > 4 ? 72 : 22;
    const place = (w, h) => { const top = 16, cell = Math.max(4, Math.min((w - wide - 6) / columnNames.length, (h - top - 6) / rowNames.length)); return { left: wide, top, cell }; };
    const one = self.panel(title, note, (g, w, h) => {
      const { left, top, cell } = place(w, h);
      rowNames.forEach((_, r) => columnNames.forEach((_, c) => draw(g, r, c, left + c * cell + 1, top + r * cell + 1, cell - 2)));
      g.globalAlpha = 1; g.fillStyle = self.text("--wb-muted"); g.textBaseline = "middle"; g.textAlign = "right";
      rowNames.forEach((name, r) => g.fillText(name, left - 5, top + (r + .5) * cell, left - 6));
      g.textAlign = "center"; const every = Math.ceil(18 / cell);
      columnNames.forEach((name, c) => { if (c % every === 0) g.fillText(name, left + (c + .5) * cell, 9, every * cell - 2); });
      columnNames.forEach((_, c) => { if (lights(c)) { g.strokeStyle = PURPLE; g.lineWidth = 2; g.strokeRect(left + c * cell, top, cell, rowNames.length * cell); } });
    });
    self.pointed(one, (x, y, w, h) => cellAt(x, y, place(w, h), rowNames.length, columnNames.length), (hit) => says(...hit), (hit) => { if (hit) pick(...hit); });
  }
  const plural = (list) => list.map((one) => String(one));
  function sheet(self, data, states = data.arrays.states, at = () => self.level, title = "Seeds across, classes down", note = "the same noise in every class") {
    const [, classes, seeds, rows, columns] = states.shape, paint = painter(rows, columns), shown = data.seeds.slice(0, seeds);
    table(self, title, note, data.classes.slice(0, classes).map((name) => name.slice(0, 3)), plural(shown), (g, c, s, x, y, side) => {
      g.globalAlpha = lit === null || shown[s] === lit ? 1 : .4;
      paint(g, states.values, ((at() * classes + c) * seeds + s) * rows * columns, x, y, side);
    }, { lights: (s) => shown[s] === lit, pick: (_, s) => toggle(shown[s]), says: (c, s) => `seed ${shown[s]}, class ${data.classes[c]}` });
  }
  function plane(self, data, states = data.arrays.states, at = () => self.level, title = "The same seeds in every class", note = "a colour is a class, a line a seed") {
    const [, classes, seeds, ...event] = states.shape, { values } = states, d = event.reduce((a, b) => a * b, 1);
    // Of more dimensions the first two; of one, seeds beneath each other.
    const reach = 1.1 * values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9);
    const where = (w, h, c, s) => { const side = Math.min(w, h) - 8, k = d * ((at() * classes + c) * seeds + s), up = d > 1 ? values[k + 1] / reach : 1 - 2 * (s + .5) / seeds; return [w / 2 + values[k] / reach * side / 2, h / 2 - up * side / 2]; };
    const one = self.panel(title, note, (g, w, h) => {
      for (let s = 0; s < seeds; s++) {
        const on = lit === null || data.seeds[s] === lit;
        g.strokeStyle = on && lit !== null ? PURPLE : self.text("--wb-line"); g.lineWidth = on && lit !== null ? 2 : 1; g.beginPath();
        for (let c = 0; c < classes; c++) { const [x, y] = where(w, h, c, s); if (c) g.lineTo(x, y); else g.moveTo(x, y); }
        g.stroke();
      }
      for (let s = 0; s < seeds; s++) for (let c = 0; c < classes; c++) {
        g.globalAlpha = lit === null || data.seeds[s] === lit ? 1 : .25; g.fillStyle = COLOURS[c % 10];
        const [x, y] = where(w, h, c, s); g.beginPath(); g.arc(x, y, 3, 0, 7); g.fill();
      }
      g.globalAlpha = 1;
    });
    const under = (px, py, w, h) => {
      let best = null, near = 14;
      for (let s = 0; s < seeds; s++) for (let c = 0; c < classes; c++) { const [x, y] = where(w, h, c, s), d = Math.hypot(x - px, y - py); if (d < near) { near = d; best = [data.seeds[s], data.classes[c]]; } }
      return best;
    };
    self.pointed(one, under, ([seed, name]) => `seed ${seed}, class ${name}`, (hit) => toggle(hit ? hit[0] : null));
  }
  function strip(self, data) {
    if (!data.best) return;
    const [classes, seeds] = data.arrays.quality.shape, { values } = data.arrays.quality;
    const mean = data.all.map((_, s) => { let sum = 0; for (let c = 0; c < classes; c++) sum += values[c * seeds + s]; return sum / classes; });
    const order = [...mean.keys()].sort((a, b) => mean[b] - mean[a]);
    const said = `best ${short(data.best.value[0])}, chance up to ${short(data.best.high[0])}; p = ${short(data.p)}`;
    let axis = null;
    const one = self.panel("Quality by seed", `best first; ${said}`, (g, w, h) => {
      const high = 1.05 * Math.max(...mean, data.best.high[0], 1), low = 1.05 * Math.min(...mean, -1);
      const a = axis = self.axes(g, w, h, { x: [-.5, seeds - .5], y: [low, high], ticks: [], label: "seed; standard deviations" });
      g.fillStyle = self.text("--wb-muted"); g.globalAlpha = .25; g.fillRect(a.left, a.Y(data.best.high[0]), a.wide, a.Y(data.best.low[0]) - a.Y(data.best.high[0])); g.globalAlpha = 1;
      g.save(); g.beginPath(); g.rect(a.left, a.top, a.wide, a.high); g.clip();
      order.forEach((s, i) => {
        const on = data.all[s] === lit;
        g.fillStyle = on ? PURPLE : self.text("--wb-strong"); g.globalAlpha = on ? .8 : .22;
        for (let c = 0; c < classes; c++) { g.beginPath(); g.arc(a.X(i), a.Y(values[c * seeds + s]), on ? 2.2 : 1.4, 0, 7); g.fill(); }
      });
      g.globalAlpha = 1; g.restore();
      order.forEach((s, i) => { const on = data.all[s] === lit; g.fillStyle = on ? PURPLE : BLUE; g.beginPath(); g.arc(a.X(i), a.Y(mean[s]), on ? 5 : 2.6, 0, 7); g.fill(); });
    });
    const under = (x) => { const i = axis ? Math.round((x - axis.left) / axis.wide * seeds - .5) : -1; return i >= 0 && i < seeds ? order[i] : null; };
    self.pointed(one, under, (s) => `seed ${data.all[s]}: ${short(mean[s])} standard deviations`, (s) => { if (s !== null) toggle(data.all[s]); });
  }
  function share(self, data) {
    if (data.kind !== "image") return;
    const [rows, columns] = data.arrays.share.shape.slice(-2), { values } = data.arrays.share;
    const room = (w, h) => { const cell = Math.min((w - 40) / columns, (h - 10) / rows); return { cell, left: (w - 34 - cell * columns) / 2, top: (h - cell * rows) / 2 }; };
    const one = self.panel("Seed's share by pixel", "of the variance within classes", (g, w, h) => {
      const { cell, left, top } = room(w, h);
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) { const v = values[r * columns + c]; g.fillStyle = Number.isFinite(v) ? `rgb(${shade(v)})` : self.text("--wb-line"); g.fillRect(left + c * cell, top + r * cell, cell + .5, cell + .5); }
      const bar = left + cell * columns + 8; for (let k = 0; k < 40; k++) { g.fillStyle = `rgb(${shade(1 - k / 39)})`; g.fillRect(bar, top + k * rows * cell / 40, 8, rows * cell / 40 + 1); }
      g.fillStyle = self.text("--wb-muted"); g.textAlign = "left"; g.textBaseline = "middle"; g.fillText("1", bar + 11, top + 5); g.fillText("0", bar + 11, top + rows * cell - 5);
    });
    self.pointed(one, (x, y, w, h) => cellAt(x, y, room(w, h), rows, columns), ([r, c]) => `row ${r}, column ${c}: ${short(values[r * columns + c])}`);
  }
  function kept(self, data) {
    const r = data.retention;
    if (!r) return;
    self.panel("Noise kept", `by mode; ± 2 se${r.exact ? ", line exact" : ""}, grey chance`, (g, w, h) => {
      const n = r.value.length, xs = r.value.map((_, i) => i + 1), every = Math.max(1, Math.ceil(n / 6));
      const a = self.axes(g, w, h, { x: [.5, n + .5], y: [Math.min(-.1, ...r.value, ...r.low), 1.05], ticks: xs.filter((v) => (v - 1) % every === 0).map((v) => [v, v]), label: "mode, the largest variance first" });
      g.fillStyle = self.text("--wb-muted"); g.globalAlpha = .25; g.fillRect(a.left, a.Y(r.high[0]), a.wide, a.Y(r.low[0]) - a.Y(r.high[0])); g.globalAlpha = .45;
      g.strokeStyle = SKY; g.lineWidth = 3; g.beginPath(); xs.forEach((x, i) => { g.moveTo(a.X(x), a.Y(Math.max(-1, r.value[i] - 2 * r.se[i]))); g.lineTo(a.X(x), a.Y(Math.min(1.05, r.value[i] + 2 * r.se[i]))); }); g.stroke(); g.globalAlpha = 1;
      g.fillStyle = BLUE; xs.forEach((x, i) => { g.beginPath(); g.arc(a.X(x), a.Y(r.value[i]), 2.4, 0, 7); g.fill(); });
      if (r.exact) self.line(g, a, xs, r.exact, VERMILION);
    });
  }
  const grid = (self, data, ...more) => (data.kind === "image" && data.arrays.states.shape.length === 5 ? sheet : plane)(self, data, ...more);
  // --- maps
  function confusion(self, data) {
    const [n] = data.arrays.confusion.shape, { values } = data.arrays.confusion;
    const place = (w, h) => { const cell = Math.min((w - 62) / n, (h - 36) / n); return { cell, left: 44 + (w - 62 - n * cell) / 2, top: 4 }; };
    const one = self.panel("Whom a seed is taken for", `share of its samples; ${short(100 * data.named.value[0])} % right`, (g, w, h) => {
      const { cell, left, top } = place(w, h);
      for (let r = 0; r < n; r++) for (let c = 0; c < n; c++) { g.fillStyle = `rgb(${shade(values[r * n + c])})`; g.fillRect(left + c * cell, top + r * cell, cell + .5, cell + .5); }
      const i = data.all.indexOf(lit); if (i >= 0 && i < n) { g.strokeStyle = PURPLE; g.lineWidth = 2; g.strokeRect(left, top + i * cell, n * cell, Math.max(cell, 3)); }
      g.fillStyle = self.text("--wb-muted"); g.textAlign = "center"; g.textBaseline = "alphabetic"; g.fillText("taken for", left + n * cell / 2, top + n * cell + 13);
      g.save(); g.translate(left - 8, top + n * cell / 2); g.rotate(-Math.PI / 2); g.fillText("seed", 0, 0); g.restore();
    });
    self.pointed(one, (x, y, w, h) => cellAt(x, y, place(w, h), n, n), ([r, c]) => `seed ${data.all[r]} taken for ${data.all[c]}: ${short(values[r * n + c])}`, (hit) => { if (hit) toggle(data.all[hit[0]]); });
  }
  function frequencies(self, data) {
    if (data.kind !== "image") return;
    const [rows, columns] = data.arrays.share.shape.slice(-2), half = Math.floor(columns / 2) + 1, least = Math.min(rows, columns), { names, value } = data.properties;
    const octave = (r) => (r === 0 ? "DC" : r > least / 2 ? `>${least / 2}` : data.bands.find((name) => { const [low, high = low] = name.split("-").map(Number); return r >= low && r <= high; }));
    const among = (r) => { let name = octave(r); if (!data.bands.includes(name)) name = data.bands[data.bands.length - 1]; return name; };
    const room = (w, h) => { const cell = Math.min((w - 30) / half, (h - 32) / rows); return { cell, left: (w - cell * half) / 2, top: 6 }; };
    const at = (r, c) => { const down = r - Math.floor(rows / 2), name = among(Math.round(least * Math.hypot(down / rows, c / columns))); return [name, value[names.indexOf(`band ${name}`)]]; };
    const one = self.panel("Seed's share by band", "of spatial frequency, cycles per side", (g, w, h) => {
      const { cell, left, top } = room(w, h);
      for (let r = 0; r < rows; r++) for (let c = 0; c < half; c++) { g.fillStyle = `rgb(${shade(at(r, c)[1])})`; g.fillRect(left + c * cell, top + r * cell, cell - 1, cell - 1); }
      g.fillStyle = self.text("--wb-muted"); g.textAlign = "center"; g.textBaseline = "alphabetic"; g.fillText("across; down from the middle", left + half * cell / 2, top + rows * cell + 14);
    });
    self.pointed(one, (x, y, w, h) => cellAt(x, y, room(w, h), rows, half), ([r, c]) => `band ${at(r, c)[0]}: ${short(at(r, c)[1])}`);
  }
  // --- fresh noise
  function faded(self, data, part) {
    grid(self, data, part.arrays.faded, () => kappa, "Seeds across, classes down", "their start alone is the same in every class");
    const x = part.kappa.map(Math.sqrt), ticks = part.kappa.map((k, i) => [x[i], k >= .1 || k === 0 ? short(k) : ""]);
    const curve = (title, note, one, exact) => {
      const panel = self.panel(title, note, (g, w, h) => {
        const a = self.axes(g, w, h, { x: [-.03, 1.03], y: [Math.min(-.05, ...one.value, ...one.low), 1.05], ticks, label: "fresh noise κ: 0 ODE, 1 SDE" });
        self.region(g, a, x, one.low, one.high);
        if (exact) self.line(g, a, x, exact, VERMILION);
        self.band(g, a, x, one.value, one.se, SKY);
        g.fillStyle = BLUE; x.forEach((v, i) => { g.beginPath(); g.arc(a.X(v), a.Y(one.value[i]), i === kappa ? 5 : 3, 0, 7); g.fill(); });
        self.cursor(g, a, x[kappa]); panel.at = a;
      });
      panel.canvas.addEventListener("pointerdown", (event) => { const box = panel.canvas.getBoundingClientRect(), px = event.clientX - box.left; let best = 0; x.forEach((v, i) => { if (Math.abs(panel.at.X(v) - px) < Math.abs(panel.at.X(x[best]) - px)) best = i; }); kappa = best; dress(); self.redraw(); });
    };
    curve("Seed's share", `± 2 se${part.icc.exact ? ", line exact" : ""}, grey chance`, part.icc, part.icc.exact);
    curve("Seeds named", `of ${part.seeds} by their start; grey chance`, part.told);
    if (part.arrays.kept) {
      const [rows, n] = part.arrays.kept.shape, { values } = part.arrays.kept, xs = [...Array(n).keys()].map((i) => i + 1);
      self.panel("Start kept by each mode", "(1 + ρ²/λ)^(−κ/2), exact", (g, w, h) => {
        const every = Math.max(1, Math.ceil(n / 6)), a = self.axes(g, w, h, { x: [.5, n + .5], y: [0, 1.05], ticks: xs.filter((v) => (v - 1) % every === 0).map((v) => [v, v]), label: "mode, the largest variance first" });
        for (let k = 0; k < rows; k++) { g.globalAlpha = k === kappa ? 1 : .2; self.line(g, a, xs, [...values.subarray(k * n, (k + 1) * n)], VERMILION); } g.globalAlpha = 1;
      });
    }
  }
  // --- one seed under other samplers and models
  function followed(self, data, part) {
    const [runs, levels, classes, seeds, ...event] = part.arrays.followed.shape, { values } = part.arrays.followed, size = event.reduce((a, b) => a * b, 1);
    const who = () => Math.max(0, Math.min(seeds - 1, data.seeds.indexOf(lit))), at = () => Math.round(self.level / Math.max(1, data.rho.length - 1) * (levels - 1));
    const off = (r, c) => (((r * levels + at()) * classes + c) * seeds + who()) * size, note = "of the seed that is lit, at this share of the steps";
    if (event.length === 2) {
      const paint = painter(...event);
      table(self, "One seed everywhere", note, part.runs, data.classes.map((name) => name.slice(0, 3)), (g, r, c, x, y, side) => paint(g, values, off(r, c), x, y, side), { says: (r, c) => `${part.runs[r]}, class ${data.classes[c]}` });
    } else {
      const reach = 1.1 * values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9);
      self.panel("One seed everywhere", `${note}; a colour is a run, a line joins its classes`, (g, w, h) => {
        const side = Math.min(w, h) - 8;
        for (let r = 0; r < runs; r++) { g.strokeStyle = g.fillStyle = COLOURS[r % 10]; g.lineWidth = 1; g.beginPath(); const xy = [...Array(classes).keys()].map((c) => { const k = off(r, c); return [w / 2 + values[k] / reach * side / 2, h / 2 - (size > 1 ? values[k + 1] : 0) / reach * side / 2]; }); xy.forEach(([x, y]) => g.lineTo(x, y)); g.globalAlpha = .4; g.stroke(); g.globalAlpha = 1; xy.forEach(([x, y]) => { g.beginPath(); g.arc(x, y, 3, 0, 7); g.fill(); }); g.textAlign = "left"; g.fillText(part.runs[r], 6, 12 + 12 * r); }
      });
    }
    const room = 78, bars = (title, one) => self.panel(title, "with this run; ± 2 se, grey chance", (g, w, h) => self.bars(g, w, h, one, one.names, [BLUE], room));
    bars(`Rank by ${part.score} (Spearman)`, part.spearman); bars("Rank (Kendall)", part.kendall); bars("Cosine of the same seed's samples", part.cosine);
  }
  // --- surgery: a patch is drawn on the receiver's noise
  function surgery(self, data, part) {
    const names = ["receiver", "donor", "result"], shape = part?.arrays.noise?.shape, image = data.kind === "image", [rows, columns] = data.arrays.states.shape.slice(-2);
    if (image) {
      const paint = painter(rows, columns), place = (w, h) => ({ cell: Math.min((w - 40) / 3 / columns, (h - 26) / rows), top: 18 }), X = (w, i) => { const { cell } = place(w, 1e9); return 10 + i * ((w - 20) / 3) + 0 * cell; };
      const classes = part?.arrays.outcomes.shape[1], size = rows * columns;
      const less = new Float32Array(size || 1), labels = [...names, "change"];
      if (part) table(self, "Samples", "of each class from each noise; result less receiver", labels, data.classes.map((name) => name.slice(0, 3)), (g, r, c, x, y, side) => {
        const { values } = part.arrays.outcomes;
        if (r < 3) return paint(g, values, (r * classes + c) * size, x, y, side);
        for (let k = 0; k < size; k++) less[k] = values[(2 * classes + c) * size + k] - values[c * size + k];
        paint(g, less, 0, x, y, side, 1.5);
      }, { says: (r, c) => `${labels[r]}, class ${data.classes[c]}` });
      else self.words("Samples");
      let drag = null;
      const one = self.panel("Initial noise", cut.operation === "patch" ? "drag a patch on the receiver; keys: arrows move, Shift sizes" : "", (g, w, h) => {
        const { cell, top } = place(w, h); g.fillStyle = self.text("--wb-muted"); g.textAlign = "left"; g.textBaseline = "middle";
        names.forEach((name, i) => { g.fillText(name, X(w, i), 9); if (shape) paint(g, part.arrays.noise.values, i * rows * columns, X(w, i), top, cell * Math.max(rows, columns), 2.5); });
        if (cut.operation !== "patch") return;
        [0, 2].forEach((i) => { g.strokeStyle = PURPLE; g.lineWidth = 2; g.strokeRect(X(w, i) + cut.columns[0] * cell, top + cut.rows[0] * cell, (cut.columns[1] - cut.columns[0]) * cell, (cut.rows[1] - cut.rows[0]) * cell); });
      });
      const under = (event) => { const box = one.canvas.getBoundingClientRect(), { cell, top } = place(box.width, box.height), clamp = (v, most) => Math.min(Math.max(v, 0), most - 1); return [clamp(Math.floor((event.clientY - box.top - top) / cell), rows), clamp(Math.floor((event.clientX - box.left - X(box.width, 0)) / cell), columns)]; };
      one.canvas.tabIndex = 0; one.canvas.role = "application"; one.canvas.dataset.patch = "";
      one.canvas.addEventListener("pointerdown", (event) => { if (cut.operation !== "patch") return; one.canvas.setPointerCapture(event.pointerId); drag = under(event); });
      one.canvas.addEventListener("pointermove", (event) => { if (!drag) return; const [r, c] = under(event); cut.rows = [Math.min(drag[0], r), Math.max(drag[0], r) + 1]; cut.columns = [Math.min(drag[1], c), Math.max(drag[1], c) + 1]; self.redraw(); });
      one.canvas.addEventListener("pointerup", () => { if (drag) { drag = null; operate(); } });
      one.canvas.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step || cut.operation !== "patch") return;
        event.preventDefault(); event.stopPropagation(); onPatch = true;
        [[cut.rows, rows, step[0]], [cut.columns, columns, step[1]]].forEach(([ends, most, by]) => {
          if (event.shiftKey) ends[1] = Math.min(Math.max(ends[1] + by, ends[0] + 1), most);
          else if (ends[0] + by >= 0 && ends[1] + by <= most) { ends[0] += by; ends[1] += by; }
        });
        self.redraw(); operate();
      });
      if (onPatch) { onPatch = false; requestAnimationFrame(() => one.canvas.focus()); }   // who moves it by keys goes on
      return;
    }
    if (!part) return self.words("Samples of each noise");
    for (const [title, key, note] of [["Samples of each noise", "outcomes", "a colour is a class; a ring the receiver, a dot the result"], ["Initial noise", "noise", ""]]) {
      const { shape: [, ...rest], values } = part.arrays[key], classes = key === "noise" ? 1 : rest[0], size = values.length / 3 / classes, reach = 1.1 * values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9);
      self.panel(title, note, (g, w, h) => {
        const side = Math.min(w, h) - 8, xy = (k, c) => { const o = (k * classes + c) * size; return [w / 2 + values[o] / reach * side / 2, h / 2 - (size > 1 ? values[o + 1] : 0) / reach * side / 2]; };
        for (let c = 0; c < classes; c++) {
          g.strokeStyle = g.fillStyle = COLOURS[c % 10]; g.lineWidth = 1; g.beginPath(); g.moveTo(...xy(0, c)); g.lineTo(...xy(2, c)); g.stroke();
          g.beginPath(); g.arc(...xy(0, c), 5, 0, 7); g.stroke(); g.beginPath(); g.arc(...xy(2, c), 4, 0, 7); g.fill();
          if (key === "noise") { g.beginPath(); g.arc(...xy(1, c), 5, 0, 7); g.stroke(); g.fillStyle = self.text("--wb-muted"); g.textAlign = "left"; names.forEach((name, k) => { const [x, y] = xy(k, c); g.fillText(name, x + 8, y); }); }
        }
      });
    }
  }
  const DRAWN = {
    seeds(self, data) {
      grid(self, data); strip(self, data);
      self.panel("Variance", `ICC ${short(data.icc.value[0])} ± ${short(2 * data.icc.se[0])}${data.icc.exact ? `, exact ${short(data.icc.exact[0])}` : ""}; chance up to ${short(data.icc.high[0])}; other classes ${short(data.interval[0])} to ${short(data.interval[1])}`, (g, w, h) => self.bars(g, w, h, data.parts, data.parts.names, [GREEN, BLUE, ORANGE]));
      self.panel("Seeds named", `from samples of other classes; chance ${short(data.chance)}`, (g, w, h) => self.bars(g, w, h, data.named, data.named.names, [BLUE, VERMILION, GREEN]));
      share(self, data); kept(self, data);
    },
    maps(self, data) {
      self.panel("Seed's share by property", `of the variance within classes; ± 2 se${data.properties.exact ? ", line exact" : ""}, grey chance`, (g, w, h) => self.bars(g, w, h, data.properties, data.properties.names, [BLUE], 104));
      confusion(self, data); share(self, data); frequencies(self, data);
    },
    fading(self, data) { const part = need("fading"); if (part) faded(self, data, part); else self.words("Fresh noise"); },
    models(self, data) { const part = need("models"); if (part) followed(self, data, part); else self.words("Other samplers and models"); },
    surgery(self, data) { surgery(self, data, need("surgery")); },
  };
  let fitted = "";
  // What can be cut of samples of this kind.
  function fit(data) {
    const [rows, columns] = data.arrays.states.shape.slice(-2);
    if (data.kind !== "image") { if (cut.operation === "patch") cut.operation = "band"; }
    else { cut.rows = [0, Math.max(1, rows >> 1)]; cut.columns = [0, Math.max(1, columns >> 1)]; }
    cut.receiver = data.all[0]; cut.donor = data.all[Math.min(1, data.all.length - 1)]; receiver.value = cut.receiver; donor.value = cut.donor; operation.value = cut.operation;
  }
  model.on("change:part", () => {
    const part = received(model, "part"), { data } = page.self;
    if (!part || !data || part.of !== data.of) return;
    parts[part.part] = part; if (wished === part.part) wished = ""; page.self.root.dataset.part = part.part;
    if (view === part.part) page.self.put(data);
  });
  // Rows of a study whose other numbers are not there yet.
  model.on("change:row", () => {
    const row = received(model, "row");
    if (!row || page.self.data?.of === row.of) return;
    const [seeds, ...event] = row.arrays.states.shape, size = seeds * event.reduce((a, b) => a * b, 1);
    if (live?.mark !== row.of) live = { live: true, of: "", mark: row.of, kind: row.kind, rho: [0], t: [0], classes: Array(row.count).fill("…"), seeds: row.seeds, all: row.seeds, query: "", arrays: { states: { shape: [1, row.count, seeds, ...event], values: new Float32Array(row.count * size).fill(-1) } } };
    live.arrays.states.values.set(row.arrays.states.values, row.index * size); live.classes[row.index] = row.class;
    page.self.put(live); page.self.root.dataset.rows = row.index + 1;
  });
  page = panels({
    model, el, label: "Seeds", extra: [follow, release],
    build(self, data) {
      page ??= { self }; aside.hidden = Boolean(data.live);
      if (data.live) { self.timed(false); const done = data.classes.filter((name) => name !== "…").length; grid(self, data, data.arrays.states, () => 0, `${done} of ${data.classes.length} classes`, "the others are being run"); return; }
      if (data.of !== fitted) { fitted = data.of; parts = {}; wished = ""; bandOf.replaceChildren(...data.bands.map((name) => make("option", { value: name, textContent: `band ${name}` }))); if (!data.bands.includes(cut.band)) cut.band = data.bands[Math.min(1, data.bands.length - 1)]; bandOf.value = cut.band; fit(data); }
      if (lit !== null && !data.all.includes(lit)) { lit = null; follow.hidden = true; release.disabled = true; }
      self.timed(view === "seeds" || view === "models"); self.root.dataset.view = view;
      DRAWN[view](self, data); dress();
    },
    keys(event) {
      const { data } = page.self, at = data.all.indexOf(lit);
      if (data.live) return false;
      if (event.key === "v" || event.key === "V") { const n = SEED_VIEWS.length, i = SEED_VIEWS.findIndex(([name]) => name === view); look(SEED_VIEWS[(i + (event.key === "v" ? 1 : n - 1)) % n][0]); return true; }
      if (view === "fading" && parts.fading && (event.key === "+" || event.key === "-")) { kappa = Math.min(Math.max(kappa + (event.key === "+" ? 1 : -1), 0), parts.fading.kappa.length - 1); dress(); page.self.redraw(); return true; }
      if (event.key === "ArrowDown") choose(data.all[Math.min(at + 1, data.all.length - 1)]);
      else if (event.key === "ArrowUp") choose(at > 0 ? data.all[at - 1] : null);
      else if (event.key === "Escape") choose(null);
      else return false;
      return true;
    },
  });
  page.self.root.insertBefore(aside, page.self.root.children[1]);
  return page.end;
} };
