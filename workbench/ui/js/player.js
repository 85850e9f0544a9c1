// The player.

const SPEEDS = [0.25, 0.5, 1, 2, 4], WHOLE_RUN = 6;   // seconds for the whole run at speed 1
const DEFAULTS = { density: true, velocity: true, trails: true, particles: true, denoised: false, exact: true };

function render({ model, el }) {
  // --- elements
  const button = (name, label, act) => {
    const node = html("button", { type: "button", "aria-label": label, title: label }, icon(name));
    node.addEventListener("click", act);
    return node;
  };
  const canvas = html("canvas", { class: "wb-canvas", role: "img" }), overlay = svg("svg", {}), tip = html("div", { class: "wb-tip", hidden: true });
  const absent = html("div", { class: "wb-message", hidden: true }, "This browser offers no WebGL2, so the picture cannot be drawn. The time axis and the readouts still work.");
  const stage = html("div", { class: "wb-stage" }, canvas, overlay, tip), title = html("div", { class: "wb-title" });
  const layerBox = html("fieldset", { class: "wb-layers" }), trailInput = html("input", { type: "range", min: 0, max: 1, step: 1, "aria-label": "Trail length in nodes" }), trailOut = html("output");
  const trailBox = html("label", { class: "wb-trail" }, "Trail", trailInput, trailOut), reset = html("button", { type: "button", class: "wb-reset" }, "Reset view");
  const side = html("div", { class: "wb-side" }, layerBox, trailBox, reset), body = html("div", { class: "wb-body" }, absent, stage, side);
  const time = svg("svg", { class: "wb-time", role: "slider", tabindex: 0, "aria-label": "Time along the run, from noise to data", "aria-valuemin": 0 });
  const play = button("play", "Play", () => setPlaying(!state.playing));
  play.classList.add("wb-play");
  const loop = button("loop", "Loop", () => loop.setAttribute("aria-pressed", String(state.loop = !state.loop)));
  loop.setAttribute("aria-pressed", "false");
  const speed = html("select", { "aria-label": "Speed", title: "Speed" }, ...SPEEDS.map((s) => html("option", { value: s, selected: s === 1 }, `${s}×`)));
  const readout = html("div", { class: "wb-readout" }), live = html("div", { class: "wb-live", role: "status", "aria-live": "polite" });
  const bar = html("div", { class: "wb-bar" }, button("start", "To start (Home)", (e) => scrub(0, e)), button("back", "Step back (←)", (e) => step(-1, e)), play,
    button("forward", "Step forward (→)", (e) => step(1, e)), button("end", "To end (End)", (e) => scrub(Infinity, e)), speed, loop, readout, live);
  const notes = html("div", { class: "wb-notes" }), message = html("div", { class: "wb-message" });
  const content = html("div", {}, title, body, time, bar, notes);
  const root = html("div", { class: "wb-player", tabindex: 0, role: "group", "data-lm-suppress-shortcuts": "true" }, message, content);
  el.append(html("style", {}, STYLE), root);

  // --- state
  const state = { run: null, frame: 0, playing: false, loop: false, layers: { ...DEFAULTS }, trail: 16, hovered: null, colours: null, ratio: 1 };
  const stats = { drawn: 0, latency: null };
  let gpu, picture = null, scrubber = null, pending = 0, clock = null, asked = null, width = 0, gone = false;

  // --- traits: written at most five times a second while moving, at once when the motion ends
  let writing = false, writeTimer = 0, touched = -Infinity, known = null;
  const sent = [];
  function write() {
    clearTimeout(writeTimer);
    writeTimer = 0;
    if (gone || (model.get("frame") === state.frame && model.get("playing") === state.playing)) return;
    writing = true;
    model.set("frame", known = state.frame);
    model.set("playing", state.playing);
    model.save_changes();
    writing = false;
    sent.push(known);
    if (sent.length > 32) sent.shift();
  }
  function writeSoon() {
    touched = performance.now();
    writeTimer ||= setTimeout(write, 200);
  }
  // While the reader moves, a value of ours that comes back late is an echo and must not pull the picture back.
  function frameChanged() {
    const value = model.get("frame"), moving = state.playing || performance.now() - touched < 600;
    if (writing || !Number.isFinite(value) || (moving && sent.includes(value))) return;
    known = value;
    setFrame(value);
  }
  function playingChanged() {
    if (!writing && Boolean(model.get("playing")) !== state.playing) setPlaying(Boolean(model.get("playing")));
  }

  // --- motion
  function setFrame(value, event = null) {
    if (!state.run) return;
    state.frame = clamp(value, 0, state.run.frames - 1);
    asked ??= event?.timeStamp ?? null;
    requestDraw();
  }
  function scrub(frame, event) {
    if (state.playing) setPlaying(false);
    setFrame(frame, event);
    if (performance.now() - drawnAt > 12) draw();   // a lone move at once, a stream of them once a frame
    writeSoon();
  }
  function step(n, event) {
    scrub(n > 0 ? Math.floor(state.frame + 1e-6) + n : Math.ceil(state.frame - 1e-6) + n, event);
  }
  function setPlaying(on) {
    if (!state.run) return;
    state.playing = on && state.run.frames > 1;
    if (state.playing && state.frame >= state.run.frames - 1) state.frame = 0;
    clock = null;
    showPlaying();
    write();
    requestDraw();
  }
  function showPlaying() {
    const word = state.playing ? "Pause" : "Play";
    play.replaceChildren(icon(word.toLowerCase()));
    play.title = `${word} (space)`;
    play.setAttribute("aria-label", word);
  }
  function advance(now) {
    const { axis, frames } = state.run, elapsed = clock === null ? 0 : Math.min(now - clock, 500) / 1000;
    clock = now;
    const at = axisPosition(axis, state.frame) + elapsed * Number(speed.value) / WHOLE_RUN;
    state.frame = axisFrame(axis, at);
    if (at < 1) writeTimer ||= setTimeout(write, 200);
    else if (state.loop) state.frame = 0;
    else {
      state.frame = frames - 1;
      setPlaying(false);
    }
  }

  // --- drawing: only when something changed, in the animation frame after it changed
  function requestDraw() {
    if (!pending && !gone) pending = requestAnimationFrame(tick);
  }
  function tick(now) {
    pending = 0;
    if (!state.run) return;
    if (state.playing) advance(now);
    draw();
    if (state.playing) requestDraw();
  }
  let drawnAt = 0;
  function draw() {
    if (!state.run || !scrubber) return;
    cancelAnimationFrame(pending);
    pending = 0;
    drawnAt = performance.now();
    try {
      if (gpu && !gpu.gl.isContextLost()) picture.draw(gpu, state);
    } catch (error) {
      return blank(`The picture cannot be drawn: ${error.message}`);
    }
    scrubber.place(state.frame);
    const said = describe(state.run, state.frame);
    readout.textContent = said;
    time.setAttribute("aria-valuenow", Number(state.frame.toFixed(3)));
    time.setAttribute("aria-valuetext", said);
    announce(said);
    showTip();
    if (asked !== null) stats.latency = performance.now() - asked;
    asked = null;
    root.dataset.frame = state.frame;
    root.dataset.drawn = ++stats.drawn;
  }
  let liveTimer = 0;
  function announce(said) {
    clearTimeout(liveTimer);
    if (!state.playing) liveTimer = setTimeout(() => { live.textContent = said; }, 700);
  }
  function showTip() {
    tip.hidden = state.hovered === null;
    if (tip.hidden) return;
    const { at: [x, y], lines } = picture.tell(state.hovered, state.frame);
    tip.textContent = lines.join("\n");
    const left = canvas.offsetLeft + x + 14, top = canvas.offsetTop + y + 14;
    tip.style.left = `${left + tip.offsetWidth > stage.clientWidth ? left - tip.offsetWidth - 28 : left}px`;
    tip.style.top = `${top + tip.offsetHeight > stage.clientHeight ? top - tip.offsetHeight - 28 : top}px`;
  }

  // --- layout
  function layout() {
    const { run } = state;
    if (!run || width < 1) return;
    state.ratio = devicePixelRatio || 1;
    const wide = width >= 720, plane = run.kind === "plane";
    root.classList.toggle("wb-wide", wide);
    root.classList.toggle("wb-plane", plane);
    root.classList.toggle("wb-images", !plane);
    const box = picture.layout(plane && wide ? width - 226 : width, state.ratio);
    Object.assign(stage.style, { width: `${box.outer[0]}px`, height: `${box.outer[1]}px` });
    Object.assign(canvas.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${box.width}px`, height: `${box.height}px` });
    const pixels = [box.width, box.height].map((n) => Math.round(n * state.ratio));
    if (canvas.width !== pixels[0]) canvas.width = pixels[0];
    if (canvas.height !== pixels[1]) canvas.height = pixels[1];
    overlay.setAttribute("width", box.outer[0]);
    overlay.setAttribute("height", box.outer[1]);
    overlay.replaceChildren(...picture.overlay());
    scrubber = makeScrubber(run, width);
    time.style.height = `${scrubber.height}px`;
    time.replaceChildren(...scrubber.marks);
  }
  function viewChanged() {
    canvas.classList.toggle("wb-zoomed", picture.zoomed());
    reset.disabled = !picture.zoomed();
    overlay.replaceChildren(...picture.overlay());
    requestDraw();
  }

  // --- layers
  function showLayers() {
    const grouped = Boolean(state.run.arrays.group), ink = grouped ? getComputedStyle(root).getPropertyValue("--wb-groups").trim().split(/\s+/).slice(0, 3) : ["var(--wb-particle)"];
    layerBox.replaceChildren(html("legend", {}, "Layers"), ...picture.layers.map((name) => {
      const input = html("input", { type: "checkbox", checked: state.layers[name], "data-layer": name });
      input.addEventListener("change", () => { state.layers[name] = input.checked; requestDraw(); });
      return html("label", { class: "wb-layer", title: LAYERS[name][1] }, input, svg("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" }, ...SWATCHES[name](ink, grouped)), LAYERS[name][0],
        picture.every > 1 && (name === "trails" || name === "exact") ? html("small", {}, `1 in ${picture.every}`) : "");
    }));
    trailInput.max = state.run.frames - 1;
    trailInput.value = Math.min(state.trail, state.run.frames - 1);
    trailOut.textContent = `${trailInput.value} node${trailInput.value === "1" ? "" : "s"}`;
    side.hidden = picture.layers.length === 0;
  }
  trailInput.addEventListener("input", () => {
    state.trail = Number(trailInput.value);
    trailOut.textContent = `${state.trail} node${state.trail === 1 ? "" : "s"}`;
    requestDraw();
  });
  reset.addEventListener("click", () => { picture.reset(); viewChanged(); });

  // --- a new run: the same place on the axis, the same layers, the same view where the window is the same
  function upload() {
    gpu?.clear();
    gpu ??= makeGpu(canvas);
    absent.hidden = Boolean(gpu);
    body.classList.toggle("wb-blind", !gpu);
    if (gpu) picture.upload(gpu);
  }
  function load() {
    const old = state.run, place = old ? axisPosition(old.axis, state.frame) : null, view = picture?.view?.();
    state.hovered = null;
    try {
      const run = readRun(model.get("data"));
      if (!run) return blank("No run yet.");
      picture = run.kind === "plane" ? makePlane(run) : makeImages(run);
      state.run = run;
      picture.restore?.(view);
      upload();
    } catch (error) {
      return blank(`This run cannot be shown: ${error.message}`);
    }
    const { run } = state, wish = model.get("frame"), fresh = place === null || wish !== known;
    state.frame = clamp(fresh ? (Number.isFinite(wish) ? wish : 0) : axisFrame(run.axis, place), 0, run.frames - 1);
    known = wish;
    content.hidden = false;
    message.hidden = true;
    title.textContent = run.title ?? "";
    title.hidden = !run.title;
    root.setAttribute("aria-label", `Diffusion run${run.title ? `: ${run.title}` : ""}`);
    canvas.setAttribute("aria-label", `${run.samples} samples from noise to data. ${run.title ?? ""}`);
    notes.textContent = (run.notes ?? []).join(" ");
    notes.hidden = !run.notes?.length;
    time.setAttribute("aria-valuemax", run.frames - 1);
    showLayers();
    layout();
    if (picture.zoomed) viewChanged();
    requestDraw();
    if (!fresh && state.frame !== wish) writeSoon();
    if (Boolean(model.get("playing")) !== state.playing) setPlaying(Boolean(model.get("playing")));
  }
  function blank(sentence) {
    Object.assign(state, { run: null, playing: false });
    picture = scrubber = null;
    message.textContent = sentence;
    message.hidden = false;
    content.hidden = true;
    showPlaying();
  }

  // --- pointer on the picture: hover, pan, pinch, wheel
  const held = new Map();
  const hover = (event) => {
    const found = picture.pick(event.offsetX, event.offsetY, state.frame);
    if (found === state.hovered && state.run.kind === "plane") return;
    state.hovered = found;
    requestDraw();
  };
  canvas.addEventListener("pointerdown", (event) => {
    root.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    canvas.classList.toggle("wb-held", Boolean(picture.zoomed?.()));
    hover(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = held.get(event.pointerId), to = [event.offsetX, event.offsetY];
    if (!from) return hover(event);
    if (!picture.move) return;
    const size = canvas.clientWidth, other = [...held].find(([id]) => id !== event.pointerId)?.[1];
    held.set(event.pointerId, to);
    if (other) {
      const gap = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]), centre = [0, 1].map((i) => (to[i] + other[i]) / 2 / size);
      picture.move(gap(from) / Math.max(gap(to), 1), centre, [0, 1].map((i) => (to[i] - from[i]) / 2 / size));
    } else picture.move(1, [0, 0], [0, 1].map((i) => (to[i] - from[i]) / size));
    viewChanged();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => { held.delete(event.pointerId); canvas.classList.remove("wb-held"); });
  canvas.addEventListener("pointerleave", () => { if (state.hovered !== null) { state.hovered = null; requestDraw(); } });
  canvas.addEventListener("dblclick", () => { if (picture.reset) { picture.reset(); viewChanged(); } });
  canvas.addEventListener("wheel", (event) => {
    if (!picture.move || (event.deltaY > 0 && !picture.zoomed())) return;   // nothing left to zoom out of: the page may scroll
    event.preventDefault();
    const size = canvas.clientWidth, turns = event.deltaY * (event.deltaMode === 1 ? 16 : 1) * (event.ctrlKey ? 0.01 : 0.0015);
    picture.move(Math.exp(clamp(turns, -0.7, 0.7)), [event.offsetX / size, event.offsetY / size], [0, 0]);
    viewChanged();
  }, { passive: false });

  // --- pointer on the time axis
  const scrubTo = (event) => scrub(scrubber.frameAt(event.clientX - time.getBoundingClientRect().left), event);
  time.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    time.setPointerCapture(event.pointerId);
    time.focus({ preventScroll: true });
    scrubTo(event);
    event.preventDefault();
  });
  time.addEventListener("pointermove", (event) => { if (time.hasPointerCapture(event.pointerId)) scrubTo(event); });
  time.addEventListener("lostpointercapture", write);

  // --- keys: none of those used here reaches the notebook or the page
  function faster(by) {
    speed.value = SPEEDS[clamp(SPEEDS.indexOf(Number(speed.value)) + by, 0, SPEEDS.length - 1)];
  }
  const KEYS = {
    " ": () => setPlaying(!state.playing), ArrowRight: (e) => step(1, e), ArrowLeft: (e) => step(-1, e), PageUp: (e) => step(10, e), PageDown: (e) => step(-10, e),
    Home: (e) => scrub(0, e), End: (e) => scrub(Infinity, e), "+": () => faster(1), "=": () => faster(1), "-": () => faster(-1),
  };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopPropagation();
    const act = KEYS[event.key], own = event.target.closest("select, input[type=range]") || (event.key === " " && event.target.closest("button, input"));
    if (!act || own || !state.run) return;
    event.preventDefault();
    act(event);
  });

  // --- surroundings: size, theme, loss of the context
  let screen = null;
  const watchScreen = () => {
    screen?.removeEventListener("change", watchScreen);
    screen = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    screen.addEventListener("change", watchScreen);
    layout();
    draw();
  };
  const preference = matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    if (!root.isConnected) return;   // styles have no values yet; the first size brings us back
    const mode = isDark(el) ? "dark" : "light";
    if (root.dataset.mode === mode) return;
    root.dataset.mode = mode;
    state.colours = coloursOf(root);
    if (state.run) showLayers();
    requestDraw();
  }
  let paintTimer = 0;
  const themes = new MutationObserver(() => {
    paint();
    clearTimeout(paintTimer);
    paintTimer = setTimeout(paint, 400);   // a page may fade its background
  });
  const sizes = new ResizeObserver(([entry]) => {
    if (width === 0) surround();
    width = Math.floor(entry.contentRect.width);
    layout();
    draw();
  });
  function surround() {
    themes.disconnect();
    for (const node of ancestors(el)) {
      themes.observe(node, { attributes: true, attributeFilter: ["class", "style", "data-theme", "data-jp-theme-light", "data-mui-color-scheme", "data-bs-theme"] });
      if (node.shadowRoot) node.setAttribute("data-lm-suppress-shortcuts", "true");   // seen from outside, keys come from the host
    }
    paint();
  }
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    gpu = null;
    if (state.run) upload();
    requestDraw();
  });

  // --- begin
  state.colours = coloursOf(root);
  preference.addEventListener("change", paint);
  model.on("change:data", load);
  model.on("change:frame", frameChanged);
  model.on("change:playing", playingChanged);
  root.__player = { get frame() { return state.frame; }, setFrame: (f) => scrub(f, new Event("call")), get stats() { return { ...stats }; } };
  load();
  surround();
  sizes.observe(root);
  watchScreen();

  return () => {
    gone = true;
    cancelAnimationFrame(pending);
    [writeTimer, liveTimer, paintTimer].forEach(clearTimeout);
    sizes.disconnect();
    themes.disconnect();
    preference.removeEventListener("change", paint);
    screen.removeEventListener("change", watchScreen);
    model.off?.("change:data", load);
    model.off?.("change:frame", frameChanged);
    model.off?.("change:playing", playingChanged);
    gpu?.clear();
    gpu?.release();
  };
}

export default { render };
