// The page: elements, styles, theme.

function build(namespace, tag, attributes, children) {
  const node = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes ?? {})) if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  node.append(...children);
  return node;
}
const html = (tag, attributes, ...children) => build(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => build("http://www.w3.org/2000/svg", tag, attributes, children);

const STYLE = `
.wb-player { --wb-surface: #ffffff; --wb-plot: #fcfcfd; --wb-text: #1b1f24; --wb-muted: #59636e; --wb-line: #c9d0d8; --wb-hover: #eef1f4; --wb-accent: #0072b2;
  --wb-particle: #0072b2; --wb-other: #c2458b; --wb-exact: #d55e00; --wb-denoised: #009e73; --wb-density: #3b4a5a; --wb-velocity: #6f7882;
  --wb-groups: #0072b2 #e69f00 #009e73 #cc79a7 #56b4e9 #d55e00 #b8a800 #555555;
  box-sizing: border-box; position: relative; width: 100%; min-width: 0; min-height: 260px; padding: 6px 12px 4px; color: var(--wb-text); background: var(--wb-surface); border-radius: 6px; outline: none;
  display: grid; grid-template: "title title" auto "stage side" minmax(90px, 1fr) "time time" auto "bar bar" auto "notes notes" auto / minmax(0, 1fr) auto; column-gap: 16px;
  font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; color-scheme: light; text-align: left; }
.wb-player[data-mode=dark] { --wb-surface: #14171b; --wb-plot: #181c21; --wb-text: #e6e9ed; --wb-muted: #98a2ad; --wb-line: #3a424b; --wb-hover: #242a31; --wb-accent: #56b4e9;
  --wb-particle: #56b4e9; --wb-other: #f08cc0; --wb-exact: #f0a030; --wb-denoised: #22b98d; --wb-density: #b9c6d4; --wb-velocity: #8b95a0;
  --wb-groups: #56b4e9 #e69f00 #22b98d #cc79a7 #3f8fd0 #e8703a #f0e442 #b0b0b0; color-scheme: dark; }
.jp-OutputArea .wb-player { min-height: min(600px, 74vh); }
.wb-player *, .wb-player *::before { box-sizing: border-box; }
.wb-player:focus-visible { box-shadow: inset 0 0 0 2px var(--wb-accent); }
.wb-player [hidden] { display: none !important; }
.wb-head-line { grid-area: title; display: flex; gap: 10px; align-items: baseline; min-width: 0; overflow: hidden; }
.wb-title { font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; flex: 0 1 auto; }
.wb-differs { color: var(--wb-muted); font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; flex: 1 1 0; } .wb-low .wb-head-line { display: none; }
.wb-cell { grid-area: stage; position: relative; min-width: 0; min-height: 0; overflow: hidden; flex: none; }
.wb-stage { position: absolute; }
.wb-stage svg { position: absolute; inset: 0; pointer-events: none; overflow: visible; }
.wb-player svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; fill: var(--wb-muted); }
.wb-player svg text.wb-label { fill: var(--wb-text); font-size: 12px; }
.wb-player svg text.wb-caption { fill: var(--wb-text); font-size: 12.5px; font-weight: 600; }
.wb-player svg text.wb-name { font-style: italic; font-size: 12px; fill: var(--wb-text); }
.wb-frame { fill: none; stroke: var(--wb-line); } .wb-tick { fill: none; stroke: var(--wb-muted); } .wb-lasso { fill: var(--wb-accent); fill-opacity: .12; stroke: var(--wb-accent); stroke-dasharray: 4 3; }
.wb-canvas { position: absolute; display: block; } .wb-veil { position: absolute; pointer-events: none; will-change: transform; }
.wb-plane .wb-canvas { cursor: crosshair; touch-action: pan-y; } .wb-plane .wb-canvas.wb-zoomed { cursor: grab; touch-action: none; } .wb-canvas.wb-held { cursor: grabbing !important; } .wb-images .wb-canvas { cursor: zoom-in; }
.wb-tip { position: absolute; pointer-events: none; white-space: pre; padding: 4px 8px; font-size: 11.5px; line-height: 1.4; border: 1px solid var(--wb-line); border-radius: 4px; background: var(--wb-surface); box-shadow: 0 1px 5px #0003; z-index: 1; }
.wb-message { grid-area: 1 / 1 / -1 / -1; align-self: center; color: var(--wb-muted); padding: 34px 20px; text-align: center; border: 1px dashed var(--wb-line); border-radius: 6px; }
.wb-absent { position: absolute; inset: 0; margin: auto; height: max-content; padding: 20px; text-align: center; color: var(--wb-muted); }
.wb-side { grid-area: stage; justify-self: end; align-self: end; z-index: 2; display: flex; flex-direction: column; gap: 8px; width: 216px; max-width: 100%; max-height: 100%; overflow: auto; padding: 8px 10px; background: var(--wb-surface); border: 1px solid var(--wb-line); border-radius: 6px; box-shadow: 0 2px 10px #0003; }
.wb-wide .wb-side { grid-area: side; align-self: center; border: 0; box-shadow: none; padding: 0 2px 0 0; } .wb-wide .wb-layers-button, .wb-images .wb-layers-button { display: none !important; }
.wb-player:not(.wb-wide):not(.wb-open) .wb-side { display: none; }
.wb-layers { border: 0; margin: 0; padding: 0; min-width: 0; display: grid; gap: 1px; }
.wb-layers legend { padding: 0; margin-bottom: 2px; font-size: 11px; color: var(--wb-muted); text-transform: uppercase; letter-spacing: .06em; }
.wb-layer { display: flex; align-items: center; gap: 8px; padding: 1px 0; cursor: pointer; white-space: nowrap; }
.wb-layer input, .wb-trail input { accent-color: var(--wb-accent); margin: 0; }
.wb-layer small { color: var(--wb-muted); font-size: 11px; }
.wb-layer svg { width: 26px; height: 14px; flex: none; } .wb-layer:has(input:not(:checked)) { color: var(--wb-muted); } .wb-layer:has(input:not(:checked)) svg { opacity: .35; }
.wb-trail { display: flex; align-items: center; gap: 8px; white-space: nowrap; } .wb-trail input { flex: 1 1 60px; width: 80px; min-width: 40px; height: 16px; } .wb-trail output { color: var(--wb-muted); min-width: 4.6em; }
.wb-player button, .wb-player select { font: inherit; color: inherit; background: none; border: 1px solid transparent; border-radius: 5px; height: 30px; padding: 0 6px; cursor: pointer; }
.wb-player button { display: inline-flex; align-items: center; justify-content: center; min-width: 32px; flex: none; } .wb-player button svg { width: 16px; height: 16px; fill: currentColor; }
.wb-player button:hover, .wb-player select:hover { background: var(--wb-hover); } .wb-player button:disabled { opacity: .4; cursor: default; }
.wb-player button:focus-visible, .wb-player select:focus-visible, .wb-player input:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.wb-player select { border-color: var(--wb-line); background: var(--wb-surface); } .wb-player button.wb-play { background: var(--wb-accent); color: var(--wb-surface); min-width: 44px; } .wb-player button.wb-play:hover { filter: brightness(1.1); }
.wb-player button[aria-pressed=true], .wb-player button[aria-expanded=true] { color: var(--wb-accent); border-color: var(--wb-accent); }
.wb-views { display: flex; flex-wrap: wrap; gap: 6px; } .wb-player .wb-views button { border-color: var(--wb-line); padding: 3px 8px; height: auto; min-height: 26px; font-size: 12px; flex: 0 1 auto; text-align: left; }
.wb-time { grid-area: time; display: block; will-change: transform; width: 100%; margin-top: 4px; touch-action: pan-y; cursor: pointer; user-select: none; -webkit-user-select: none; outline: none; overflow: hidden; }
.wb-rail { stroke: var(--wb-muted); fill: none; } .wb-done { stroke: var(--wb-accent); stroke-width: 3; } .wb-head line { stroke: var(--wb-accent); } .wb-head circle { fill: var(--wb-accent); stroke: var(--wb-surface); stroke-width: 2; }
.wb-time:focus-visible .wb-head circle { stroke: var(--wb-text); } .wb-spark { fill: none; stroke: var(--wb-text); stroke-width: 1.3; stroke-linejoin: round; } .wb-spark.wb-second { stroke: var(--wb-other); } .wb-dot { fill: var(--wb-accent); } .wb-grid { stroke: var(--wb-line); fill: none; }
.wb-bar { grid-area: bar; display: flex; flex-wrap: wrap; align-items: center; gap: 2px 3px; min-width: 0; } .wb-readout { flex: 1 1 200px; min-width: 0; padding-left: 8px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; text-align: right; }
.wb-slim .wb-readout { flex-basis: 100%; order: 9; padding: 0; text-align: left; font-size: 12px; } .wb-slim .wb-rare { display: none; }
.wb-bar > .wb-menu-place { position: relative; } .wb-menu { position: absolute; z-index: 3; right: 0; bottom: 34px; display: flex; flex-direction: column; padding: 4px; background: var(--wb-surface); border: 1px solid var(--wb-line); border-radius: 6px; box-shadow: 0 2px 12px #0004; }
.wb-player .wb-menu button { justify-content: flex-start; white-space: nowrap; padding: 0 12px; }
.wb-notes { grid-area: notes; margin: 0; color: var(--wb-muted); font-size: 12px; line-height: 18px; min-width: 0; } .wb-notes summary { cursor: pointer; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; list-style-position: inside; }
.wb-notes p { margin: 2px 0; } .wb-notes div { max-height: 72px; overflow: auto; } .wb-low .wb-notes:not([open]) { display: none; }
.wb-said { grid-area: stage; justify-self: center; align-self: start; z-index: 2; max-width: min(560px, 94%); margin-top: 8px; padding: 5px 12px; background: var(--wb-surface); border: 1px solid var(--wb-exact); border-radius: 5px; box-shadow: 0 1px 6px #0003; }
.wb-drop { box-shadow: inset 0 0 0 3px var(--wb-accent); }
.wb-live { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (pointer: coarse) { .wb-player .wb-bar > button, .wb-player .wb-bar select { height: 36px; min-width: 34px; } }`;

const ICONS = {
  start: "M3 3h2v10H3zM13 3v10L6 8z", back: "M10.5 3v10L4 8zM11.5 3h1.6v10h-1.6z", play: "M4 2.5v11L13.5 8z", pause: "M4 3h3v10H4zM9 3h3v10H9z",
  forward: "M5.5 3v10L12 8zM2.9 3h1.6v10H2.9z", end: "M11 3h2v10h-2zM3 3v10l7-5z",
  within: "M1.5 12.5h3v-3h3v-3h3v-3h4V2H9.5v3h-3v3h-3v3h-3z", layers: "M8 1.5 15 5 8 8.5 1 5zM2.6 7.2 8 9.9l5.4-2.7L15 8 8 11.5 1 8zM2.6 10.2 8 12.9l5.4-2.7L15 11 8 14.5 1 11z",
  take: "M7 1.5h2v6.2l2.2-2.2 1.4 1.4L8 11.5 3.4 6.9l1.4-1.4L7 7.7zM2 12.5h12v2H2z",
  loop: "M11 1.5 14.5 4 11 6.5V5H5.5A2.5 2.5 0 0 0 3 7.5V8H1.5v-.5a4 4 0 0 1 4-4H11zM5 14.5 1.5 12 5 9.5V11h5.5A2.5 2.5 0 0 0 13 8.5V8h1.5v.5a4 4 0 0 1-4 4H5z",
};
const SWATCHES = {
  density: () => [svg("rect", { x: 1, y: 1, width: 24, height: 12, rx: 6, fill: "var(--wb-density)", "fill-opacity": 0.12, stroke: "var(--wb-density)", "stroke-opacity": 0.5 }), svg("rect", { x: 7, y: 4, width: 12, height: 6, rx: 3, fill: "var(--wb-density)", "fill-opacity": 0.15, stroke: "var(--wb-density)", "stroke-opacity": 0.7 })],
  velocity: () => [svg("path", { d: "M4 7h17M17 4l4 3-4 3", fill: "none", stroke: "var(--wb-velocity)", "stroke-width": 1.3 })],
  trails: (ink) => [svg("path", { d: "M2 11C8 12 14 9 24 3", fill: "none", stroke: ink[0], "stroke-width": 1.4, "stroke-opacity": 0.6 })],
  particles: (ink) => ink.map((colour, i) => svg("circle", { cx: 13 + (i - (ink.length - 1) / 2) * 8, cy: 7, r: 3.2, fill: colour })),
  denoised: () => [svg("circle", { cx: 13, cy: 7, r: 3.6, fill: "none", stroke: "var(--wb-denoised)", "stroke-width": 1.3 })],
  exact: (ink, grouped) => [svg("path", { d: "M5 7h7.5", stroke: grouped ? "var(--wb-text)" : "var(--wb-exact)" }), svg("circle", { cx: 17, cy: 7, r: 4.5, fill: "none", stroke: grouped ? "var(--wb-text)" : "var(--wb-exact)", "stroke-width": 1.2 })],
};
const icon = (name) => svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));

