// The gallery of stories: a card each, with a small moving picture drawn from quantised frames.
const CSS = `
.wb-gallery { font: 14px/1.45 system-ui, sans-serif; color: inherit; max-width: 1400px; margin: 0 auto; }
.wb-gallery .lead { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 16px; margin: 4px 0 12px; }
.wb-gallery .lead p { margin: 0; flex: 1 1 320px; }
.wb-gallery button { font: inherit; padding: 4px 12px; border-radius: 6px; cursor: pointer; color: inherit;
  background: transparent; border: 1px solid color-mix(in srgb, currentColor 45%, transparent); }
.wb-gallery ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); }
.wb-gallery li { display: flex; }
.wb-gallery a { flex: 1; display: flex; flex-direction: column; color: inherit; text-decoration: none;
  border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: 10px; overflow: hidden;
  background: color-mix(in srgb, currentColor 3%, transparent); }
.wb-gallery a:hover { border-color: color-mix(in srgb, currentColor 55%, transparent); }
.wb-gallery :is(a, button):focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
.wb-gallery canvas { width: 100%; aspect-ratio: 16 / 10; display: block;
  background: color-mix(in srgb, currentColor 5%, transparent); }
.wb-gallery .text { padding: 10px 14px 14px; }
.wb-gallery h2 { font-size: 1.05em; line-height: 1.3; margin: 0 0 4px; }
.wb-gallery .text p { margin: 0; opacity: .82; }
.wb-gallery .wrong { color: var(--wb-bad, #b3261e); opacity: 1; }
.wb-gallery .none a { cursor: default; }
`;

const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
const SECONDS = 4.5, REST = 1.4;  // of one play, and of its end before the next [s]

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

// The frames before and after a share of a play, and how far it is between them.
function between(share, frames) {
  const at = share * (frames - 1), i = Math.min(Math.floor(at), frames - 1);
  return { i, j: Math.min(i + 1, frames - 1), part: at - i };
}

// A picture at a share of its play, 0 to 1; states between two frames are interpolated.
const PAINT = {
  plane(g, { shape, raw }, share, w, h, scratch, dark) {
    const [frames, points] = shape, { i, j, part } = between(share, frames);
    const side = Math.min(w, h) * 1.15, left = (w - side) / 2, top = (h - side) / 2;
    g.fillStyle = dark ? "#56b4e9" : COLOURS[0];
    g.globalAlpha = 0.75;
    const r = Math.max(1.5, h / 95);
    for (let p = 0; p < points; p++) {
      const a = 2 * (i * points + p), b = 2 * (j * points + p);
      const x = raw[a] + part * (raw[b] - raw[a]), y = raw[a + 1] + part * (raw[b + 1] - raw[a + 1]);
      g.beginPath();
      g.arc(left + x / 255 * side, top + y / 255 * side, r, 0, 2 * Math.PI);
      g.fill();
    }
    g.globalAlpha = 1;
  },
  images(g, { shape, raw }, share, w, h, scratch) {
    const [frames, count, rows, columns] = shape, size = rows * columns;
    const { i, j, part } = between(share, frames);
    const across = Math.min(6, count), down = Math.ceil(count / across);
    const cell = Math.min(w / across, h / down) * 0.94;
    const left = (w - across * cell) / 2, top = (h - down * cell) / 2;
    scratch.width = columns, scratch.height = rows;
    const small = scratch.getContext("2d"), pixels = small.createImageData(columns, rows);
    g.imageSmoothingEnabled = false;
    for (let k = 0; k < count; k++) {
      const a = (i * count + k) * size, b = (j * count + k) * size;
      for (let q = 0; q < size; q++) {
        const v = 255 - (raw[a + q] + part * (raw[b + q] - raw[a + q]));
        pixels.data.set([v, v, v, 255], 4 * q);
      }
      small.putImageData(pixels, 0, 0);
      g.drawImage(scratch, left + (k % across) * cell + 1, top + Math.floor(k / across) * cell + 1,
        cell - 2, cell - 2);
    }
  },
  curves(g, { shape, raw }, share, w, h, scratch, dark) {
    const [lines, points] = shape, shown = Math.max(2, Math.ceil(share * points));
    g.lineWidth = Math.max(1.5, h / 70);
    g.lineJoin = "round";
    for (let k = 0; k < lines; k++) {
      g.strokeStyle = dark && k % COLOURS.length === 0 ? "#56b4e9" : COLOURS[k % COLOURS.length];
      g.setLineDash(k % 2 ? [g.lineWidth * 3, g.lineWidth * 2] : []);
      g.beginPath();
      for (let p = 0; p < shown; p++) {
        const at = 2 * (k * points + p);
        g.lineTo(raw[at] / 255 * w, raw[at + 1] / 255 * h);
      }
      g.stroke();
    }
    g.setLineDash([]);
  },
};

