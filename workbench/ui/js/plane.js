// Plane: particles and fields.

const FIELD = [128, 96];   // nodes along a side of the view at which the density is interpolated: on a GPU, on one that is emulated
const SHOWN = 400;   // samples that carry a trail or an exact ring; more would hide one another
const PATHS = 40;    // chosen samples whose whole path is drawn
const LAYERS = {
  density: ["Density", "Log density relative to its maximum: bands and lines at −k²/2, k = 1 to 4 (k standard deviations of a Gaussian)"],
  velocity: ["Probability-flow drift", "Direction of sampling; the length saturates for fast drift"],
  trails: ["Trails", "The last nodes of each sample, fading"],
  particles: ["Particles", "The recorded samples"],
  denoised: ["Denoised estimate", "Where the denoiser sees each sample's origin"],
  exact: ["Exact flow", "Where the exact probability flow carries the same start, with a line from the particle"],
};
const MARGIN = { left: 52, right: 12, top: 8, bottom: 38 }, BESIDE = 26;

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

// Position of a sample; null where the array holds fewer samples.
function positionOf({ values, low, scale, shape: [T, M] }, sample, frame) {
  if (sample >= M) return null;
  const f = Math.floor(frame), w = frame - f, a = 2 * (f * M + sample), b = 2 * (Math.min(f + 1, T - 1) * M + sample);
  return [0, 1].map((c) => low[c] + scale[c] * (values[a + c] * (1 - w) + values[b + c] * w));
}

