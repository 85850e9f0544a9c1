// Images: a panel of tiles for each recorded quantity.

const PANELS = { x: "xₜ", denoised: "Denoised estimate", exact: "Exact flow" };
const CAPTION = 20, BETWEEN = 18, LEAST = 18;   // LEAST: side of the smallest tile [px]

function makeImages(scenes, how, matched) {
  const [first] = scenes, { run } = first, { rows: R, columns: C } = run.image, pairwise = scenes.length > 1 && how !== "beside" && matched;
  const named = (scene) => Object.keys(PANELS).filter((name) => scene.run.arrays[name]);
  const list = pairwise ? named(first).filter((name) => name !== "exact" && scenes[1].run.arrays[name]).map((name) => ({ name, scene: 0, mode: how === "over" ? 1 : 2 }))
    : scenes.flatMap((scene, i) => named(scene).map((name) => ({ name, scene: i, mode: 0 })));
  const title = ({ name, scene, mode }) => (mode === 2 ? `B − A: ${PANELS[name]}` : mode === 1 ? `A left, B right: ${PANELS[name]}` : scenes.length > 1 ? `${scenes[scene].name} · ${PANELS[name]}` : PANELS[name]);
  const most = Math.max(...scenes.map(({ run: { samples } }) => samples));
  let grid, panels, ratio = 1, single = null;

  function upload(gpu) {
    scenes.forEach((scene, i) => { for (const name of named(scene)) gpu.upload(i * UNITS + UNIT[name], scene.run.arrays[name].values, 1); });
  }

  // A pixel of a sample is a whole number of device pixels wide, unless that would waste much of the room.
  function layout(width, height, device) {
    ratio = device;
    const N = single === null ? most : 1, gap = Math.max(1, Math.round(2 * ratio));
    let best = null;
    for (let across = 1; across <= list.length; across++) {
      const down = Math.ceil(list.length / across), room = [(width - BETWEEN * (across - 1)) / across, height / down - CAPTION - (down > 1 ? 4 : 0)];
      if (Math.min(...room) < LEAST) continue;
      for (let columns = 1; columns <= Math.min(N, Math.floor(room[0] / LEAST)); columns++) {
        const free = ((room[0] * ratio - gap) / columns - gap) / C, lines = Math.ceil(N / columns), fits = Math.floor((room[1] * ratio - gap) / (free * R + gap));
        const tall = fits >= lines ? free : Math.max(((room[1] * ratio - gap) / lines - gap) / R, LEAST * ratio / C), scale = Math.min(free, tall);
        const shown = Math.min(N, columns * Math.max(1, Math.floor((room[1] * ratio - gap) / (scale * R + gap) + 1e-6)));
        const worth = shown * scale ** 2 * (shown === N ? 1.5 : 1);
        if ((scale * R + 2 * gap) / ratio <= room[1] + 1 && (!best || worth > best.worth)) best = { worth, across, columns, shown, free: scale };
      }
    }
    best ??= { across: 1, columns: 1, shown: 1, free: Math.max(1, Math.min(width / C, (height - CAPTION) / R) * ratio) };
    const { across, columns, shown, free } = best, lines = Math.ceil(shown / columns);
    const scale = Math.floor(free) > 0.85 * free ? Math.floor(free) : Math.floor(free * C) / C || free;
    const pitch = [scale * C + gap, scale * R + gap], box = [columns * pitch[0] + gap, lines * pitch[1] + gap];
    grid = { gap, columns, shown, scale, pitch, box };
    panels = list.map((panel, i) => ({ ...panel, x: (i % across) * (box[0] / ratio + BETWEEN), y: CAPTION + Math.floor(i / across) * (box[1] / ratio + CAPTION + 4) }));
    const total = Math.ceil(across * (box[0] / ratio + BETWEEN) - BETWEEN), high = Math.ceil(panels.at(-1).y + box[1] / ratio);
    return { left: 0, top: 0, width: total, height: high, outer: [total, high] };
  }

  const levels = (i, name) => { const { low, scale } = scenes[i].run.arrays[name]; return [low[0], scale[0]]; };
  function draw(gpu, { frame, hovered, selected, colours }) {
    const { gl } = gpu, tall = gl.drawingBufferHeight, grey = levels(0, "x");
    gl.viewport(0, 0, gl.drawingBufferWidth, tall);
    gl.disable(gl.BLEND);
    gl.clearColor(...colours.surface, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    for (const { name, scene: i, mode, x, y } of panels) {
      const scene = scenes[i], other = mode ? 1 : i, left = Math.round(x * ratio), top = tall - Math.round(y * ratio);
      gl.viewport(left, Math.ceil(top - grid.box[1]), Math.ceil(grid.box[0]), Math.ceil(grid.box[1]));
      gpu.draw("tiles", { uStore: i * UNITS + UNIT[name], uSamples: scene.run.arrays[name].shape[1], uLast: scene.run.frames - 1, uFrame: scene.at(frame), uMode: mode,
        uOther: other * UNITS + UNIT[name], uOtherSamples: scenes[other].run.arrays[name].shape[1], uOtherLast: scenes[other].run.frames - 1, uOtherFrame: scenes[other].at(frame),
        uLevels: [...levels(i, name), ...levels(other, name)], uGrey: [grey[0], 1 / (255 * grey[1])], uBound: 127.5 * grey[1],
        uFirst: single ?? 0, uShown: Math.min(grid.shown, scene.run.arrays[name].shape[1] - (single ?? 0)), uColumns: grid.columns, uPixels: [C, R], uGap: grid.gap,
        uScale: grid.scale, uPitch: grid.pitch, uCorner: [left, top], uSelected: single === null ? hovered ?? [...selected][0] ?? -1 : -1, uSurface: colours.surface, uAccent: colours.accent });
    }
  }

  function overlay() {
    const narrow = grid.box[0] / ratio < 130, brief = { x: "xₜ", denoised: "Denoised", exact: "Exact" };
    const part = single !== null ? `seed ${run.seeds[single]} · click or Esc: all` : grid.shown < most ? `first ${grid.shown} of ${most}` : `${most} sample${most > 1 ? "s" : ""}`;
    return panels.flatMap((panel, i) => [svg("text", { x: panel.x + grid.gap / ratio, y: panel.y - 6, class: "wb-caption" }, narrow ? `${scenes.length > 1 && !panel.mode ? `${scenes[panel.scene].name} ` : ""}${brief[panel.name]}` : title(panel)),
      i || grid.box[0] / ratio < 190 ? "" : svg("text", { x: panel.x + grid.box[0] / ratio - 2, y: panel.y - 6, "text-anchor": "end" }, part)]);
  }

  let spot = null;   // the pixel last pointed at
  function pick(px, py) {
    for (const panel of panels) {
      const x = (px - panel.x) * ratio - grid.gap, y = (py - panel.y) * ratio - grid.gap;
      const column = Math.floor(x / grid.pitch[0]), row = Math.floor(y / grid.pitch[1]), sample = row * grid.columns + column + (single ?? 0);
      if (x < 0 || y < 0 || column >= grid.columns || sample >= grid.shown + (single ?? 0)) continue;
      const pixel = [(y - row * grid.pitch[1]) / grid.scale, (x - column * grid.pitch[0]) / grid.scale].map(Math.floor);
      spot = { pixel: [Math.min(pixel[0], R - 1), Math.min(pixel[1], C - 1)], at: [px, py] };
      return { sample, scene: panel.scene };
    }
    return null;
  }

  function tell(sample, { frame, inScene }) {
    const [r, c] = spot?.pixel ?? [0, 0], lines = [`seed ${(scenes[inScene] ?? first).run.seeds[sample]} · row ${r}, column ${c}`];
    for (const scene of matched ? scenes : [scenes[inScene] ?? first]) {
      const at = scene.at(frame), f = Math.floor(at), w = at - f, { frames: T } = scene.run;
      for (const name of named(scene)) {
        const { values, low, scale, shape } = scene.run.arrays[name], read = (g) => values[((Math.min(g, T - 1) * shape[1] + sample) * R + r) * C + c];
        if (sample < shape[1]) lines.push(minus(`${scenes.length > 1 ? `${scene.name}: ` : ""}${PANELS[name]} ${number(low[0] + scale[0] * (read(f) * (1 - w) + read(f + 1) * w))}`));
      }
    }
    return { at: spot?.at ?? [0, 0], lines };
  }

  return { layers: [], every: 1, upload, draw, layout, overlay, pick, tell, magnify: (sample) => { single = sample; }, magnified: () => single };
}
