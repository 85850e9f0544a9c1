// The frame of every page: bar, menus, tabs, theme, keys, lost connection. It runs before Panel does;
// a hidden component on the page (workbench.ui.shell.Bench) connects it with the session.
window.workbench = (() => {
  const root = document.querySelector(".wb-shell"), $ = (selector) => root.querySelector(selector), $$ = (selector) => [...root.querySelectorAll(selector)];
  const bench = $(".wb-bench"), kind = root.dataset.kind, narrow = matchMedia("(max-width: 759.9px)"), beneath = matchMedia("(max-width: 1199.9px)");
  const store = {
    get: (key) => { try { return localStorage.getItem(`workbench-${key}`); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(`workbench-${key}`, value); } catch { /* private windows keep nothing */ } },
  };
  let model = null, form = null;
  // An element with its properties and what is inside it; the modules of the pages use it too.
  const make = (tag, props = {}, ...inside) => { const one = Object.assign(document.createElement(tag), props); one.append(...inside); return one; };

  // --- what is where: elements lie in the shadow trees of Panel's components
  const find = (selector, from = document) => from.querySelector(selector)
    ?? [...from.querySelectorAll("*")].map((one) => one.shadowRoot && find(selector, one.shadowRoot)).find(Boolean) ?? null;
  const active = () => { let one = document.activeElement; while (one?.shadowRoot?.activeElement) one = one.shadowRoot.activeElement; return one; };
  const fits = () => requestAnimationFrame(() => dispatchEvent(new Event("resize")));

  // --- messages to and from the session
  const send = (to, values) => { for (const [name, value] of Object.entries(values)) to.set(name, value); to.save_changes(); };
  let count = 0;
  const ask = (what, more = {}) => { if (model) send(model, { asked: { what, count: ++count, at: Date.now(), ...more } }); };
  const toast = (text) => { const box = $(".wb-toast"); box.textContent = text; clearTimeout(toast.timer); toast.timer = setTimeout(() => { box.textContent = ""; }, Math.max(2600, 60 * text.length)); };
  async function copy(text, what) {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = make("textarea", { value: text });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    toast(`${what} copied`);
  }
  function save(name, content) {
    const link = make("a", { href: URL.createObjectURL(new Blob([content], { type: "application/octet-stream" })), download: name });
    document.body.append(link); link.click(); link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 30_000);
  }
  // Calls `done` with the name of a reader's file and its content in base64.
  function read(file, done) {
    const reader = new FileReader();
    reader.onload = () => done({ name: file.name, data: reader.result.split(",")[1] ?? "" });
    reader.readAsDataURL(file);
  }
  const NAMES = { python: "Python", command: "Command line", yaml: "Study" };
  function answered() {
    const { what, name, text, note } = model.get("answer");
    if (!what) return;
    if (note) toast(note);
    else if (what === "link") copy(location.origin + location.pathname + text, "Link");
    else if (what in NAMES) copy(text, NAMES[what]);
    else save(name, text ?? model.get("content"));
  }

  // --- the bar
  function chips() {
    const box = $(".wb-chips"), shown = model.get("chips"), at = active()?.dataset?.section;
    box.hidden = !shown.length;
    box.replaceChildren(...shown.map(([section, label, text]) => {
      const chip = make("button", { type: "button", title: `${label}: ${text}; opens its form`, ariaLabel: `${label}: ${text}` }, make("small", {}, label), make("b", {}, text));
      chip.dataset.section = section;
      chip.classList.toggle("wb-short", text.length <= 6);   // gives way to none: a letter of it says nothing
      chip.addEventListener("click", () => showForm(section));
      return chip;
    }));
    roving(box);
    if (at) box.querySelector(`[data-section="${at}"]`)?.focus();
  }
  function showForm(section = null) {
    setForm(true);
    if (section) requestAnimationFrame(() => form?.show(section));
  }
  // One tab stop for a row of buttons; the arrow keys move in it.
  function roving(box) {
    const items = [...box.children].filter((one) => one.matches("button") && !one.hidden);
    if (!items.some((one) => one.tabIndex === 0 && one === active())) items.forEach((one, i) => { one.tabIndex = i ? -1 : 0; });
  }
  function rove(event, box) {
    const items = [...box.querySelectorAll("button")].filter((one) => !one.hidden), i = items.indexOf(event.target);
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : by ? (i + by + items.length) % items.length : -1;
    if (i < 0 || to < 0) return null;
    event.preventDefault();
    event.stopPropagation();
    items.forEach((one, k) => { one.tabIndex = k === to ? 0 : -1; });
    items[to].focus();
    return items[to];
  }
  for (const box of $$("[role=toolbar]")) { roving(box); box.addEventListener("keydown", (event) => rove(event, box)); }

  // --- form and dock
  function setForm(open, remember = true) {
    if (!$(".wb-form")) return;
    if (open === (bench.dataset.form === "open")) return;
    bench.dataset.form = open ? "open" : "closed";
    $("[data-act=form]").setAttribute("aria-pressed", String(open));
    if (remember && !narrow.matches) store.set("form", open ? "open" : "closed");
    fits();
  }
  const tabs = $$("[role=tab]");
  function setDock(open) {
    if (!tabs.length) return;
    if (narrow.matches && open) setForm(false, false);
    bench.dataset.dock = open ? "open" : "closed";
    const fold = $(".wb-fold");
    fold.setAttribute("aria-expanded", String(open));
    fold.ariaLabel = open ? "Close the panel" : "Open the panel";
    store.set("dock", open ? "open" : "closed");
    tellTab();
    fits();
  }
  let chosen = null;
  function choose(key, focus = false) {
    const tab = tabs.find((one) => one.dataset.key === key) ?? tabs[0];
    if (!tab) return;
    chosen = tab.dataset.key;
    for (const one of tabs) {
      const mine = one === tab;
      one.setAttribute("aria-selected", String(mine));
      one.tabIndex = mine ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).hidden = !mine;
    }
    store.set(`tab-${root.dataset.page}`, chosen);
    if (focus) tab.focus();
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    tellTab();
    fits();
  }
  function tellTab() {
    const now = bench.dataset.dock === "open" ? chosen ?? "" : "";
    if (model && model.get("tab") !== now) send(model, { tab: now });
  }
  for (const tab of tabs) tab.addEventListener("click", () => { choose(tab.dataset.key); if (bench.dataset.dock !== "open") setDock(true); });
  $("[role=tablist]")?.addEventListener("keydown", (event) => { const tab = rove(event, event.currentTarget); if (tab) choose(tab.dataset.key, true); });
  const split = $(".wb-split");
  function share(percent, keep = true) {
    const value = Math.round(Math.min(65, Math.max(20, percent)) * 10) / 10, name = beneath.matches ? "--dock-height" : "--dock";
    bench.style.setProperty(name, `${value}%`);
    split.setAttribute("aria-valuenow", value);
    if (keep) store.set(name, value);
    fits();
  }
  function restoreShares() {
    if (!split) return;
    split.setAttribute("aria-orientation", beneath.matches ? "horizontal" : "vertical");
    for (const name of ["--dock", "--dock-height"]) { const value = Number(store.get(name)); if (value >= 20 && value <= 65) bench.style.setProperty(name, `${value}%`); }
    const box = bench.getBoundingClientRect(), dock = $(".wb-dock").getBoundingClientRect();
    split.setAttribute("aria-valuenow", Math.round(beneath.matches ? 100 * dock.height / box.height : 100 * dock.width / box.width));
  }
  split?.addEventListener("pointerdown", (event) => {
    split.setPointerCapture(event.pointerId);
    const move = ({ clientX, clientY }) => { const box = bench.getBoundingClientRect(); share(beneath.matches ? 100 * (box.bottom - clientY) / box.height : 100 * (box.right - clientX) / box.width); };
    split.addEventListener("pointermove", move);
    split.addEventListener("pointerup", () => split.removeEventListener("pointermove", move), { once: true });
  });
  split?.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: 2, ArrowUp: 2, ArrowRight: -2, ArrowDown: -2 }[event.key];
    if (by) { event.preventDefault(); event.stopPropagation(); share(Number(split.getAttribute("aria-valuenow")) + by); }
  });

  // --- theme: the system's, until the reader chooses
  const system = matchMedia("(prefers-color-scheme: dark)");
  function theme(name) {
    if (document.documentElement.dataset.theme !== name) document.documentElement.dataset.theme = name;
    repaint();
  }
  system.addEventListener("change", () => { if (!store.get("theme")) theme(system.matches ? "dark" : "light"); });
  function turn() {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    store.set("theme", name);
    theme(name);
  }
  // Bokeh paints its figures itself: their colours follow the theme, in the browser alone.
  const painted = new WeakMap();
  function repaint() {
    const name = document.documentElement.dataset.theme, style = getComputedStyle(document.documentElement);
    const [text, muted, line, surface] = ["text", "muted", "line", "surface"].map((one) => style.getPropertyValue(`--wb-${one}`).trim());
    for (const doc of window.Bokeh?.documents ?? []) for (const one of doc._all_models?.values() ?? []) {
      if (painted.get(one) === name) continue;
      const type = one.type ?? "", put = (values) => { painted.set(one, name); one.setv(values, { sync: false }); };
      if (/Axis$/.test(type)) put({ axis_line_color: muted, major_tick_line_color: muted, minor_tick_line_color: line, major_label_text_color: muted, axis_label_text_color: text, axis_label_text_font_style: "normal" });
      else if (/Grid$/.test(type)) { if (one.grid_line_color != null) put({ grid_line_color: line, grid_line_alpha: 0.7 }); }
      else if (/Legend$/.test(type)) put({ background_fill_color: surface, background_fill_alpha: 0.75, border_line_color: line, label_text_color: text, title_text_color: muted, inactive_fill_color: surface });
      else if (/ColorBar$/.test(type)) put({ background_fill_color: surface, major_label_text_color: muted, title_text_color: text });
      else if (/^Title$/.test(type)) put({ text_color: text });
      else if (/^(Figure|Plot|figure)$/.test(type)) put({ background_fill_color: surface, border_fill_color: surface, outline_line_color: line });
    }
  }
  function followDocuments() {
    const docs = window.Bokeh?.documents;
    if (!docs?.length) return setTimeout(followDocuments, 50);
    let waiting = false;
    for (const doc of docs) doc.on_change(() => { if (!waiting) { waiting = true; queueMicrotask(() => { waiting = false; repaint(); }); } });
    repaint();
  }
  followDocuments();

  // --- menus
  let menu = null, opener = null;
  function closeMenu(focus = true) {
    if (!menu) return;
    menu.hidden = true;
    opener.setAttribute("aria-expanded", "false");
    if (focus) opener.focus();
    menu = opener = null;
  }
  function openMenu(button) {
    const mine = $(`.wb-menu[data-for=${button.dataset.menu}]`), same = menu === mine;
    closeMenu(false);
    if (same || !mine) return;
    [menu, opener] = [mine, button];
    menu.hidden = false;
    button.setAttribute("aria-expanded", "true");
    const box = button.getBoundingClientRect();
    menu.style.top = `${box.bottom + 4}px`;
    menu.style.left = `${Math.max(6, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`;
    menu.querySelector("button").focus();
  }
  for (const one of $$(".wb-menu")) one.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); closeMenu(); } else if (event.key === "Tab") closeMenu(); else rove(event, one);
  });
  addEventListener("pointerdown", (event) => { if (menu && !menu.contains(event.target) && !opener.contains(event.target)) closeMenu(false); });

  // --- what buttons do
  const ACTS = {
    form: () => (bench.dataset.form === "open" ? setForm(false) : showForm()), dock: () => setDock(bench.dataset.dock !== "open"), theme: turn,
    keys: () => { const sheet = $(".wb-keys"); if (sheet.open) sheet.close(); else sheet.showModal(); },
    pin: () => ask(model?.get("pinned") ? "unpin" : "pin"), unpin: () => ask("unpin"), swap: () => ask("swap"),
  };
  root.addEventListener("click", ({ target }) => {
    const button = target.closest?.("[data-act], [data-menu], [data-ask], [data-take], [data-skip]");
    if (!button) return;
    const { act, menu: which, ask: what, take: picture } = button.dataset;
    if (act) ACTS[act]?.();
    else if (which) openMenu(button);
    else if (what) { closeMenu(); ask(what); }
    else if (picture) {       // the player's own
      closeMenu();
      [...find(".wb-player")?.querySelectorAll(".wb-menu button") ?? []].find((one) => one.textContent === picture)?.click();
    }
  });
  $("[data-skip]").addEventListener("click", (event) => {
    event.preventDefault();
    (find(".wb-play") ?? $("#wb-main")).focus();
  });

  // --- keys: those of the player work wherever no control has a use for them
  const letters = { f: "form", d: "dock", t: "theme", p: "pin", "?": "keys" };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || menu || $("dialog[open]")) return;
    const at = active(), free = !at || at === document.body || at.matches?.("#wb-main");
    if (at?.matches?.("input, textarea, select") && !["checkbox", "radio", "range"].includes(at.type)) return;
    const button = letters[event.key];
    if (event.key === "/") { event.preventDefault(); setForm(true); requestAnimationFrame(() => form?.find()); }
    else if (button && ($(`[data-act=${button}]`) || button === "keys")) { event.preventDefault(); ACTS[button](); }
    else if (event.key === "s" || event.key === "e") { const one = $(`[data-menu=${event.key === "s" ? "share" : "export"}]`); if (one) { event.preventDefault(); openMenu(one); } }
    else if (/^[1-9]$/.test(event.key) && tabs[event.key - 1]) { event.preventDefault(); if (bench.dataset.dock !== "open") setDock(true); choose(tabs[event.key - 1].dataset.key, true); }
    else if (free && [" ", "i", "ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
      const player = find(".wb-player");
      if (player) { event.preventDefault(); player.focus({ preventScroll: true }); player.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, code: event.code, bubbles: true, cancelable: true })); }
    }
  }, true);   // before the player, which keeps its keys from a notebook around it

  // --- a symbol says what it is, and how large it is now
  addEventListener("pointermove", (event) => {   // pointerover does not leave a shadow tree that the pointer stays in
    const symbol = event.composedPath()[0]?.closest?.("[data-symbol]");
    if (!symbol) return;
    symbol.dataset.means ??= symbol.title;
    const now = find(".wb-player")?.__player?.symbols[symbol.dataset.symbol];
    symbol.title = symbol.dataset.means + (now ? `; now ${now}` : "");
  });

  // --- the study goes along to the other pages
  function links() {
    const study = model?.get("study") || sessionStorage.getItem("workbench-study") || "";
    if (study) try { sessionStorage.setItem("workbench-study", study); } catch { /* full or private */ }
    for (const one of $$(".wb-pages a")) one.href = `./${one.dataset.slug}${study && one.dataset.slug !== "studies" ? study : ""}`;
  }
  try { links(); } catch { /* private */ }

  // --- facts, problems, comparison
  function facts() {
    const box = $(".wb-facts");
    if (!box) return;
    box.innerHTML = model.get("facts").map((one) => `<span>${one}</span>`).join("");
    box.title = box.textContent;
  }
  function problem() {
    const box = $(".wb-problem"), text = model.get("problem");
    if (!box) return;
    const was = box.hidden;
    box.hidden = !text;
    box.dataset.severity = model.get("severity");
    box.textContent = text;
    if (was !== box.hidden) fits();
  }
  const MODES = [["beside", "A beside B"], ["over", "B over A"], ["difference", "Difference"]];
  function compare() {
    const box = $(".wb-compare");
    if (!box) return;
    const pinned = model.get("pinned"), said = model.get("differs"), was = box.hidden;
    box.hidden = !pinned;
    const pin = $("[data-act=pin]");
    if (pin) { pin.setAttribute("aria-pressed", String(Boolean(pinned))); const words = pin.querySelector("span"); if (words) words.textContent = pinned ? "Unpin" : "Pin"; }
    if (pinned) {
      const text = make("span", { innerHTML: said }), mode = make("select", { ariaLabel: "How A and B are shown" });
      text.title = text.textContent;
      mode.append(...MODES.map(([value, words]) => make("option", { value, textContent: words, selected: value === model.get("compare") })));
      mode.addEventListener("change", () => send(model, { compare: mode.value }));
      const swap = make("button", { type: "button", textContent: "Swap", title: "A becomes B, and B becomes A" }), off = make("button", { type: "button", textContent: "Unpin", title: "Show A alone" });
      swap.dataset.act = "swap"; off.dataset.act = "unpin";
      box.replaceChildren(text, mode, swap, off);
    }
    if (was !== box.hidden) fits();
  }

  // --- a lost server is said, and the page comes back with it
  const banner = $(".wb-banner");
  let lost = false;
  async function alive() {
    try {
      const reply = await fetch(new URL("./liveness", location.href), { cache: "no-store", signal: AbortSignal.timeout(3000) });
      return reply.ok;
    } catch { return false; }
  }
  let closed = false;
  const Native = window.WebSocket;
  window.WebSocket = class extends Native {
    constructor(...given) { super(...given); this.addEventListener("close", () => { closed = true; watch(); }); this.addEventListener("open", () => { closed = false; }); }
  };
  let watching = false, leaving = false;
  addEventListener("pagehide", () => { leaving = true; });
  addEventListener("pageshow", () => { leaving = false; });
  async function watch() {
    if (watching || leaving) return;
    watching = true;
    let up = await alive();
    if (up && !lost) {                   // one that is going may still answer: it is asked again
      await new Promise((done) => setTimeout(done, 500));
      up = await alive();
    }
    watching = false;
    if (leaving) return;
    if (up && (lost || closed)) { location.reload(); return; }   // a new session, of the same address
    if (!up) {
      lost = true;
      banner.hidden = false;
      banner.textContent = "The server does not answer. What is drawn still plays; this page comes back by itself when the server does.";
      setTimeout(watch, 1000);
    }
  }

  // --- begin
  if (narrow.matches || store.get("form") === "closed") setForm(false, false);
  narrow.addEventListener("change", () => { if (narrow.matches) setForm(false, false); else setForm(store.get("form") !== "closed", false); });
  beneath.addEventListener("change", restoreShares);
  if (tabs.length) { if (store.get("dock") === "closed" && !root.dataset.tab) bench.dataset.dock = "closed"; choose(root.dataset.tab || store.get(`tab-${root.dataset.page}`)); $(".wb-fold").setAttribute("aria-expanded", String(bench.dataset.dock === "open")); }
  restoreShares();

  return {
    make, save, read, send,
    connectForm: (one) => { form = one; },
    connect: (given) => {
      model = given;
      const followed = { chips, facts, problem, severity: problem, study: links, answer: answered, pinned: compare, differs: compare, compare };
      for (const [name, call] of Object.entries(followed)) model.on(`change:${name}`, call);
      chips(); facts(); problem(); links(); compare(); tellTab();
    },
  };
})();
