// The form of a study: native controls, read off a list that Python sends.
const CSS = `
:host { display: block; }
.form { font: 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; color: var(--wb-text); padding: 8px 12px 20px; }
.form * { box-sizing: border-box; }
.find { display: flex; gap: 6px; margin: 0 0 4px; }
section { padding: 8px 0 9px; border-top: 1px solid var(--wb-line); } section.first { border-top: 0; }
section.flash { background: var(--wb-tint); box-shadow: 0 0 0 6px var(--wb-tint); }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 7px 10px; }
.control { min-width: 0; display: flex; flex-direction: column; gap: 2px; } .control.wide { grid-column: 1 / -1; }
.label { display: flex; align-items: baseline; gap: 4px; color: var(--wb-muted); font-size: 12px; min-height: 17px; } .head .label { color: var(--wb-text); font-weight: 600; font-size: 12.5px; }
.label label, .label .name { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.help { font: 600 10px/13px system-ui, sans-serif; width: 14px; height: 14px; padding: 0; border: 1px solid var(--wb-strong); border-radius: 50%; background: none; color: var(--wb-muted); cursor: help; flex: none; }
.told { font-size: 12px; color: var(--wb-muted); margin: 1px 0 2px; overflow-wrap: anywhere; }
input[type=text], input[type=search], select { font: inherit; width: 100%; height: 28px; padding: 0 7px; border: 1px solid var(--wb-field, var(--wb-strong)); border-radius: 5px; background: var(--wb-surface); color: var(--wb-text); min-width: 0; font-variant-numeric: tabular-nums; }
select { padding: 0 4px; cursor: pointer; } .head select { height: 31px; font-weight: 500; }
input:focus-visible, select:focus-visible, button:focus-visible, summary:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
.slide { display: grid; grid-template-columns: minmax(0, 1fr) 62px; gap: 8px; align-items: center; } input[type=range] { width: 100%; margin: 0; accent-color: var(--wb-accent); }
.check { display: flex; align-items: center; gap: 6px; height: 28px; } .check input { width: 16px; height: 16px; margin: 0; accent-color: var(--wb-accent); }
.error { color: var(--wb-bad); font-size: 12px; overflow-wrap: anywhere; } .error:empty { display: none; } .control.wrong { grid-column: 1 / -1; } .wrong input, .wrong select { border-color: var(--wb-bad); }
.many { display: flex; flex-wrap: wrap; gap: 4px; } .many button { font: inherit; font-size: 12px; display: inline-flex; gap: 5px; padding: 1px 8px; border: 1px solid var(--wb-line); border-radius: 12px; background: var(--wb-sunk); color: var(--wb-text); cursor: pointer; } .many button:hover { border-color: var(--wb-bad); color: var(--wb-bad); }
details { border-top: 1px solid var(--wb-line); padding-top: 8px; } summary { cursor: pointer; font-weight: 600; font-size: 12.5px; padding: 2px 0 6px; border-radius: 4px; }
.foot { display: flex; justify-content: space-between; align-items: center; border-top: 1px solid var(--wb-line); padding-top: 10px; margin-top: 4px; }
.foot button { font: inherit; padding: 4px 12px; border: 1px solid var(--wb-line); border-radius: 6px; background: none; color: var(--wb-text); cursor: pointer; } .foot button:hover { background: var(--wb-hover); }
[hidden] { display: none !important; }
`;
const { make } = workbench;
let serial = 0;

// A slider's position (0 to 1000) for a value and back; on a log scale where the range is wide.
function scaleOf({ low, high, whole, log }) {
  const there = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v, [a, b] = [there(low), there(high)];
  return {
    at: (value) => Math.round(1000 * (there(Math.min(high, Math.max(low, value))) - a) / (b - a)),
    value: (at) => { const v = back(a + (b - a) * at / 1000); return whole ? Math.round(v) : Number(v.toPrecision(2)); },
  };
}

// The options of a list of choices, in the groups of their families, without those in `but`.
function optionsOf(groups, but = []) {
  return groups.flatMap(([group, entries]) => {
    const options = entries.filter(([value]) => !but.includes(value)).map(([value, textContent]) => make("option", { value, textContent }));
    return group ? make("optgroup", { label: group }, ...options) : options;
  });
}