const above = (node) => node.parentElement ?? node.getRootNode().host ?? null;

function ancestors(node) {
  const list = [];
  for (let n = node; n; n = above(n)) list.push(n);
  return list;
}

// What the page says about itself: a named theme first, then the background it shows, then the reader's preference.
function isDark(el) {
  const chain = ancestors(el);
  for (const { dataset, classList } of chain) {
    if (dataset.jpThemeLight) return dataset.jpThemeLight === "false";
    for (const word of [dataset.theme, dataset.muiColorScheme, dataset.bsTheme, ...classList]) {
      const named = /^(?:(?:bk|mui|theme|vscode|mode)[-_])?(dark|light)(?:[-_](?:theme|mode))?$/i.exec(word ?? "");
      if (named) return named[1].toLowerCase() === "dark";
    }
  }
  for (const node of chain) {
    const [r, g, b, a = 1] = getComputedStyle(node).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    if (a > 0.5) return 0.299 * r + 0.587 * g + 0.114 * b < 110;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function coloursOf(root) {
  const style = getComputedStyle(root), read = (name) => style.getPropertyValue(`--wb-${name}`).trim();
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
  const named = ["surface", "plot", "text", "accent", "particle", "other", "exact", "denoised", "density", "velocity"].map((n) => [n, rgb(read(n))]);
  return { ...Object.fromEntries(named), palette: read("groups").split(/\s+/).flatMap(rgb) };
}
