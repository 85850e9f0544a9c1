// Plane: particles and fields.

const FIELD = 128;   // nodes along a side of the view at which the density is interpolated
const SHOWN = 400;   // samples that carry a trail or an exact ring; more would hide one another
const LAYERS = {
  density: ["Density", "Log density relative to its maximum: bands and lines at −k²/2, k = 1 to 4 (k standard deviations of a Gaussian)"],
  velocity: ["Probability-flow drift", "Direction of sampling; the length saturates for fast drift"],
  trails: ["Trails", "The last nodes of each sample, fading"],
  particles: ["Particles", "The recorded samples"],
  denoised: ["Denoised estimate", "Where the denoiser sees each sample's origin"],
  exact: ["Exact flow", "Where the exact probability flow carries the same start, with a line from the particle"],
};
const MARGIN = { left: 60, right: 14, top: 8, bottom: 42 };

function halfToFloat(h) {
  const e = (h >> 10) & 31, m = (h & 1023) / 1024, s = h & 0x8000 ? -1 : 1;
  return e === 31 ? NaN : s * (e ? 2 ** (e - 15) * (1 + m) : 2 ** -14 * m);
}

// Keeps -infinity (and anything far below the last line) out of the interpolation: -24 as a half float.
const floorLogDensity = (layer) => layer.map((h) => (h > 0xce00 || (h > 0x7c00 && h < 0x8000) ? 0xce00 : h));

// The speed, in windows per unit of -log rho, that a typical arrow stands for: the upper quartile over the run.
function typicalSpeed({ values }, { x, y }) {
  const speeds = [], step = 2 * Math.max(1, Math.floor(values.length / 40000));
  for (let i = 0; i + 1 < values.length; i += step) {
    const speed = Math.hypot(halfToFloat(values[i]) / (x[1] - x[0]), halfToFloat(values[i + 1]) / (y[1] - y[0]));
    if (Number.isFinite(speed)) speeds.push(speed);
  }
  return speeds.sort((a, b) => a - b)[Math.floor(speeds.length * 0.75)] || 1;
}

function positionOf({ values, low, scale }, N, T, sample, frame) {
  const f = Math.floor(frame), w = frame - f, a = 2 * (f * N + sample), b = 2 * (Math.min(f + 1, T - 1) * N + sample);
  return [0, 1].map((c) => low[c] + scale[c] * (values[a + c] * (1 - w) + values[b + c] * w));
}