const { make } = workbench;

export default { render({ model, el }) {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const scratch = document.createElement("canvas");
  const pictures = new Map();  // by the story's name: canvas, frames, whether it is in view
  let playing = !still.matches, begun = performance.now(), last = 0, over = false;

  const paint = (one, share) => {
    if (!one.frames) return;
    const { canvas } = one, ratio = Math.min(devicePixelRatio || 1, 2);
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (!w || !h) return;
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const g = canvas.getContext("2d");
    g.clearRect(0, 0, w, h);
    // A light ink is one on a dark ground, whoever chose the theme.
    const ink = getComputedStyle(canvas).color.match(/[\d.]+/g)?.slice(0, 3).map(Number) ?? [0, 0, 0];
    PAINT[one.frames.kind](g, one.frames, share, w, h, scratch, ink[0] + ink[1] + ink[2] > 380);
  };
  const shareAt = (now, lag) => {
    const turn = ((now - begun) / 1000 + lag) % (SECONDS + REST);
    return Math.min(1, turn / SECONDS);
  };
  const draw = (now) => {
    if (over) return;
    if (playing && now - last > 40) {
      last = now;
      for (const one of pictures.values()) if (one.seen) paint(one, shareAt(now, one.lag));
    }
    if (playing) requestAnimationFrame(draw);
  };
  // Without motion, each stands at its end.
  const show = (one) => paint(one, playing ? shareAt(performance.now(), one.lag) : 1);
  const stand = () => pictures.forEach(show);
  const button = make("button", { type: "button" });
  const play = (on) => {
    playing = on;
    button.textContent = playing ? "Pause pictures" : "Play pictures";
    button.setAttribute("aria-pressed", String(!playing));
    stand();
    if (playing) requestAnimationFrame(draw);
  };
  button.addEventListener("click", () => play(!playing));
  const watch = new IntersectionObserver((seen) => seen.forEach(({ target, isIntersecting }) => {
    const one = pictures.get(target.dataset.slug);
    if (one) { one.seen = isIntersecting; if (isIntersecting) show(one); }
  }));
  const resized = new ResizeObserver(stand);

  const list = make("ul");
  const cards = () => {
    pictures.forEach(({ canvas }) => { watch.unobserve(canvas); resized.unobserve(canvas); });
    pictures.clear();
    list.replaceChildren(...model.get("cards").map(({ slug, title, text, href, wrong }, i) => {
      const canvas = make("canvas", { ariaHidden: "true" });
      canvas.dataset.slug = slug;
      pictures.set(slug, { canvas, frames: null, seen: false, lag: (i * 0.7) % SECONDS });
      const body = make("div", { className: "text" }, make("h2", { textContent: title }),
        make("p", { textContent: text }));
      if (wrong) body.append(make("p", { className: "wrong", textContent: wrong }));
      const inside = href ? make("a", { href }, canvas, body) : make("a", {}, body);
      return make("li", { className: href ? "" : "none" }, inside);
    }));
    pictures.forEach(({ canvas }) => { watch.observe(canvas); resized.observe(canvas); });
    put();
  };
  const put = () => {
    for (const [slug, found] of Object.entries(model.get("frames"))) {
      const one = pictures.get(slug);
      if (one && !one.frames && PAINT[found.kind]) {
        one.frames = { kind: found.kind, shape: found.shape, raw: bytes(found.data) };
        show(one);
      }
    }
  };
  still.addEventListener("change", () => play(!still.matches));
  model.on("change:cards", cards);
  model.on("change:frames", put);
  el.append(make("style", { textContent: CSS }), make("div", { className: "wb-gallery" },
    make("div", { className: "lead" }, make("p", { textContent: model.get("lead") }), button), list));
  cards();
  play(playing);
  return () => { over = true; watch.disconnect(); resized.disconnect(); };
} };