// What is chosen, with a cross that leaves it out.
function chip(said, name, leave) {
  const button = make("button", { type: "button", title: "Leave it out", ariaLabel: `${name}: leave it out` }, said, make("span", { textContent: "×", ariaHidden: "true" }));
  button.addEventListener("click", leave);
  return button;
}

const signatureOf = ({ kind, label, options, slide, help }) => JSON.stringify([kind, label, options, slide, help]);

function control(one, change) {
  const id = `f${++serial}`, box = make("div", { className: "control" }), error = make("div", { className: "error", id: `${id}e` }), told = make("div", { className: "told", id: `${id}h`, hidden: true });
  box.dataset.key = one.key;
  if (one.head) box.classList.add("head", "wide");
  const help = make("button", { type: "button", className: "help", textContent: "?", title: one.help, tabIndex: -1, ariaLabel: `About ${one.label}` });
  help.addEventListener("click", () => { told.hidden = !told.hidden; });
  told.textContent = one.help;
  const name = make("label", { textContent: one.label, htmlFor: id, title: one.help }), label = make("div", { className: "label" }, name, help);
  let put, input;
  if (one.kind === "choice") {
    input = make("select", { id }, ...optionsOf(one.options));
    put = (value) => { input.value = value; };
    input.addEventListener("change", () => change(one.key, input.value));
    box.append(label, input);
  } else if (one.kind === "bool") {
    input = make("input", { type: "checkbox", id });
    put = (value) => { input.checked = value; };
    input.addEventListener("change", () => change(one.key, input.checked));
    box.append(make("div", { className: "check" }, input, name, help));
  } else if (one.kind === "many") {
    const chosen = make("div", { className: "many" });
    let held = [];
    input = make("select", { id });
    input.addEventListener("change", () => { const value = input.value; if (value) change(one.key, [...held, value]); });
    const words = Object.fromEntries(one.options.flatMap(([, entries]) => entries));
    put = (value) => {
      held = value;
      chosen.replaceChildren(...value.map((entry) => {
        const name = words[entry] ?? entry;
        return chip(name, name, () => change(one.key, held.filter((other) => other !== entry)));
      }));
      input.replaceChildren(make("option", { value: "", textContent: "Add …" }), ...optionsOf(one.options, value));
    };
    box.classList.add("wide");
    box.append(label, chosen, input);
  } else if (one.kind === "file") {
    input = make("input", { type: "file", id, accept: one.accept });
    const used = make("div", { className: "many" });
    put = (value) => {
      used.hidden = !value;
      used.replaceChildren(chip(`in use: ${value}…`, `File ${value}…`, () => { input.value = ""; change(one.key, ""); }));
    };
    input.addEventListener("change", () => {
      if (input.files[0]) workbench.read(input.files[0], (file) => change(one.key, file));
    });
    box.classList.add("wide");
    box.append(label, input, used);
  } else {
    input = make("input", { type: "text", id, spellcheck: false, autocomplete: "off" });
    let sent = null;
    const send = () => { if (input.value !== sent) change(one.key, sent = input.value); };
    // What is being typed stays when an answer to what was typed before comes late.
    const typing = () => input.getRootNode().activeElement === input && sent !== null && input.value !== sent;
    input.addEventListener("change", send);
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") send(); });
    if (one.slide) {
      const scale = scaleOf(one.slide), range = make("input", { type: "range", min: 0, max: 1000, step: 1, ariaLabel: `${one.label}, slider`, tabIndex: -1 });   // the box beside it takes any value from the keys
      let timer = 0;
      range.addEventListener("input", () => { input.value = String(scale.value(Number(range.value))); clearTimeout(timer); timer = setTimeout(send, 120); });
      range.addEventListener("change", () => { clearTimeout(timer); send(); });
      // Up and down in the box step, as in a box of numbers.
      input.addEventListener("keydown", (event) => {
        const by = { ArrowUp: 1, ArrowDown: -1 }[event.key], value = Number(input.value);
        if (!by || !Number.isFinite(value)) return;
        event.preventDefault();
        const { low, high, whole } = one.slide, step = whole ? 1 : (high - low) / 20;
        input.value = String(Math.min(high, Math.max(low, Number((value + by * step).toPrecision(6)))));
        clearTimeout(timer);
        timer = setTimeout(send, 150);
      });
      put = (value) => { if (typing()) return; input.value = sent = value; const number = Number(value); if (Number.isFinite(number)) { range.value = scale.at(number); range.setAttribute("aria-valuetext", value); } };
      box.classList.add("wide");
      box.append(label, make("div", { className: "slide" }, range, input));
    } else {
      put = (value) => { if (!typing()) input.value = sent = value; };
      box.append(label, input);
    }
  }
  box.append(told, error);
  input.setAttribute("aria-describedby", `${id}e`);
  const wrong = (sentence) => {
    box.classList.toggle("wrong", Boolean(sentence));
    input.setAttribute("aria-invalid", String(Boolean(sentence)));
    error.textContent = sentence;
  };
  put(one.value);
  wrong(one.error);
  return { box, input, put, wrong, signature: signatureOf(one) };
}

