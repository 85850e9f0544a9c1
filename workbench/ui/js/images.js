// Images: a panel of tiles for each recorded quantity.

const PANELS = { x: "xₜ", denoised: "Denoised estimate", exact: "Exact flow" };
const CAPTION = 24, BETWEEN = 20;

function makeImages(run) {
  const { arrays, frames: T, samples: N, image: { rows: R, columns: C } } = run, names = Object.keys(PANELS).filter((n) => arrays[n]);
  let grid, panels, ratio = 1;

  function upload(gpu) {
    for (const name of names) gpu.upload(UNIT[name], arrays[name].values, 1);
  }

  // A pixel of a sample is a whole number of device pixels wide, unless that would waste much of the room.
  function layout(width, device) {
    ratio = device;
    const across = clamp(Math.floor((width + BETWEEN) / (200 + BETWEEN)), 1, names.length);
    const room = Math.min(Math.floor((width - BETWEEN * (across - 1)) / across), 400), gap = Math.max(1, Math.round(2 * ratio));
    const columns = clamp(Math.ceil(Math.sqrt(N * R / C)), 1, Math.min(N, Math.max(1, Math.floor(room / 22))));
    const shown = Math.min(N, columns * Math.max(1, Math.ceil(columns * C / R))), lines = Math.ceil(shown / columns);
    const free = ((room * ratio - gap) / columns - gap) / C, scale = Math.floor(free) > 0.85 * free ? Math.floor(free) : Math.floor(free * C) / C || free;
    const pitch = [scale * C + gap, scale * R + gap], box = [columns * pitch[0] + gap, lines * pitch[1] + gap];
    grid = { gap, columns, shown, scale, pitch, box };
    panels = names.map((name, i) => ({ name, x: (i % across) * (box[0] / ratio + BETWEEN), y: CAPTION + Math.floor(i / across) * (box[1] / ratio + CAPTION + BETWEEN) }));
    const height = panels.at(-1).y + box[1] / ratio, total = Math.min(width, Math.ceil(across * (box[0] / ratio + BETWEEN) - BETWEEN));
    return { left: 0, top: 0, width: total, height: Math.ceil(height), outer: [total, Math.ceil(height)] };
  }

  function draw(gpu, { frame, hovered, colours }) {
    const { gl } = gpu, tall = gl.drawingBufferHeight;
    gl.viewport(0, 0, gl.drawingBufferWidth, tall);
    gl.disable(gl.BLEND);
    gl.clearColor(...colours.surface, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    for (const { name, x, y } of panels) {
      const left = Math.round(x * ratio), top = tall - Math.round(y * ratio);
      gl.viewport(left, Math.ceil(top - grid.box[1]), Math.ceil(grid.box[0]), Math.ceil(grid.box[1]));
      gpu.draw("tiles", { uStore: UNIT[name], uSamples: N, uLast: T - 1, uFrame: frame, uShown: grid.shown, uColumns: grid.columns, uPixels: [C, R], uGap: grid.gap,
        uScale: grid.scale, uPitch: grid.pitch, uCorner: [left, top], uSelected: hovered ?? -1, uSurface: colours.surface, uAccent: colours.accent });
    }
  }

  function overlay() {
    const part = grid.shown < N ? `first ${grid.shown} of ${N}` : `${N} sample${N > 1 ? "s" : ""}`;
    return panels.flatMap(({ name, x, y }, i) => [svg("text", { x: x + grid.gap / ratio, y: y - 8, class: "wb-caption" }, PANELS[name]),
      i ? "" : svg("text", { x: x + grid.box[0] / ratio - 2, y: y - 8, "text-anchor": "end" }, part)]);
  }

  let spot = null;   // the pixel last pointed at
  function pick(px, py) {
    for (const panel of panels) {
      const x = (px - panel.x) * ratio - grid.gap, y = (py - panel.y) * ratio - grid.gap;
      const column = Math.floor(x / grid.pitch[0]), row = Math.floor(y / grid.pitch[1]), sample = row * grid.columns + column;
      if (x < 0 || y < 0 || column >= grid.columns || sample >= grid.shown) continue;
      const pixel = [(y - row * grid.pitch[1]) / grid.scale, (x - column * grid.pitch[0]) / grid.scale].map(Math.floor);
      spot = { pixel: [Math.min(pixel[0], R - 1), Math.min(pixel[1], C - 1)], at: [px, py] };
      return sample;
    }
    return null;
  }

  function tell(sample, frame) {
    const f = Math.floor(frame), w = frame - f, [r, c] = spot.pixel;
    const value = (name) => {
      const { values, low, scale } = arrays[name], at = (g) => values[((Math.min(g, T - 1) * N + sample) * R + r) * C + c];
      return low[0] + scale[0] * (at(f) * (1 - w) + at(f + 1) * w);
    };
    return { at: spot.at, lines: [`sample ${sample} · row ${r}, column ${c}`, ...names.map((n) => minus(`${PANELS[n]} ${number(value(n))}`))] };
  }

  return { layers: [], upload, draw, layout, overlay, pick, tell };
}
