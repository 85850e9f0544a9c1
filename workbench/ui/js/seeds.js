// The page "Seeds": a row for each class, a column for each seed, and what the seeds decide.
const COLOURS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#999933", "#882255", "#44aa99", "#aa4499"];

export default { render({ model, el }) {
  let lit = null, page = null;
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
  release.addEventListener("click", () => choose(null));

  function sheet(self, data) {
    const [, classes, seeds, rows, columns] = data.arrays.states.shape, size = rows * columns;
    const small = new OffscreenCanvas(columns, rows), at = small.getContext("2d"), image = new ImageData(columns, rows);
    const place = (w, h) => { const left = 22, top = 16, cell = Math.max(4, Math.min((w - left - 6) / seeds, (h - top - 6) / classes)); return { left, top, cell }; };
    const one = self.panel("Seeds across, classes down", "the same noise in every class", (g, w, h) => {
      const { left, top, cell } = place(w, h), { values } = data.arrays.states;
      g.imageSmoothingEnabled = false;
      for (let c = 0; c < classes; c++) for (let s = 0; s < seeds; s++) {
        const off = ((self.level * classes + c) * seeds + s) * size;
        for (let k = 0; k < size; k++) { const v = Math.round(127.5 * (1 - Math.min(Math.max(values[off + k], -1), 1))); image.data.set([v, v, v, 255], 4 * k); }
        at.putImageData(image, 0, 0);
        g.globalAlpha = lit === null || data.seeds[s] === lit ? 1 : .4;
        g.drawImage(small, left + s * cell + 1, top + c * cell + 1, cell - 2, cell - 2);
      }
      g.globalAlpha = 1; g.fillStyle = self.text("--wb-muted"); g.textBaseline = "middle"; g.textAlign = "right";
      data.classes.forEach((name, c) => g.fillText(name.slice(0, 3), left - 5, top + (c + .5) * cell));
      g.textAlign = "center";
      data.seeds.forEach((seed, s) => { if (cell > 17 || s % 2 === 0) g.fillText(seed, left + (s + .5) * cell, 9); });
      const s = data.seeds.indexOf(lit);
      if (s >= 0) { g.strokeStyle = PURPLE; g.lineWidth = 2; g.strokeRect(left + s * cell, top, cell, classes * cell); }
    });
    const under = (event) => { const box = one.canvas.getBoundingClientRect(), { left, cell } = place(box.width, box.height), s = Math.floor((event.clientX - box.left - left) / cell); return s >= 0 && s < seeds ? data.seeds[s] : null; };
    one.canvas.addEventListener("pointerdown", (event) => { const seed = under(event); choose(seed === lit ? null : seed); });
    one.canvas.addEventListener("pointermove", (event) => { const seed = under(event); self.hover(event, seed === null ? "" : `seed ${seed}`); });
  }
  function plane(self, data) {
    const [, classes, seeds, ...event] = data.arrays.states.shape, { values } = data.arrays.states, d = event.reduce((a, b) => a * b, 1);
    // Of more dimensions the first two; of one, seeds beneath each other.
    const reach = 1.1 * values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9);
    const where = (w, h, c, s) => { const side = Math.min(w, h) - 8, k = d * ((self.level * classes + c) * seeds + s), up = d > 1 ? values[k + 1] / reach : 1 - 2 * (s + .5) / seeds; return [w / 2 + values[k] / reach * side / 2, h / 2 - up * side / 2]; };
    const one = self.panel("The same seeds in every class", "a colour is a class, a line a seed", (g, w, h) => {
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
    const under = (event) => {
      const box = one.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
      let best = null, near = 14;
      for (let s = 0; s < seeds; s++) for (let c = 0; c < classes; c++) { const [x, y] = where(box.width, box.height, c, s), d = Math.hypot(x - px, y - py); if (d < near) { near = d; best = [s, c]; } }
      return best;
    };
    one.canvas.addEventListener("pointerdown", (event) => { const hit = under(event), seed = hit ? data.seeds[hit[0]] : null; choose(seed === lit ? null : seed); });
    one.canvas.addEventListener("pointermove", (event) => { const hit = under(event); self.hover(event, hit ? `seed ${data.seeds[hit[0]]}, class ${data.classes[hit[1]]}` : ""); });
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
    const under = (event) => { const box = one.canvas.getBoundingClientRect(), i = axis ? Math.round((event.clientX - box.left - axis.left) / axis.wide * seeds - .5) : -1; return i >= 0 && i < seeds ? order[i] : -1; };
    one.canvas.addEventListener("pointerdown", (event) => { const s = under(event); if (s >= 0) choose(data.all[s] === lit ? null : data.all[s]); });
    one.canvas.addEventListener("pointermove", (event) => { const s = under(event); self.hover(event, s < 0 ? "" : `seed ${data.all[s]}: ${short(mean[s])} standard deviations`); });
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
    one.canvas.addEventListener("pointermove", (event) => {
      const box = one.canvas.getBoundingClientRect(), { cell, left, top } = room(box.width, box.height), c = Math.floor((event.clientX - box.left - left) / cell), r = Math.floor((event.clientY - box.top - top) / cell);
      self.hover(event, r >= 0 && c >= 0 && r < rows && c < columns ? `row ${r}, column ${c}: ${short(values[r * columns + c])}` : "");
    });
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
  page = panels({
    model, el, label: "Seeds", waiting: "Every seed is being run in every class …", extra: [follow, release],
    build(self, data) {
      if (lit !== null && !data.all.includes(lit)) { lit = null; follow.hidden = true; release.disabled = true; }
      if (data.kind === "image" && data.arrays.states.shape.length === 5) sheet(self, data); else plane(self, data);
      strip(self, data);
      self.panel("Variance", `ICC ${short(data.icc.value[0])} ± ${short(2 * data.icc.se[0])}${data.icc.exact ? `, exact ${short(data.icc.exact[0])}` : ""}; chance up to ${short(data.icc.high[0])}`, (g, w, h) => self.bars(g, w, h, data.parts, data.parts.names, [GREEN, BLUE, ORANGE]));
      self.panel("Seeds named", `from samples of other classes; chance ${short(data.chance)}`, (g, w, h) => self.bars(g, w, h, data.named, data.named.names, [BLUE, VERMILION, GREEN]));
      share(self, data); kept(self, data);
    },
    keys(event) {
      const { data } = page.self, at = data.all.indexOf(lit);
      if (event.key === "ArrowDown") choose(data.all[Math.min(at + 1, data.all.length - 1)]);
      else if (event.key === "ArrowUp") choose(at > 0 ? data.all[at - 1] : null);
      else if (event.key === "Escape") choose(null);
      else return false;
      return true;
    },
  });
  return page.end;
} };