export default { render({ model, el }) {
  const held = new Map(), form = make("form", { className: "form", noValidate: true, autocomplete: "off", ariaLabel: "Study" });
  form.addEventListener("submit", (event) => event.preventDefault());
  // Panel hands on the last value of a trait in a while: what came before must be in it.
  let count = 0, edits = [];
  const change = (key, value) => {
    edits = [...edits.filter((one) => !one.value?.data).slice(-19), { key, value, count: ++count }];
    workbench.send(model, { edits });
  };
  const search = make("input", { type: "search", placeholder: "Find a control ( / )", ariaLabel: "Find a control" });
  search.addEventListener("input", () => filter());
  search.addEventListener("keydown", (event) => { if (event.key === "Escape") { search.value = ""; filter(); } });
  const sections = make("div"), rare = make("div", { className: "grid" }), more = make("details", {}, make("summary", { textContent: "More" }), rare);
  const reset = make("button", { type: "button", textContent: "Reset" });
  reset.addEventListener("click", () => change("", "reset"));
  form.append(make("div", { className: "find" }, search), sections, more, make("div", { className: "foot" }, reset));
  function filter() {
    const words = search.value.toLowerCase().trim();
    for (const [key, { box }] of held) box.hidden = Boolean(words) && !`${key} ${box.textContent}`.toLowerCase().includes(words);
    for (const one of form.querySelectorAll("section")) one.hidden = ![...one.querySelectorAll(".control")].some((box) => !box.hidden);
    if (words) more.open = true;
  }
  function draw() {
    const wanted = JSON.parse(model.get("controls")), at = form.getRootNode().activeElement, focused = [...held].find(([, one]) => one.box.contains(at))?.[0];
    const before = new Map(held);
    held.clear();
    const groups = new Map();
    for (const one of wanted) {
      let made = before.get(one.key);
      if (made?.signature !== signatureOf(one)) made = control(one, change);
      else { made.put(one.value); made.wrong(one.error); }
      held.set(one.key, made);
      const place = one.rare ? "" : one.section;
      groups.set(place, [...(groups.get(place) ?? []), made.box]);
    }
    const rareBoxes = groups.get("") ?? [];
    groups.delete("");
    more.hidden = !rareBoxes.length;
    place(rare, rareBoxes);
    const boxes = [...groups].map(([section, inside], i) => {
      const box = [...sections.children].find((one) => one.dataset.section === section) ?? make("section", {}, make("div", { className: "grid" }));
      box.dataset.section = section;
      box.classList.toggle("first", i === 0);
      place(box.firstChild, inside);
      return box;
    });
    place(sections, boxes);
    if (rareBoxes.some((box) => box.classList.contains("wrong"))) more.open = true;
    const back = focused && held.get(focused)?.input;
    if (back && form.getRootNode().activeElement !== back && !held.get(focused).box.contains(form.getRootNode().activeElement)) back.focus();
    filter();
  }
  // Children that stay are not moved: a control that is moved loses its focus.
  function place(box, children) {
    children.forEach((child, i) => { if (box.children[i] !== child) box.insertBefore(child, box.children[i] ?? null); });
    while (box.children.length > children.length) box.lastChild.remove();
  }
  model.on("change:controls", draw);
  el.append(make("style", { textContent: CSS }), form);
  draw();
  window.workbench?.connectForm({
    find: () => search.focus(),
    show: (section) => {
      const box = [...sections.children].find((one) => one.dataset.section === section);
      if (!box) return;
      box.scrollIntoView({ block: "start", behavior: "instant" });
      box.querySelector("select, input")?.focus();
      box.classList.add("flash");
      setTimeout(() => box.classList.remove("flash"), 900);
    },
  });
} };