// `scenes`: one run, or two; each { run, name, at }, with `at(frame)` its own frame at a frame of the first. `how`: beside, over or difference.
function makePlane(scenes, how, matched) {
  const [first] = scenes, { run } = first, beside = scenes.length > 1 && how === "beside", panes = beside ? 2 : 1;
  const has = (name) => scenes.some(({ run: { arrays } }) => arrays[name]), pairwise = scenes.length > 1 && !beside;
  const union = (key, least, most) => [Math.min(...scenes.map(({ run }) => least(run, key))), Math.max(...scenes.map(({ run }) => most(run, key)))];
  const windowOf = (key) => union(key, (r) => r.window[key][0], (r) => r.window[key][1]);
  const home = [...windowOf("x"), ...windowOf("y")];
  const reachOf = (c) => union(c, ({ arrays: { x } }) => x.low[c], ({ arrays: { x } }) => x.low[c] + 65535 * x.scale[c]);
  const full = [...reachOf(0), ...reachOf(1)];   // all that was recorded
  const available = Object.keys(LAYERS).filter((name) => has(name) || name === "trails" || name === "particles");
  const every = Math.ceil(Math.max(...scenes.map(({ run: { samples } }) => samples)) / SHOWN);
  let view = [...home], size = 1;

  const viewUniform = ([x0, x1, y0, y1]) => [x0, y0, 1 / (x1 - x0), 1 / (y1 - y0)];
  const toPixel = ([x, y]) => [(x - view[0]) / (view[1] - view[0]) * size, (view[3] - y) / (view[3] - view[2]) * size];
  const paneLeft = (i) => i * (size + BESIDE), paneOf = (px) => (beside && px > size + BESIDE / 2 ? 1 : 0);
  const linked = (i, state) => matched || i === state.inScene;

  function upload(gpu) {
    scenes.forEach((scene, i) => {
      const { run: { arrays, window, fields, frames } } = scene, unit = (name) => i * UNITS + UNIT[name];
      for (const name of ["x", "denoised", "exact"]) if (arrays[name]) gpu.upload(unit(name), arrays[name].values, 2);
      gpu.upload(unit("group"), arrays.group?.values ?? new Uint8Array(1), 1);
      const nodes = fields ?? Array.from({ length: frames }, (_, f) => f);
      if (arrays.density) scene.density = gpu.uploadField(unit("density"), arrays.density, 1, nodes, floorLogDensity);
      if (arrays.velocity) scene.velocity = gpu.uploadField(unit("velocity"), arrays.velocity, 2, nodes);
      if (arrays.velocity) scene.typical = typicalSpeed(arrays.velocity, window);
    });
    gpu.uploadMask(new Uint8Array(first.run.samples));
  }

  // Has samples coloured by one of their groupings, or by none.
  function colourBy(gpu, name) {
    scenes.forEach(({ run: { arrays, groupings } }, i) => {
      delete arrays.group;
      if (!pairwise && groupings[name]) arrays.group = groupings[name];
      gpu?.upload(i * UNITS + UNIT.group, arrays.group?.values ?? new Uint8Array(1), 1);
    });
  }

  // Says whether something is missing, which a later call draws.
  function draw(gpu, state) {
    let waiting = false;
    const { gl } = gpu, { colours, ratio } = state, device = Math.round(size * ratio), tall = gl.drawingBufferHeight;
    let now = performance.now();
    const opener = (pane, scale = 1, high = tall) => {
      const side = Math.round(device * scale), place = [Math.round(paneLeft(pane) * ratio * scale), high - side, side, side];
      return () => { gl.viewport(...place); gl.scissor(...place); };
    };
    const back = (scale, high) => {
      gl.disable(gl.SCISSOR_TEST);
      gl.clearColor(...colours.surface, 1);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.enable(gl.SCISSOR_TEST);
      for (let pane = 0; pane < panes; pane++) {
        const open = opener(pane, scale, high);
        open();
        gl.clearColor(...colours.plot, 1);
        gl.clear(gl.COLOR_BUFFER_BIT);
        gl.disable(gl.BLEND);
        ground(gpu, beside ? scenes[pane] : first, { ...state, ratio: ratio * scale }, Math.round(device * scale), open);
      }
    };
    state.splat.clear();
    if (soft(gpu, state)) {
      // In motion, density and flow follow some eight times a second or, where frames are slow, every fourth of these, and half as sharp as at rest.
      const pause = clamp(4 * (now - drawnAt), 120, 400), key = `${view}|${device}|${state.layers.density}${state.layers.velocity}|${colours.plot}`;
      if (!gpu.ready()) {   // particles at once, density and flow when their programs are there
        gl.disable(gl.SCISSOR_TEST);
        gl.clearColor(...colours.plot, 1);
        gl.clear(gl.COLOR_BUFFER_BIT);
        waiting = true;
      } else if (!state.rush) back(1, tall);
      else if (key !== groundKey || now - groundAt > pause) gpu.keep(0.5, (high) => back(0.5, high));
      else now = groundAt;
      drawnAt = performance.now();
      [groundKey, groundAt] = [waiting ? "" : key, now];
      for (let pane = 0; pane < panes; pane++) {
        splat(scenes[pane], state, device);
        state.splat.show(Math.round(paneLeft(pane) * ratio));
      }
      return waiting;
    }
    groundKey = "";
    back(1, tall);
    gl.enable(gl.SCISSOR_TEST);
    gl.enable(gl.BLEND);
    for (let pane = 0; pane < panes; pane++) {
      opener(pane)();
      for (const scene of beside ? [scenes[pane]] : scenes) samples(gpu, scene, state, device);
      if (pairwise && how === "difference" && matched) difference(gpu, state, device);
    }
    gl.disable(gl.SCISSOR_TEST);
    return false;
  }
  let groundKey = "", groundAt = -Infinity, drawnAt = 0;

  const soft = (gpu, { whole, hovered, selected, ratio }) => gpu.emulated && !whole && !pairwise && hovered === null && !selected.size
    && scenes.every((scene) => radiusOf(scene, ratio) + 2 * ratio <= REACH);

  // What `samples` draws, on this side.
  function splat(scene, state, device) {
    const { run: { arrays, samples: N, frames: T } } = scene, { layers, ratio, colours } = state, here = scene.at(state.frame), tail = scene.at(Math.max(0, state.frame - state.trail)), radius = radiusOf(scene, ratio);
    const [px, py] = [device / (view[1] - view[0]), device / (view[3] - view[2])];
    const map = ({ low, scale }) => [(low[0] - view[0]) * px, scale[0] * px, (view[3] - low[1]) * py, -scale[1] * py];
    const place = ({ values, shape: [, M] }, [ax, bx, ay, by], s, frame) => {
      const i = Math.floor(frame), w = frame - i, a = 2 * (i * M + s), b = w > 0 ? a + 2 * M : a;
      return [ax + bx * (values[a] * (1 - w) + values[b] * w), ay + by * (values[a + 1] * (1 - w) + values[b + 1] * w)];
    };
    const { x, exact, denoised } = arrays, toX = map(x);
    state.splat.begin(device);
    // In one colour, or the samples of one colour after those of another.
    const group = arrays.group?.values, inks = group ? Array.from({ length: 8 }, (_, g) => colours.palette.slice(3 * g, 3 * g + 3)) : [colours.particle];
    inks.forEach((ink, g) => {
    if (layers.trails && here > tail) for (let s = 0; s < N; s += every) {
      if (group && (group[s] & 7) !== g) continue;
      let [a, b] = place(x, toX, s, here);
      for (let node = Math.ceil(here) - 1; ; node--) {
        const end = Math.max(node, tail), [u, v] = place(x, toX, s, end);
        state.splat.line(a, b, u, v, 0.5 * ((end + Math.min(node + 1, here)) / 2 - tail) / (here - tail));
        [a, b] = [u, v];
        if (end === tail) break;
      }
    }
    state.splat.layer(ink);
    });
    const ring = group ? colours.text : colours.exact;
    if (layers.exact && exact) {
      const toExact = map(exact);
      for (let s = 0; s < exact.shape[1]; s += every) {
        const [a, b] = place(x, toX, s, here), [u, v] = place(exact, toExact, s, here);
        if (Math.hypot(u - a, v - b) > 2 * ratio) state.splat.line(a, b, u, v, 0.85);
      }
      state.splat.dots(exact, here, toExact, radius + 1.6 * ratio, 0.9, 0.9 * ratio, every);
      state.splat.layer(ring);
    }
    if (layers.denoised && denoised) {
      state.splat.dots(denoised, here, map(denoised), radius + 0.4 * ratio, 0.9, 1.1 * ratio);
      state.splat.layer(colours.denoised);
    }
    if (layers.particles) inks.forEach((ink, g) => {
      state.splat.dots(x, here, toX, radius, 0.85, 0, 1, group, g);
      state.splat.layer(ink);
    });
  }

  function commonOf(scene, { frame, colours }, device) {
    const { run: { arrays, samples, frames, window } } = scene, i = scenes.indexOf(scene);
    return { uFrame: scene.at(frame), uSamples: samples, uLast: frames - 1, uSize: device, uView: viewUniform(view), uWindow: viewUniform([...window.x, ...window.y]),
             uGroup: i * UNITS + UNIT.group, uGrouped: arrays.group ? 1 : 0, uPalette: colours.palette, uStride: 1, uFirst: 0, uMask: MASK, uMasked: 0 };
  }
  const from = (scene, name, state, device, more) => {
    const { low, scale, shape } = scene.run.arrays[name];
    return { ...commonOf(scene, state, device), uStore: scenes.indexOf(scene) * UNITS + UNIT[name], uSamples: shape[1], uRange: [...low, ...scale], ...more };
  };
  const radiusOf = (scene, ratio) => clamp(size / Math.sqrt(scene.run.samples) * 0.13, 1.3, 4) * ratio;

  // Density and flow of one run.
  function ground(gpu, scene, state, device, open) {
    const { layers, colours, ratio } = state, { gl } = gpu, { arrays } = scene.run, common = commonOf(scene, state, device), unit = (name) => scenes.indexOf(scene) * UNITS + UNIT[name];
    if (layers.density && arrays.density && gpu.floats) {
      gl.disable(gl.SCISSOR_TEST);
      gpu.into(LOG, FIELD[Number(gpu.emulated)], () => gpu.draw("field", { ...common, ...scene.density(common.uFrame), uField: unit("density") }));
      gl.enable(gl.SCISSOR_TEST);
      open();
      gpu.draw("contours", { uLog: LOG, uColour: colours.density, uGround: colours.plot, uLine: ratio });
    }
    gl.enable(gl.BLEND);
    if (layers.velocity && arrays.velocity) {
      const lattice = Math.max(4, Math.round(size / 28));
      gpu.draw("arrows", { ...common, ...scene.velocity(common.uFrame), uField: unit("velocity"), uLattice: lattice, uTypical: scene.typical, uWidth: 1.1 * ratio, uColour: colours.velocity, uAlpha: 0.6 }, 4, 3 * lattice ** 2);
    }
  }

  // Particles, their trails, and where the exact flow has them.
  function samples(gpu, scene, state, device) {
    const { layers, trail, colours, ratio, hovered, selected } = state, { arrays, samples: N, frames: T } = scene.run, i = scenes.indexOf(scene);
    const make = (name, more) => from(scene, name, state, device, more), radius = radiusOf(scene, ratio);
    const here = scene.at(state.frame), plain = pairwise && i === 1 ? colours.other : colours.particle, masked = selected.size && linked(i, state) ? 1 : 0;
    // A trail of as many nodes of the first run, in this run's own nodes.
    const tail = scene.at(Math.max(0, state.frame - trail)), length = here - tail;
    if (layers.trails && length > 0)
      gpu.draw("trails", make("x", { uStride: every, uHead: here, uTail: tail, uFade: 1, uAlpha: 0.5, uWidth: 1.1 * ratio, uColour: plain }), 2 * (Math.ceil(length) + 2), Math.ceil(N / every));
    const ink = commonOf(scene, state, device).uGrouped ? colours.text : colours.exact;
    const truth = (more) => ({ uOther: i * UNITS + UNIT.exact, uOtherRange: [...arrays.exact.low, ...arrays.exact.scale], uOtherSamples: arrays.exact.shape[1], uOtherLast: T - 1, uOtherFrame: here, uColour: ink, uGrouped: 0, ...more });
    if (layers.exact && arrays.exact && how !== "difference") {
      const count = Math.ceil(arrays.exact.shape[1] / every);
      gpu.draw("errors", make("x", truth({ uStride: every, uWidth: ratio, uAlpha: 0.85 })), 4, count);
      gpu.draw("dots", make("exact", { uStride: every, uRadius: radius + 1.6 * ratio, uRing: 0.9 * ratio, uAlpha: 0.9, uGrouped: 0, uColour: ink }), 1, count);
    }
    if (layers.denoised && arrays.denoised)
      gpu.draw("dots", make("denoised", { uRadius: radius + 0.4 * ratio, uRing: 1.1 * ratio, uAlpha: 0.9, uGrouped: 0, uColour: colours.denoised, uMasked: masked }), 1, arrays.denoised.shape[1]);
    if (layers.particles) gpu.draw("dots", make("x", { uRadius: radius, uRing: 0, uAlpha: 0.85, uColour: plain, uMasked: masked }), 1, N);
    if (!linked(i, state)) return;
    const ringed = [...selected].filter((s) => s < N);
    for (const s of [...new Set([...(hovered === null ? [] : [hovered]), ...ringed.slice(0, PATHS)])]) {
      const path = { uFirst: s, uFade: 0, uGrouped: 0, uColour: colours.text }, light = s === hovered ? 1 : 0.6;
      gpu.draw("trails", make("x", { ...path, uHead: T - 1, uTail: here, uAlpha: 0.35 * light, uWidth: ratio }), 2 * (T + 1));
      gpu.draw("trails", make("x", { ...path, uHead: here, uTail: 0, uAlpha: light, uWidth: (s === hovered ? 1.8 : 1.2) * ratio }), 2 * (T + 1));
      if (arrays.exact && s < arrays.exact.shape[1]) {
        gpu.draw("errors", make("x", truth({ uFirst: s, uWidth: 1.6 * ratio, uAlpha: 1, uColour: colours.exact })), 4);
        gpu.draw("dots", make("exact", { uFirst: s, uRadius: radius + 1.6 * ratio, uRing: 1.2 * ratio, uAlpha: 1, uGrouped: 0, uColour: colours.exact }), 1, 1);
      }
      gpu.draw("dots", make("x", { ...path, uRadius: radius + 3 * ratio, uRing: 1.6 * ratio, uAlpha: 1 }), 1, 1);
    }
  }

  // From each sample of A to the same sample of B.
  function difference(gpu, state, device) {
    const [a, b] = scenes, { low, scale, shape } = b.run.arrays.x;
    gpu.draw("errors", from(a, "x", state, device, { uOther: UNITS + UNIT.x, uOtherRange: [...low, ...scale], uOtherSamples: shape[1], uOtherLast: b.run.frames - 1, uOtherFrame: b.at(state.frame),
      uWidth: state.ratio, uAlpha: 0.7, uGrouped: 0, uColour: state.colours.text }), 4, Math.min(a.run.samples, b.run.samples, 4000));
  }

  // The largest squares that fit the room.
  function layout(width, height) {
    const beyond = MARGIN.left + MARGIN.right + (panes - 1) * BESIDE, top = MARGIN.top + (beside ? 14 : 0);
    size = Math.max(80, Math.floor(Math.min((width - beyond) / panes, height - top - MARGIN.bottom)));
    const across = panes * size + (panes - 1) * BESIDE;
    return { left: MARGIN.left, top, width: across, height: size, outer: [across + MARGIN.left + MARGIN.right, size + top + MARGIN.bottom] };
  }

  function overlay(state) {
    const top = MARGIN.top + (beside ? 14 : 0), base = top + size, mid = top + size / 2, count = Math.max(3, Math.round(size / 90)), marks = [];
    for (let pane = 0; pane < panes; pane++) {
      const left = MARGIN.left + paneLeft(pane);
      marks.push(svg("rect", { x: left, y: top, width: size, height: size, class: "wb-frame" }));
      for (const [x, text] of ticks(view[0], view[1], count)) {
        const p = left + toPixel([x, 0])[0];
        marks.push(svg("path", { d: `M${p} ${base}v4`, class: "wb-tick" }), svg("text", { x: clamp(p, 0, left + size - 2), y: base + 16, "text-anchor": "middle" }, text));
      }
      marks.push(svg("text", { x: left + size / 2, y: base + 32, "text-anchor": "middle", class: "wb-label" }, run.labels?.x ?? "x₁"));
      if (beside) marks.push(svg("text", { x: left + 1, y: top - 6, class: "wb-caption" }, scenes[pane].name));
      else if (pairwise) marks.push(svg("circle", { cx: left + 12, cy: top + 13, r: 4, fill: "var(--wb-particle)" }), svg("text", { x: left + 20, y: top + 17, class: "wb-caption" }, "A"),
        svg("circle", { cx: left + 44, cy: top + 13, r: 4, fill: "var(--wb-other)" }), svg("text", { x: left + 52, y: top + 17, class: "wb-caption" }, "B"));
    }
    for (const [y, text] of ticks(view[2], view[3], count)) {
      const p = top + toPixel([0, y])[1];
      marks.push(svg("path", { d: `M${MARGIN.left} ${p}h-4`, class: "wb-tick" }), svg("text", { x: MARGIN.left - 7, y: p + 4, "text-anchor": "end" }, text));
    }
    marks.push(svg("text", { x: 12, y: mid, "text-anchor": "middle", class: "wb-label", transform: `rotate(-90 12 ${mid})` }, run.labels?.y ?? "x₂"));
    return marks;
  }

  // The particle nearest to a point of the picture, within a finger's breadth.
  function pick(px, py, state) {
    let best = null, least = 14 ** 2, where = 0;
    const pane = paneOf(px);
    for (const i of beside ? [pane] : scenes.keys()) {
      const { run: { arrays: { x: { values, low, scale } }, samples: N, frames: T } } = scenes[i], at = scenes[i].at(state.frame);
      const f = Math.floor(at), w = at - f, g = Math.min(f + 1, T - 1) * N, [sx, sy] = [size / (view[1] - view[0]), size / (view[3] - view[2])];
      for (let s = 0; s < N; s++) {
        const a = 2 * (f * N + s), b = 2 * (g + s);
        const x = (low[0] + scale[0] * (values[a] * (1 - w) + values[b] * w) - view[0]) * sx, y = (view[3] - low[1] - scale[1] * (values[a + 1] * (1 - w) + values[b + 1] * w)) * sy;
        const d = (x - px + paneLeft(pane)) ** 2 + (y - py) ** 2;
        if (d < least) [best, least, where] = [s, d, i];
      }
    }
    return best === null ? null : { sample: best, scene: where };
  }

  // The samples inside a polygon of points of the picture, of the run that is drawn where it begins.
  function enclosed(points, state) {
    const pane = paneOf(points[0][0]), scene = scenes[pane], found = [], at = scene.at(state.frame), ring = points.map(([x, y]) => [x - paneLeft(pane), y]);
    for (let s = 0; s < scene.run.samples; s++) {
      const [x, y] = toPixel(positionOf(scene.run.arrays.x, s, at));
      let within = false;
      for (let i = 0, j = ring.length - 1; i < ring.length; j = i++)
        if (ring[i][1] > y !== ring[j][1] > y && x < ((ring[j][0] - ring[i][0]) * (y - ring[i][1])) / (ring[j][1] - ring[i][1]) + ring[i][0]) within = !within;
      if (within) found.push(s);
    }
    return { found, scene: pane };
  }

  // How many particles are outside of the view, and how many of these beyond all that was recorded.
  function outside(frame) {
    let out = 0, lost = 0;
    for (const scene of scenes) {
      const { run: { arrays: { x: { values, low, scale } }, samples: N } } = scene, f = Math.round(scene.at(frame));
      for (let k = 2 * f * N; k < 2 * (f + 1) * N; k += 2) {
        const x = low[0] + scale[0] * values[k], y = low[1] + scale[1] * values[k + 1];
        if (x < view[0] || x > view[1] || y < view[2] || y > view[3]) out++;
        if (values[k] === 0 || values[k] === 65535 || values[k + 1] === 0 || values[k + 1] === 65535) lost++;
      }
    }
    return { out, lost };
  }

  function tell(sample, state) {
    const point = ([x, y]) => minus(`(${number(x)}, ${number(y)})`), main = scenes[state.inScene] ?? first, lines = [];
    for (const scene of matched ? scenes : [main]) {
      const { arrays, seeds } = scene.run, at = scene.at(state.frame), here = positionOf(arrays.x, sample, at), tag = scenes.length > 1 ? `${scene.name}: ` : "";
      if (!lines.length) lines.push(`seed ${seeds[sample]}` + (scene.run.groupings.mode ? ` · ends in mode ${scene.run.groupings.mode.values[sample]}` : ""));
      lines.push(`${tag}${point(here)}`);
      if (arrays.denoised && sample < arrays.denoised.shape[1]) lines.push(`${tag}denoised ${point(positionOf(arrays.denoised, sample, at))}`);
      const exact = arrays.exact && positionOf(arrays.exact, sample, at);
      if (exact) lines.push(`${tag}exact ${point(exact)}, error ${number(Math.hypot(here[0] - exact[0], here[1] - exact[1]))}`);
    }
    const [x, y] = toPixel(positionOf(main.run.arrays.x, sample, main.at(state.frame)));
    return { at: [x + (beside ? paneLeft(scenes.indexOf(main)) : 0), y], lines };
  }

  // Mean distance of chosen samples from the exact flow, or null.
  function errorOf(chosen, frame) {
    const { arrays } = first.run, at = first.at(frame);
    if (!arrays.exact) return null;
    const each = chosen.filter((s) => s < arrays.exact.shape[1]).map((s) => { const [a, b] = [positionOf(arrays.x, s, at), positionOf(arrays.exact, s, at)]; return Math.hypot(a[0] - b[0], a[1] - b[1]); });
    return each.length ? each.reduce((a, b) => a + b, 0) / each.length : null;
  }

  // Zooms about, then moves by, fractions of the picture; never leaves what was recorded.
  function move(factor, [u, v], [du, dv]) {
    const along = (a, b, low, high, least, c, d) => {
      const width = clamp((b - a) * factor, least, high - low), start = clamp(a + c * (b - a - width) - d * width, low, high - width);
      return [start, start + width];
    };
    view = [...along(view[0], view[1], full[0], full[1], (home[1] - home[0]) / 100, u, du), ...along(view[2], view[3], full[2], full[3], (home[3] - home[2]) / 100, 1 - v, -dv)];
  }

  return { layers: available, every, upload, draw, layout, overlay, pick, tell, move, enclosed, outside, errorOf, colourBy, groupings: pairwise ? [] : Object.keys(first.run.groupings),
           part: (px, py) => [(px - paneLeft(paneOf(px))) / size, py / size], side: () => size,
           zoomed: () => String(view) !== String(home), widest: () => view[1] - view[0] > (full[1] - full[0]) * 0.999, reset: () => { view = [...home]; }, all: () => { view = [...full]; },
           window: () => (String(view) === String(home) ? null : [...view]), home: () => String(home),
           restore: (wanted) => { if (wanted?.length === 4 && wanted.every(Number.isFinite) && wanted[1] > wanted[0] && wanted[3] > wanted[2]) { view = [...wanted]; move(1, [0, 0], [0, 0]); } else view = [...home]; } };
}