function makePlane(run) {
  const { arrays, window: home, frames: T, samples: N } = run;
  const full = [...home.x, ...home.y], has = (name) => Boolean(arrays[name]);
  const available = Object.keys(LAYERS).filter((name) => has(name) || name === "trails" || name === "particles");
  const every = Math.ceil(N / SHOWN);
  let view = [...full], size = 1, densityAt, velocityAt, typical;

  const viewUniform = ([x0, x1, y0, y1]) => [x0, y0, 1 / (x1 - x0), 1 / (y1 - y0)];
  const toPixel = ([x, y]) => [(x - view[0]) / (view[1] - view[0]) * size, (view[3] - y) / (view[3] - view[2]) * size];

  function upload(gpu) {
    for (const name of ["x", "denoised", "exact"]) if (has(name)) gpu.upload(UNIT[name], arrays[name].values, 2);
    gpu.upload(UNIT.group, arrays.group?.values ?? new Uint8Array(1), 1);
    if (has("density")) densityAt = gpu.uploadField(UNIT.density, arrays.density, 1, floorLogDensity);
    if (has("velocity")) velocityAt = gpu.uploadField(UNIT.velocity, arrays.velocity, 2);
    if (has("velocity")) typical = typicalSpeed(arrays.velocity, home);
  }

  function draw(gpu, { frame, layers, trail, hovered, colours, ratio }) {
    const { gl } = gpu, device = Math.round(size * ratio), shown = (name) => layers[name] && available.includes(name);
    const common = { uFrame: frame, uSamples: N, uLast: T - 1, uSize: device, uView: viewUniform(view), uWindow: viewUniform(full),
                     uGroup: UNIT.group, uGrouped: has("group") ? 1 : 0, uPalette: colours.palette, uStride: 1, uFirst: 0 };
    const particles = (name, more) => ({ ...common, uStore: UNIT[name], uRange: [...arrays[name].low, ...arrays[name].scale], ...more });
    const radius = clamp(size / Math.sqrt(N) * 0.13, 1.3, 4) * ratio;
    gl.viewport(0, 0, device, device);
    gl.clearColor(...colours.plot, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.disable(gl.BLEND);
    if (shown("density") && gpu.floats) {
      gpu.into(UNIT.log, FIELD, () => gpu.draw("field", { ...common, ...densityAt(frame), uField: UNIT.density }));
      gl.viewport(0, 0, device, device);
      gpu.draw("contours", { uLog: UNIT.log, uColour: colours.density, uGround: colours.plot, uLine: ratio });
    }
    gl.enable(gl.BLEND);
    if (shown("velocity")) {
      const lattice = Math.max(4, Math.round(size / 28));
      gpu.draw("arrows", { ...common, ...velocityAt(frame), uField: UNIT.velocity, uLattice: lattice, uTypical: typical, uWidth: 1.1 * ratio, uColour: colours.velocity, uAlpha: 0.6 }, 4, 3 * lattice ** 2);
    }
    if (shown("trails") && trail > 0)
      gpu.draw("trails", particles("x", { uStride: every, uHead: frame, uTail: Math.max(0, frame - trail), uFade: 1, uAlpha: 0.5, uWidth: 1.1 * ratio, uColour: colours.particle }), 2 * (Math.ceil(trail) + 2), Math.ceil(N / every));
    if (shown("exact")) {
      const ink = has("group") ? colours.text : colours.exact, count = Math.ceil(N / every);
      gpu.draw("errors", particles("x", { uOther: UNIT.exact, uStride: every, uWidth: ratio, uAlpha: 0.85, uColour: ink }), 4, count);
      gpu.draw("points", particles("exact", { uStride: every, uRadius: radius + 1.6 * ratio, uRing: 0.9 * ratio, uAlpha: 0.9, uGrouped: 0, uColour: ink }), 4, count);
    }
    if (shown("denoised"))
      gpu.draw("points", particles("denoised", { uRadius: radius + 0.4 * ratio, uRing: 1.1 * ratio, uAlpha: 0.9, uGrouped: 0, uColour: colours.denoised }), 4, N);
    if (shown("particles"))
      gpu.draw("points", particles("x", { uRadius: radius, uRing: 0, uAlpha: 0.85, uColour: colours.particle }), 4, N);
    if (hovered !== null) {
      const path = { uFirst: hovered, uFade: 0, uGrouped: 0, uColour: colours.text };
      gpu.draw("trails", particles("x", { ...path, uHead: T - 1, uTail: frame, uAlpha: 0.35, uWidth: ratio }), 2 * (T + 1));
      gpu.draw("trails", particles("x", { ...path, uHead: frame, uTail: 0, uAlpha: 1, uWidth: 1.8 * ratio }), 2 * (T + 1));
      gpu.draw("points", particles("x", { ...path, uRadius: radius + 3 * ratio, uRing: 1.6 * ratio, uAlpha: 1 }), 4);
    }
  }

  function layout(width) {
    // The picture, its time axis and its buttons fit one screen.
    const tallest = Math.max(300, Math.min(620, Math.round(0.62 * innerHeight)));
    size = Math.max(120, Math.min(Math.floor(width) - MARGIN.left - MARGIN.right, tallest));
    return { left: MARGIN.left, top: MARGIN.top, width: size, height: size,
             outer: [size + MARGIN.left + MARGIN.right, size + MARGIN.top + MARGIN.bottom] };
  }

  function overlay() {
    const right = MARGIN.left + size, base = MARGIN.top + size, marks = [svg("rect", { x: MARGIN.left, y: MARGIN.top, width: size, height: size, class: "wb-frame" })];
    const count = Math.max(4, Math.round(size / 90));
    for (const [x, text] of ticks(view[0], view[1], count)) {
      const p = MARGIN.left + toPixel([x, 0])[0];
      marks.push(svg("path", { d: `M${p} ${base}v5`, class: "wb-tick" }), svg("text", { x: clamp(p, 0, right - 2), y: base + 18, "text-anchor": "middle" }, text));
    }
    for (const [y, text] of ticks(view[2], view[3], count)) {
      const p = MARGIN.top + toPixel([0, y])[1];
      marks.push(svg("path", { d: `M${MARGIN.left} ${p}h-5`, class: "wb-tick" }), svg("text", { x: MARGIN.left - 9, y: p + 4, "text-anchor": "end" }, text));
    }
    const mid = MARGIN.top + size / 2;
    marks.push(svg("text", { x: MARGIN.left + size / 2, y: base + 36, "text-anchor": "middle", class: "wb-label" }, run.labels?.x ?? "x₁"),
               svg("text", { x: 13, y: mid, "text-anchor": "middle", class: "wb-label", transform: `rotate(-90 13 ${mid})` }, run.labels?.y ?? "x₂"));
    return marks;
  }

  // The particle nearest to a point of the picture, within a finger's breadth.
  function pick(px, py, frame) {
    let best = null, least = 14 ** 2;
    for (let i = 0; i < N; i++) {
      const [x, y] = toPixel(positionOf(arrays.x, N, T, i, frame)), d = (x - px) ** 2 + (y - py) ** 2;
      if (d < least) [best, least] = [i, d];
    }
    return best;
  }

  function tell(sample, frame) {
    const here = positionOf(arrays.x, N, T, sample, frame), point = ([x, y]) => minus(`(${number(x)}, ${number(y)})`);
    const lines = [`sample ${sample}` + (has("group") ? ` · class ${arrays.group.values[sample]}` : ""), point(here)];
    if (has("denoised")) lines.push(`denoised ${point(positionOf(arrays.denoised, N, T, sample, frame))}`);
    if (has("exact")) lines.push(`exact ${point(positionOf(arrays.exact, N, T, sample, frame))}`);
    return { at: toPixel(here), lines };
  }

  // Zooms about, then moves by, fractions of the picture; never leaves the window, which is all that was recorded.
  function move(factor, [u, v], [du, dv]) {
    const along = (a, b, low, high, c, d) => {
      const width = clamp((b - a) * factor, (high - low) / 100, high - low);
      const start = clamp(a + c * (b - a - width) - d * width, low, high - width);
      return [start, start + width];
    };
    view = [...along(view[0], view[1], full[0], full[1], u, du), ...along(view[2], view[3], full[2], full[3], 1 - v, -dv)];
  }

  return { layers: available, every, upload, draw, layout, overlay, pick, tell, move,
           zoomed: () => view[1] - view[0] < (full[1] - full[0]) * 0.999, reset: () => { view = [...full]; },
           view: () => ({ view, full }), restore: (old) => { if (String(old?.full) === String(full)) view = old.view; } };
}
