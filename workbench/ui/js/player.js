// The player.

const SPEEDS = [0.25, 0.5, 1, 2, 4], WHOLE_RUN = 6;   // seconds for the whole run at speed 1
const DEFAULTS = { density: true, velocity: true, trails: true, particles: true, denoised: false, exact: true };

function render({ model, el }) {
  // --- elements
  const button = (name, label, act, rare = false) => {
    const node = html("button", { type: "button", "aria-label": label, title: label, class: rare && "wb-rare" }, icon(name));
    node.addEventListener("click", act);
    return node;
  };
  const named = (text, title, act) => {
    const node = html("button", { type: "button", title }, text);
    node.addEventListener("click", act);
    return node;
  };
  const canvas = html("canvas", { class: "wb-canvas", role: "img" }), veil = html("canvas", { class: "wb-veil", "aria-hidden": "true" }), overlay = svg("svg", {}), tip = html("div", { class: "wb-tip", hidden: true });
  const absent = html("div", { class: "wb-absent", hidden: true }, "This browser offers no WebGL2, so the picture cannot be drawn. The time axis and the readouts still work.");
  const stage = html("div", { class: "wb-stage" }, canvas, veil, overlay, tip), cell = html("div", { class: "wb-cell" }, absent, stage);
  const title = html("div", { class: "wb-title" }), differs = html("div", { class: "wb-differs" }), headLine = html("div", { class: "wb-head-line" }, title, differs);
  const layerBox = html("fieldset", { class: "wb-layers" }), trailInput = html("input", { type: "range", min: 0, max: 1, step: 1, "aria-label": "Trail length in nodes" }), trailOut = html("output");
  const trailBox = html("label", { class: "wb-trail" }, "Trail", trailInput, trailOut);
  const reset = named("Reset view", "Show the window of the run (double click)", () => { picture.reset(); viewChanged(); viewTold(); });
  const wide = named("Zoom out to all", "Show all that was recorded", () => { picture.all(); viewChanged(); viewTold(); });
  const drop = named("", "Forget the choice (Esc)", () => choose([], 0));
  const side = html("div", { class: "wb-side" }, layerBox, trailBox, html("div", { class: "wb-views" }, reset, wide, drop));
  const time = svg("svg", { class: "wb-time", role: "slider", tabindex: 0, "aria-label": "Time along the run, from noise to data", "aria-valuemin": 0 });
  const play = button("play", "Play", () => setPlaying(!state.playing));
  play.classList.add("wb-play");
  const loop = button("loop", "Loop", () => loop.setAttribute("aria-pressed", String(state.loop = !state.loop)), true);
  loop.setAttribute("aria-pressed", "false");
  const speed = html("select", { "aria-label": "Speed", title: "Speed (+, −)" }, ...SPEEDS.map((s) => html("option", { value: s, selected: s === 1 }, `${s}×`)));
  const readout = html("div", { class: "wb-readout" }), live = html("div", { class: "wb-live", role: "status", "aria-live": "polite" });
  const within = button("within", "Steps within a step: stop at every state at which the model is evaluated (i)", () => setWithin(!state.within));
  const layersButton = button("layers", "Layers", () => layersButton.setAttribute("aria-expanded", String(root.classList.toggle("wb-open"))));
  layersButton.classList.add("wb-layers-button");
  layersButton.setAttribute("aria-expanded", "false");
  const takeButton = button("take", "Take it away: PNG, SVG, WebM, GIF", () => showMenu(menu.hidden));
  takeButton.setAttribute("aria-expanded", "false");
  const menu = html("div", { class: "wb-menu", hidden: true }, named("Picture, PNG", "With the study inside: drop it on a picture to have it back", () => take("png")),
    named("Picture, SVG", "With the study inside: drop it on a picture to have it back", () => take("svg")), named("Film, WebM", "Plays the run once and records it", () => take("webm")), named("Film, GIF", "The whole run in 48 pictures of at most 480 pixels", () => take("gif")));
  const bar = html("div", { class: "wb-bar" }, play, button("start", "To start (Home)", (e) => scrub(0, e), true), button("back", "Step back (←)", (e) => step(-1, e)),
    button("forward", "Step forward (→)", (e) => step(1, e)), button("end", "To end (End)", (e) => scrub(Infinity, e), true), speed, loop, within, layersButton,
    html("span", { class: "wb-menu-place" }, takeButton, menu), readout, live);
  const notes = html("details", { class: "wb-notes" }), message = html("div", { class: "wb-message" }), said = html("div", { class: "wb-said", role: "status", hidden: true });
  const content = [headLine, cell, time, bar, side, notes];
  const root = html("div", { class: "wb-player", tabindex: 0, role: "group", "data-lm-suppress-shortcuts": "true" }, message, ...content, said);
  // The room that the page gives, also where it says no more than how high it is at least.
  Object.assign(el.style, { display: "grid", gridTemplate: "minmax(0, 1fr) / minmax(0, 1fr)" });
  el.style.height ||= "100%";
  el.append(html("style", {}, STYLE), root);

  // --- state
  const state = { run: null, frame: 0, playing: false, loop: false, layers: { ...DEFAULTS }, trail: 16, colour: "plain", hovered: null, inScene: 0, selected: new Set(), colours: null, ratio: 1, splat: makeSplat(veil), whole: false, rush: false, within: false };
  const stats = { drawn: 0, latency: null, gpu: null };
  let gpu, picture = null, scrubber = null, strip = {}, scenes = [], matched = false, pending = 0, clock = null, asked = null, size = [0, 0], gone = false, lasso = null, atEnd = null;

  // --- traits: written at most five times a second while moving, at once when the motion ends
  const still = matchMedia("(prefers-reduced-motion: reduce)");
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
    const wanted = Boolean(model.get("playing"));
    if (writing || wanted === state.playing) return;
    // Where the reader's system asks for no motion, nothing plays but by the reader's own hand.
    if (wanted && still.matches) writeSoon();
    else setPlaying(wanted);
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
    touched = performance.now();
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
  // The states within the steps are recorded when they are asked for, by whoever made the run.
  function setWithin(on) {
    if (within.hidden) return;
    state.within = on;
    showWithin();
    viewTold();
  }
  function showWithin() {
    within.hidden = !model.get("inside");
    within.setAttribute("aria-pressed", String(state.within));
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
      atEnd?.();
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
  let drawnAt = 0, restTimer = 0;
  function draw() {
    if (!state.run || !scrubber) return;
    cancelAnimationFrame(pending);
    pending = 0;
    if (state.playing) requestDraw();   // whoever draws, what plays goes on
    drawnAt = performance.now();
    // In motion some things may be drawn less sharp; at rest, all anew.
    state.rush = state.playing || drawnAt - touched < 200;
    clearTimeout(restTimer);
    if (state.rush && !state.playing) restTimer = setTimeout(requestDraw, 220);
    try {
      if (gpu && !gpu.gl.isContextLost() && picture.draw(gpu, state)) setTimeout(requestDraw, 30);
    } catch (error) {
      return blank(`The picture cannot be drawn: ${error.message}`);
    }
    scrubber.place(state.frame);
    // Words that change with each frame of a film are read by nobody: ten times a second is enough.
    if (!state.playing || drawnAt - wordsAt > 100) {
      wordsAt = drawnAt;
      const words = describe(state.run, state.frame);
      readout.textContent = readout.title = words;
      time.setAttribute("aria-valuenow", Number(state.frame.toFixed(3)));
      time.setAttribute("aria-valuetext", words);
      announce(words);
      count();
    }
    showTip();
    if (asked !== null) stats.latency = performance.now() - asked;
    asked = null;
    root.dataset.frame = state.frame;
    root.dataset.drawn = ++stats.drawn;
    if (state.playing) requestDraw();   // whoever asked for this frame has cancelled the next one
  }
  let wordsAt = 0;
  // How many particles are not in view, and a way to see them.
  function count() {
    if (!picture.outside) return;
    const { out, lost } = picture.outside(state.frame), text = out ? `${out} outside` + (lost ? `, ${lost} of them beyond all that is drawn` : "") : "";
    wide.textContent = out && !picture.widest() ? `Zoom out to all (${out} outside)` : "Zoom out to all";
    wide.title = text || "No particle is outside of the view";
    wide.disabled = picture.widest();
    root.dataset.outside = out;
    beyond.textContent = text;
  }
  const beyond = svg("text", { class: "wb-caption wb-beyond", "text-anchor": "end" });
  let liveTimer = 0;
  function announce(said) {
    clearTimeout(liveTimer);
    if (!state.playing) liveTimer = setTimeout(() => { live.textContent = said; }, 700);
  }
  function showTip() {
    tip.hidden = state.hovered === null;
    if (tip.hidden) return;
    const { at: [x, y], lines } = picture.tell(state.hovered, state);
    tip.textContent = lines.join("\n");
    const left = canvas.offsetLeft + x + 14, top = canvas.offsetTop + y + 14;
    tip.style.left = `${left + tip.offsetWidth > stage.clientWidth ? left - tip.offsetWidth - 28 : left}px`;
    tip.style.top = `${top + tip.offsetHeight > stage.clientHeight ? top - tip.offsetHeight - 28 : top}px`;
  }

  // --- layout: the time axis and its buttons first, the picture in what is left
  function layout() {
    const { run } = state, [width, height] = size;
    if (!run || width < 1) return;
    state.ratio = devicePixelRatio || 1;
    const plane = run.kind === "plane", low = height < (width < 620 ? 340 : 450), two = scenes.length > 1 && model.get("compare") === "beside";
    root.classList.toggle("wb-wide", plane && width >= 640 && (width - 232) / (two ? 2 : 1) > Math.min(0.62 * height, 380));
    root.classList.toggle("wb-slim", width < 620);
    root.classList.toggle("wb-low", low);
    root.classList.toggle("wb-plane", plane);
    root.classList.toggle("wb-images", !plane);
    scrubber = makeScrubber(run, width, { ...strip, low: low || height < 400, strip: clamp(Math.round(0.055 * height), 16, 40) });
    time.style.height = `${scrubber.height}px`;
    time.replaceChildren(...scrubber.marks);
    const [across, down] = [cell.clientWidth, cell.clientHeight];
    if (across < 1 || down < 1) return;
    const box = picture.layout(across, down, state.ratio);
    Object.assign(stage.style, { width: `${box.outer[0]}px`, height: `${box.outer[1]}px`, left: `${Math.max(0, Math.floor((across - box.outer[0]) / 2))}px`, top: `${Math.max(0, Math.floor((down - box.outer[1]) / 2))}px` });
    const pixels = [box.width, box.height].map((n) => Math.round(n * state.ratio));
    for (const one of [canvas, veil]) {
      Object.assign(one.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${box.width}px`, height: `${box.height}px` });
      if (one.width !== pixels[0]) one.width = pixels[0];
      if (one.height !== pixels[1]) one.height = pixels[1];
    }
    overlay.setAttribute("width", box.outer[0]);
    overlay.setAttribute("height", box.outer[1]);
    beyond.setAttribute("x", box.left + box.width - 6);
    beyond.setAttribute("y", box.top + 16);
    marks();
  }
  function marks() {
    overlay.replaceChildren(...picture.overlay(state), beyond, ...(lasso ? [svg("polygon", { class: "wb-lasso", points: lasso.map(([x, y]) => `${x + canvas.offsetLeft},${y + canvas.offsetTop}`).join(" ") })] : []));
  }
  function viewChanged() {
    canvas.classList.toggle("wb-zoomed", picture.zoomed());
    reset.disabled = !picture.zoomed();
    marks();
    requestDraw();
  }

  // --- the view: what a link has to hold beside the study; written when a gesture ends
  let viewTimer = 0, viewWriting = false;
  function viewNow() {
    const made = {}, layers = Object.fromEntries(Object.entries(state.layers).filter(([name, on]) => on !== DEFAULTS[name])), window = picture?.window?.();
    if (window) made.window = window.map((v) => Number(v.toPrecision(5)));
    if (Object.keys(layers).length) made.layers = layers;
    if (state.trail !== 16) made.trail = state.trail;
    if (state.colour !== "plain") made.colour = state.colour;
    if (state.within) made.within = true;
    const chosen = [...state.selected].slice(0, PATHS).map((s) => scenes[0].run.seeds[s]), single = picture?.magnified?.() ?? null;
    if (chosen.length) made.selected = chosen;
    if (single !== null) made.image = scenes[0].run.seeds[single];
    return made;
  }
  function viewTold() {
    clearTimeout(viewTimer);
    viewTimer = setTimeout(() => {
      if (gone || !state.run) return;
      const made = viewNow();
      if (JSON.stringify(made) === JSON.stringify(model.get("view") ?? {})) return;
      viewWriting = true;
      model.set("view", made);
      model.save_changes();
      viewWriting = false;
    }, 250);
  }
  function viewRead() {
    if (viewWriting || !state.run) return;
    const wanted = model.get("view") ?? {}, { seeds } = scenes[0].run;
    state.within = wanted.within === true;
    showWithin();
    state.layers = { ...DEFAULTS };
    for (const name of Object.keys(DEFAULTS)) if (typeof wanted.layers?.[name] === "boolean") state.layers[name] = wanted.layers[name];
    state.trail = Number.isFinite(wanted.trail) ? Math.max(0, Math.round(wanted.trail)) : 16;
    colourBy(wanted.colour);
    picture.restore?.(wanted.window);
    state.selected = new Set([].concat(wanted.selected ?? []).map((seed) => seeds.indexOf(seed)).filter((s) => s >= 0));
    const single = seeds.indexOf(wanted.image);
    picture.magnify?.(single >= 0 ? single : null);
    masked();
    showLayers();
    layout();
    if (picture.zoomed) viewChanged();
    requestDraw();
  }

  // --- chosen samples: their paths, their errors
  function choose(list, scene, event = null) {
    const chosen = new Set(list);
    if (event?.ctrlKey || event?.metaKey) state.selected.forEach((s) => chosen.add(s));
    Object.assign(state, { selected: chosen, inScene: scene });
    masked();
    viewTold();
    requestDraw();
  }
  function masked() {
    const chosen = [...state.selected], N = scenes[0]?.run.samples ?? 0;
    if (gpu && picture?.enclosed) {
      const mask = new Uint8Array(Math.max(...scenes.map(({ run: { samples } }) => samples)));
      chosen.forEach((s) => { mask[s] = 1; });
      gpu.uploadMask(mask);
    }
    const error = picture?.errorOf && chosen.length && state.inScene === 0 ? picture.errorOf(chosen, state.frame) : null;
    drop.hidden = !chosen.length || !picture?.enclosed;
    drop.textContent = `${chosen.length} of ${N} chosen` + (error === null ? "" : `, mean error ${number(error, 2)}`) + " ×";
  }

  // --- layers
  const COLOURS = { title: "What particles and trails are coloured by; a sample ends in the class of the data point that is nearest", plain: "one for all", mode: "mode it ends in", label: "class asked for", seed: "seed" };
  function colourBy(name) {
    state.colour = picture.groupings?.includes(name) ? name : "plain";
    if (gpu) picture.colourBy?.(gpu, state.colour);
  }
  function showLayers() {
    const grouped = state.colour !== "plain" && picture.groupings?.includes(state.colour), ink = grouped ? getComputedStyle(root).getPropertyValue("--wb-groups").trim().split(/\s+/).slice(0, 3) : ["var(--wb-particle)"];
    layerBox.replaceChildren(html("legend", {}, "Layers"), ...picture.layers.map((name) => {
      const input = html("input", { type: "checkbox", checked: state.layers[name], "data-layer": name });
      input.addEventListener("change", () => { state.layers[name] = input.checked; viewTold(); requestDraw(); });
      return html("label", { class: "wb-layer", title: LAYERS[name][1] }, input, svg("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" }, ...SWATCHES[name](ink, grouped)), LAYERS[name][0],
        picture.every > 1 && (name === "trails" || name === "exact") ? html("small", {}, `1 in ${picture.every}`) : "");
    }));
    trailInput.max = state.run.frames - 1;
    trailInput.value = Math.min(state.trail, state.run.frames - 1);
    trailOut.textContent = `${trailInput.value} node${trailInput.value === "1" ? "" : "s"}`;
    if (picture.groupings?.length) {
      const select = html("select", { "aria-label": "Colour", title: COLOURS.title }, ...["plain", ...picture.groupings].map((name) => html("option", { value: name, selected: name === state.colour }, COLOURS[name] ?? name)));
      select.addEventListener("change", () => { colourBy(select.value); showLayers(); viewTold(); requestDraw(); });
      layerBox.append(html("label", { class: "wb-layer" }, "Colour", select));
    }
    side.hidden = picture.layers.length === 0;
  }
  trailInput.addEventListener("input", () => {
    state.trail = Number(trailInput.value);
    trailOut.textContent = `${state.trail} node${state.trail === 1 ? "" : "s"}`;
    viewTold();
    requestDraw();
  });

  // --- a new run: the same place on the axis, the same layers, the same view where the window is the same
  function upload() {
    gpu?.clear();
    gpu ??= makeGpu(canvas);
    absent.hidden = Boolean(gpu);
    stage.hidden = !gpu;
    if (gpu) picture.upload(gpu);
  }
  // The runs that are shown, and what is said of them: B only where it can be compared with A.
  function arrange(first) {
    const compare = ["over", "difference"].includes(model.get("compare")) ? model.get("compare") : "beside", made = { run: first, scenes: [{ run: first, name: "A", at: (f) => f }], how: compare, matched: true, sentence: "", remark: "" };
    let second = null;
    try {
      second = withFlow(readRun(model.get("other")), model.get("other_flow"));
    } catch (error) {
      return { ...made, sentence: `B cannot be shown: ${error.message}` };
    }
    if (!second) return made;
    const pair = pairUp(first, second);
    if (!pair.a) return { ...made, sentence: pair.sentence };
    const how = pair.matched || compare === "over" && first.kind === "plane" ? compare : "beside";
    return { run: pair.a, scenes: [{ run: pair.a, name: "A", at: (f) => f }, { run: pair.b, name: "B", at: pair.clock.toB }], how, matched: pair.matched, pair, sentence: pair.sentence ?? "", remark: pair.remark ?? "" };
  }
  function curvesOf({ scenes: [a, b], pair, how, matched }) {
    const own = ({ run }) => run.readouts[0]?.values, position = (frame) => axisPosition(a.run.axis, frame);
    if (b && how === "difference" && matched) {
      const values = apart(a.run, b.run, pair.clock), unit = a.run.kind === "plane" ? "per coordinate, as drawn" : "per pixel, as drawn";
      const read = { label: "RMS difference of A and B", brief: "RMS of B − A", unit, values };
      return { readout: read, curves: [[values, a.run.axis.u]] };
    }
    if (!own(a)) return { readout: null, curves: [] };
    const second = b && own(b) ? [[own(b), Array.from(own(b), (_, g) => position(pair.clock.toA(g)))]] : [];
    return { readout: a.run.readouts[0], curves: [[own(a), a.run.axis.u], ...second] };
  }
  function load() {
    const old = state.run, place = old ? axisPosition(old.axis, state.frame) : null, view = picture?.window?.(), before = picture?.home?.();
    state.hovered = null;
    let arranged;
    try {
      const run = withFlow(readRun(model.get("data")), model.get("flow"));
      if (!run) return blank("No run yet.");
      arranged = arrange(run);
      ({ scenes, matched } = arranged);
      picture = run.kind === "plane" ? makePlane(scenes, arranged.how, matched) : makeImages(scenes, arranged.how, matched);
      strip = curvesOf(arranged);
      state.run = { ...arranged.run, readouts: strip.readout ? [strip.readout, ...arranged.run.readouts.slice(strip.readout === arranged.run.readouts[0] ? 1 : 0)] : arranged.run.readouts };
      upload();
    } catch (error) {
      return blank(`This run cannot be shown: ${error.message}`);
    }
    const { run } = state, wish = model.get("frame"), fresh = place === null || wish !== known;
    state.frame = clamp(fresh ? (Number.isFinite(wish) ? wish : 0) : axisFrame(run.axis, place), 0, run.frames - 1);
    known = wish;
    content.forEach((node) => { node.hidden = false; });
    message.hidden = true;
    title.textContent = title.title = run.title ?? "";
    differs.textContent = differs.title = scenes.length > 1 ? differences(scenes[0].run, scenes[1].run) : "";
    root.setAttribute("aria-label", `Diffusion run${run.title ? `: ${run.title}` : ""}`);
    canvas.setAttribute("aria-label", `${run.samples} samples from noise to data. ${run.title ?? ""}`);
    const sentences = [arranged.sentence, arranged.remark, ...(run.notes ?? []), ...(scenes[1]?.run.notes ?? []).map((note) => `B: ${note}`)].filter(Boolean);
    notes.replaceChildren(html("summary", {}, sentences.length > 1 ? `${sentences[0]} (${sentences.length - 1} more)` : sentences[0] ?? ""), html("div", {}, ...sentences.map((one) => html("p", {}, one))));
    notes.hidden = !sentences.length;
    say(arranged.sentence, 0);
    time.setAttribute("aria-valuemax", run.frames - 1);
    if (place === null) viewRead();
    else {
      if (before === picture.home?.()) picture.restore?.(view);
      colourBy(state.colour);
    }
    state.selected = new Set([...state.selected].filter((s) => s < run.samples));
    masked();
    showLayers();
    layout();
    if (picture.zoomed) viewChanged();
    requestDraw();
    if (!fresh && state.frame !== wish) writeSoon();
    playingChanged();
  }
  function blank(sentence) {
    Object.assign(state, { run: null, playing: false });
    picture = scrubber = null;
    message.textContent = sentence;
    message.hidden = false;
    content.forEach((node) => { node.hidden = true; });
    showPlaying();
  }
  let sayTimer = 0;
  function say(sentence, seconds = 8) {
    clearTimeout(sayTimer);
    said.textContent = sentence;
    said.hidden = !sentence;
    if (sentence && seconds) sayTimer = setTimeout(() => { said.hidden = true; }, 1000 * seconds);
  }

  // --- take away, and give back
  function showMenu(open) {
    menu.hidden = !open;
    takeButton.setAttribute("aria-expanded", String(open));
    if (open) menu.querySelector("button").focus();
  }
  // Evenly over the time axis, whatever the machine takes for a picture.
  async function moving(name) {
    const before = state.frame, scale = Math.min(1, 480 / Math.max(canvas.width, canvas.height)), [width, height] = [canvas.width, canvas.height].map((n) => Math.max(1, Math.round(n * scale)));
    const copy = html("canvas", { width, height }).getContext("2d", { willReadFrequently: true }), images = [], count = Math.min(48, Math.max(2, 8 * state.run.frames));
    setPlaying(false);
    state.whole = true;
    for (let i = 0; i < count; i++) {
      say(`Drawing picture ${i + 1} of ${count}.`, 0);
      state.frame = axisFrame(state.run.axis, i / (count - 1));
      draw();
      copy.drawImage(canvas, 0, 0, width, height);
      images.push(copy.getImageData(0, 0, width, height));
      await new Promise((done) => setTimeout(done));
    }
    save(asGif(images, 12), `${name}.gif`);
    state.frame = before;
    say("");
  }
  async function take(what) {
    showMenu(false);
    takeButton.focus();
    const { run } = state, name = (run.title || "run").replace(/[^\w.-]+/g, "-").slice(0, 80);
    try {
      if (what === "webm") {
        say("Recording: the run plays once.", 0);
        state.whole = true;   // all of it on the one canvas that is recorded
        const made = film(canvas, (stop) => { atEnd = () => { atEnd = null; stop(); }; state.loop = false; loop.setAttribute("aria-pressed", "false"); setFrame(0); setPlaying(true); });
        save(await made, `${name}.webm`);
        return say("");
      }
      if (what === "gif") return await moving(name);
      state.whole = true;
      draw();   // its pixels can be read in the task that drew them
      const picture = asSvg({ canvas, overlay, time, stage, root, title: run.title, differs: differs.textContent, readout: readout.textContent, study: run.study });
      if (what === "svg") save(new Blob([picture.text], { type: "image/svg+xml" }), `${name}.svg`);
      else save(await asPng(picture, run.study, Math.max(2, state.ratio)), `${name}.png`);
    } catch (error) {
      atEnd = null;
      say(`It was not saved: ${error.message}`);
    } finally {
      state.whole = false;
      requestDraw();
    }
  }
  root.addEventListener("dragover", (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    root.classList.add("wb-drop");
  });
  root.addEventListener("dragleave", () => root.classList.remove("wb-drop"));
  root.addEventListener("drop", async (event) => {
    root.classList.remove("wb-drop");
    const [file] = event.dataTransfer?.files ?? [];
    if (!file) return;
    event.preventDefault();
    try {
      const text = await studyOf(file);
      say(`The study of ${file.name} is read.`, 4);
      model.set("dropped", "");
      model.set("dropped", text);
      model.save_changes();
    } catch (error) {
      say(`It was not opened: ${error.message}`);
    }
  });

  // --- pointer on the picture: hover, pan, pinch, wheel
  const held = new Map();
  let pressed = null;   // where the pointer went down, while it has not moved
  const hover = (event) => {
    const found = picture.pick(event.offsetX, event.offsetY, state);
    if ((found?.sample ?? null) === state.hovered && state.run.kind === "plane") return;
    Object.assign(state, { hovered: found?.sample ?? null, inScene: found?.scene ?? state.inScene });
    requestDraw();
  };
  canvas.addEventListener("pointerdown", (event) => {
    root.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pressed = event.button === 0 ? [event.offsetX, event.offsetY] : null;
    if (event.shiftKey && picture.enclosed) lasso = [pressed ?? [event.offsetX, event.offsetY]];
    else held.set(event.pointerId, [event.offsetX, event.offsetY]);
    canvas.classList.toggle("wb-held", Boolean(!lasso && picture.zoomed?.()));
    hover(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = held.get(event.pointerId), to = [event.offsetX, event.offsetY];
    if (pressed && Math.hypot(to[0] - pressed[0], to[1] - pressed[1]) > 4) pressed = null;
    if (lasso) {
      lasso.push(to);
      return marks();
    }
    if (!from) return hover(event);
    if (!picture.move) return;
    const side = picture.side(), other = [...held].find(([id]) => id !== event.pointerId)?.[1];
    held.set(event.pointerId, to);
    if (other) {
      const gap = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      picture.move(gap(from) / Math.max(gap(to), 1), picture.part((to[0] + other[0]) / 2, (to[1] + other[1]) / 2), [0, 1].map((i) => (to[i] - from[i]) / 2 / side));
    } else picture.move(1, [0, 0], [0, 1].map((i) => (to[i] - from[i]) / side));
    viewChanged();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (lasso) {
      const { found, scene } = lasso.length > 2 ? picture.enclosed(lasso, state) : { found: [], scene: 0 };
      lasso = pressed = null;
      choose(found, scene, event);
      return marks();
    }
    if (pressed) click(event);
    else if (picture.move) viewTold();
    pressed = null;
  });
  // A click follows a particle, or lets it go; of images it magnifies one.
  function click(event) {
    const found = picture.pick(event.offsetX, event.offsetY, state);
    if (picture.magnify) {
      picture.magnify(picture.magnified() === null ? found?.sample ?? null : null);
      state.hovered = null;
      layout();
      viewTold();
      return requestDraw();
    }
    if (!found) return;
    const chosen = new Set(state.selected);
    if (!chosen.delete(found.sample)) chosen.add(found.sample);
    choose(chosen, found.scene);
  }
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => {
    held.delete(event.pointerId);
    canvas.classList.remove("wb-held");
    if (kind === "pointercancel") lasso = pressed = null;
  });
  canvas.addEventListener("pointerleave", () => { if (state.hovered !== null) { state.hovered = null; requestDraw(); } });
  canvas.addEventListener("dblclick", () => { if (picture.reset) { picture.reset(); viewChanged(); viewTold(); } });
  canvas.addEventListener("wheel", (event) => {
    if (!picture.move || (event.deltaY > 0 && picture.widest())) return;   // nothing left to zoom out of: the page may scroll
    event.preventDefault();
    const turns = event.deltaY * (event.deltaMode === 1 ? 16 : 1) * (event.ctrlKey ? 0.01 : 0.0015);
    picture.move(Math.exp(clamp(turns, -0.7, 0.7)), picture.part(event.offsetX, event.offsetY), [0, 0]);
    viewChanged();
    viewTold();
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
    Home: (e) => scrub(0, e), End: (e) => scrub(Infinity, e), Escape: () => escape(), i: () => setWithin(!state.within), "+": () => faster(1), "=": () => faster(1), "-": () => faster(-1),
  };
  function escape() {
    if (!menu.hidden) { showMenu(false); takeButton.focus(); }
    else if (picture.magnified?.() != null) { picture.magnify(null); layout(); viewTold(); requestDraw(); }
    else choose([], 0);
  }
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
  const sizes = new ResizeObserver(() => {
    if (!root.isConnected) return;
    const { width, height } = root.getBoundingClientRect(), style = getComputedStyle(root);
    if (size[0] === 0) surround();
    size = [Math.floor(width - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)), Math.floor(height)];
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
  const LISTENERS = { inside: showWithin, data: load, other: load, flow: load, other_flow: load, compare: load, frame: frameChanged, playing: playingChanged, view: viewRead };
  for (const [name, act] of Object.entries(LISTENERS)) model.on(`change:${name}`, act);
  root.__player = { get frame() { return state.frame; }, get state() { return state; }, get symbols() { return state.run ? symbolsAt(state.run, state.frame) : {}; }, draw, setFrame: (f) => scrub(f, new Event("call")), get stats() { return { ...stats }; } };
  gpu = makeGpu(canvas);   // its programs are compiled while the run is on its way
  load();
  surround();
  sizes.observe(root);
  sizes.observe(cell);
  watchScreen();

  return () => {
    gone = true;
    cancelAnimationFrame(pending);
    [writeTimer, restTimer, liveTimer, paintTimer, viewTimer, sayTimer].forEach(clearTimeout);
    sizes.disconnect();
    themes.disconnect();
    preference.removeEventListener("change", paint);
    screen.removeEventListener("change", watchScreen);
    for (const [name, act] of Object.entries(LISTENERS)) model.off?.(`change:${name}`, act);
    gpu?.clear();
    gpu?.release();
  };
}

// The player on a page without kernel and server: traits that live on the page alone.
function show(el, values) {
  const traits = { inside: false, compare: "beside", frame: 0, playing: false, view: {}, dropped: "", ...values }, listeners = {};
  const model = {
    get: (name) => traits[name],
    set: (name, value) => { const old = traits[name]; traits[name] = value; if (old !== value) (listeners[`change:${name}`] ?? []).forEach((act) => act()); },
    on: (name, act) => (listeners[name] ??= []).push(act),
    off: (name, act) => { listeners[name] = (listeners[name] ?? []).filter((one) => one !== act); },
    save_changes: () => {},
  };
  render({ model, el });
  return model;
}

export { show };
export default { render };
