// Makes the page of a run interactive. Without it the page shows the same, and does not change.
(() => {
"use strict";
const root = document.documentElement, body = document.body;
const $ = (id) => document.getElementById(id);
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
root.classList.add("js");

// The theme. A browser may not let a file store anything.
const THEMES = ["system", "light", "dark"], THEME_SYMBOLS = { system: "◐", light: "○", dark: "●" };
const stored = (() => { try { return localStorage; } catch { return null; } })();
let theme = "system";
const setTheme = (name) => {
  theme = THEMES.includes(name) ? name : "system";
  if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
  $("theme").textContent = THEME_SYMBOLS[theme];
  $("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  $("theme").title = $("theme").getAttribute("aria-label");
  try { stored?.setItem("asyncflow-theme", theme); } catch { /* not stored then */ }
};
const nextTheme = () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
try { setTheme(stored?.getItem("asyncflow-theme")); } catch { setTheme("system"); }

// Times in the reader's own zone and format.
const localTimes = () => {
  for (const time of all("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (time.dateTime && !Number.isNaN(+moment)) {
      const text = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
      if (time.textContent !== text) { time.title ||= time.textContent; time.textContent = text; }
    }
  }
};

// The selection: a step, and perhaps an attempt of it. The address has it too, with the filters and the zoom.
let chosen = null, attempt = null, names = [], numbers = new Map();
const readNames = () => {
  names = all("#steps-table tbody tr").map((row) => [row.dataset.i, row.querySelector("th").textContent]);
  names.sort((one, other) => one[0] - other[0]);
  names = names.map(([, name]) => name);
  numbers = new Map(names.map((name, number) => [name, String(number)]));
};
const address = () => {
  const box = $("gantt-scroll"), state = {
    step: chosen === null ? "" : names[chosen], attempt,
    find: find.value, status: findStatus.value, events: eventText.value, kind: eventKind.value, only: eventStep.checked ? "yes" : "",
    zoom: zooms.gantt > 1 ? zooms.gantt.toPrecision(4) : "",
    from: zooms.gantt > 1 && box?.scrollLeft ? (box.scrollLeft / (trackOf().width * zooms.gantt)).toPrecision(4) : "",
    graph: zooms.dag ? zooms.dag.toPrecision(3) : "",
  };
  const parts = Object.entries(state).filter(([, value]) => value).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return parts.length ? `#${parts.join("&")}` : "";
};
const replaceAddress = () => history.replaceState(null, "", address() || location.pathname + location.search);
let replacing = 0;
const remember = () => { clearTimeout(replacing); replacing = setTimeout(replaceAddress, 100); }; // browsers refuse too many changes
const readAddress = (said) => {
  if (!said.has("step")) return [null, null];
  const number = numbers.get(said.get("step"));
  if (number === undefined) return [null, null];
  const of = said.get("attempt");
  return [number, /^[1-9]\d*(\.[1-9]\d*)?$/.test(of ?? "") ? of : null]; // segment.number, or number in the first one
};
const show = (scroll) => {
  for (const each of all(".chosen, .selected, .beside")) each.classList.remove("chosen", "selected", "beside");
  for (const each of all("[aria-current]")) each.removeAttribute("aria-current");
  body.classList.toggle("has-selection", chosen !== null);
  if (chosen === null) return filterEvents();
  const is = `[data-i="${chosen}"]`;
  for (const each of all(`.line.step${is}, .node${is}, #steps-table tr${is}`)) each.classList.add("chosen");
  for (const each of all(`#events-table tr${is}`)) {
    if (attempt === null || each.dataset.a === attempt) each.classList.add("chosen");
  }
  for (const each of all(`.line.step${is} > a, #steps-table tr${is} th a, .node${is}`)) each.setAttribute("aria-current", "true");
  for (const each of all(`.edge[data-f="${chosen}"], .edge[data-t="${chosen}"]`)) each.classList.add("beside");
  $(`s${chosen}`)?.classList.add("selected");
  $("details").dataset.missing = $(`s${chosen}`) ? "" : "yes";
  if (attempt !== null) {
    for (const each of all(`.line.step${is} .bar[data-a="${attempt}"], #s${chosen} tr[data-a="${attempt}"]`)) each.classList.add("chosen");
  }
  filterEvents();
  if (scroll) reveal();
};
const reveal = () => {
  const into = (box, one) => {
    if (!box || !one || one.hidden) return;
    const outer = box.getBoundingClientRect(), inner = one.getBoundingClientRect();
    const above = inner.top - outer.top - 64, below = inner.bottom - outer.bottom + 30;
    if (above < 0 || below > 0) box.scrollTop += (inner.top + inner.bottom - outer.top - outer.bottom) / 2;
    return [outer, inner];
  };
  into($("gantt-scroll"), document.querySelector(`.line.step[data-i="${chosen}"]`));
  into($("steps").firstElementChild, document.querySelector(`#steps-table tr[data-i="${chosen}"]`));
  into($("events").firstElementChild, document.querySelector("#events-table tr.chosen"));
  const found = into($("dag-scroll"), document.querySelector(`.node[data-i="${chosen}"]`));
  if (found) {
    const [outer, inner] = found;
    if (inner.left < outer.left) $("dag-scroll").scrollLeft += inner.left - outer.left - 40;
    if (inner.right > outer.right) $("dag-scroll").scrollLeft += inner.right - outer.right + 40;
  }
  $("panel").scrollTop = 0;
};
const choose = (number, of = null, { push = true, scroll = true } = {}) => {
  number = number === null ? null : String(number);
  if (number === chosen && of === attempt) return;
  [chosen, attempt] = [number, of === null ? null : String(of)];
  if (push) history.pushState(null, "", address() || location.pathname + location.search);
  show(scroll);
};
const follow = () => {
  clearTimeout(replacing);
  // The browser scrolls to a section, and nothing else changes.
  if (location.hash && !location.hash.includes("=")) { if (address()) remember(); return; }
  const state = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  const number = (name) => Math.max(Number(state.get(name)) || 0, 0);
  [chosen, attempt] = readAddress(state);
  for (const [name, input] of Object.entries({ find, status: findStatus, events: eventText, kind: eventKind })) {
    input.value = state.get(name) ?? "";
    if (input.selectedIndex < 0) input.value = "";
  }
  eventStep.checked = state.has("only");
  filterSteps();
  zooms.gantt = Math.min(Math.max(number("zoom"), 1), mostGantt());
  zooms.dag = number("graph") && Math.min(Math.max(number("graph"), 0.05), 4);
  applyGantt();
  applyDag();
  if ($("gantt-scroll")) $("gantt-scroll").scrollLeft = number("from") * trackOf().width * zooms.gantt;
  show(true);
};
addEventListener("popstate", follow);
addEventListener("hashchange", follow);

// The steps that the filter shows, in the order of the timeline.
const inOrder = () => all(".line.step:not([hidden])").map((line) => line.dataset.i);
const move = (by) => {
  const order = inOrder();
  if (!order.length) return;
  const at = order.indexOf(chosen);
  choose(order[at < 0 ? (by > 0 ? 0 : order.length - 1) : Math.min(Math.max(at + by, 0), order.length - 1)]);
};
const moveAttempt = (by) => {
  if (chosen === null) return;
  const bars = all(`.line.step[data-i="${chosen}"] .bar.attempt`).map((bar) => bar.dataset.a);
  if (!bars.length) return;
  const at = bars.indexOf(attempt);
  choose(chosen, bars[at < 0 ? (by > 0 ? 0 : bars.length - 1) : Math.min(Math.max(at + by, 0), bars.length - 1)]);
};

addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const target = event.target.closest?.("a[href^='#s'], [data-i], [data-sort], [data-zoom], [data-export]");
  if (!target || dragged) return;
  if (target.dataset.sort) return sortBy(target);
  if (target.dataset.zoom) return zoomBy(target.dataset.of, target.dataset.zoom);
  if (target.dataset.export) return save(target.dataset.export);
  const link = event.target.closest("a, button, summary, pre, input");
  const number = link ? /^#s(\d+)$/.exec(link.getAttribute("href") ?? "")?.[1] : target.dataset.i;
  if (number === undefined) return;
  if (!link && (target.tagName === "ARTICLE" || String(getSelection()))) return;
  if (link) event.preventDefault();
  const of = event.target.closest(".bar, use, a[data-a], tr[data-a]")?.dataset.a ?? "0";
  choose(number, of === "0" ? null : of);
});

// The filter of the steps.
const find = $("find"), findStatus = $("find-status");
let isFiltered = false;
const filterSteps = () => {
  const words = find.value.trim().toLowerCase().split(/\s+/).filter(Boolean), status = findStatus.value;
  const filtering = words.length > 0 || status !== "";
  if (!filtering && !isFiltered) return; // thousands of steps take time
  isFiltered = filtering;
  let count = 0;
  const fits = new Map();
  for (const row of all("#steps-table tbody tr")) {
    const text = row.textContent.toLowerCase();
    const fit = (!status || row.dataset.s === status) && words.every((word) => text.includes(word));
    fits.set(row.dataset.i, fit);
    row.hidden = !fit;
    count += fit;
  }
  for (const line of all(".line.step")) {
    line.hidden = !fits.get(line.dataset.i);
    const items = line.nextElementSibling;
    if (items?.matches(".items")) items.hidden = line.hidden;
  }
  for (const tier of all(".tier")) tier.hidden = filtering && !tier.querySelector(".line.step:not([hidden])");
  for (const node of all(".node")) node.classList.toggle("faint", !fits.get(node.dataset.i));
  $("found").textContent = filtering ? `${count} of ${fits.size}` : "";
};
find.addEventListener("input", () => { filterSteps(); remember(); });
findStatus.addEventListener("change", () => { filterSteps(); remember(); });

// The filter of the events.
const eventText = $("event-text"), eventKind = $("event-kind"), eventStep = $("event-step");
const readKinds = () => {
  const kinds = [...new Set(all("#events-table tr[data-ms]").map((row) => row.cells[1].textContent))].sort();
  if (kinds.join() === [...eventKind.options].slice(1).map((each) => each.value).join()) return;
  const before = eventKind.value;
  eventKind.length = 1;
  for (const kind of kinds) eventKind.add(new Option(kind, kind));
  eventKind.value = kinds.includes(before) ? before : "";
};
let areFiltered = false;
function filterEvents() {
  const text = eventText.value.trim().toLowerCase(), kind = eventKind.value;
  const only = eventStep.checked && chosen !== null, filtering = only || text !== "" || kind !== "";
  if (!filtering && !areFiltered) return;
  areFiltered = filtering;
  for (const row of all("#events-table tr[data-ms]")) {
    row.hidden = (kind && row.cells[1].textContent !== kind) || (only && row.dataset.i !== chosen)
      || (text && !row.textContent.toLowerCase().includes(text));
  }
}
for (const input of [eventText, eventKind, eventStep]) input.addEventListener("input", () => { filterEvents(); remember(); });

// Exports the events that the filter shows.
const timeOf = (ms) => {
  const clock = $("events-table").dataset.clock.trim().split(" ").map(Number);
  let at = 0;
  while (at + 2 < clock.length && clock[at + 2] <= ms) at += 2;
  const moment = new Date(clock[at + 1] + ms - clock[at]);
  return Number.isNaN(+moment) ? null : moment.toISOString();
};
const records = () => all("#events-table tr[data-ms]:not([hidden])").map((row) => ({
  at_ms: +row.dataset.ms, time: timeOf(+row.dataset.ms), event: row.cells[1].textContent,
  step: row.dataset.i === undefined ? row.cells[2].textContent || null : names[row.dataset.i],
  attempt: row.dataset.a ? +row.dataset.a.split(".").at(-1) : null, item: row.dataset.item ? +row.dataset.item : null,
  text: row.cells[3].textContent,
}));
// A spreadsheet would run a text that begins like a formula.
const cell = (value) => {
  const text = value === null ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
const save = (kind) => {
  const found = records(), columns = ["at_ms", "time", "event", "step", "attempt", "item", "text"];
  const text = kind === "json" ? JSON.stringify(found, null, 1)
    : [columns, ...found.map((each) => columns.map((name) => each[name]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" }));
  link.download = `${($("events-table").dataset.run || "run").replace(/[^\w.-]+/g, "_")}-events.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};

// Sorting the table of steps.
let order = null;
const sortBy = (button) => {
  const column = +button.dataset.sort;
  order = { column, down: order?.column === column && !order.down };
  sort();
};
const sort = () => {
  if (!order) return;
  const { column, down } = order, table = $("steps-table");
  const number = table.tHead.rows[0].cells[column].classList.contains("number");
  const key = (row) => {
    const of = row.cells[column];
    return number ? parseFloat(of.dataset.v ?? (of.textContent === "–" ? -1 : of.textContent)) : of.textContent.trim().toLowerCase();
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), +row.dataset.i, row]);
  const compare = (one, other) => (number ? one - other : one.localeCompare(other, undefined, { numeric: true }));
  rows.sort((one, other) => (down ? -1 : 1) * compare(one[0], other[0]) || one[1] - other[1]);
  table.tBodies[0].append(...rows.map(([, , row]) => row));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", down ? "descending" : "ascending");
};

// Zooming changes the width of the timeline, and the size of the graph.
const zooms = { gantt: 1, dag: 0 };
const trackOf = () => {
  const style = getComputedStyle(root), label = parseFloat(style.getPropertyValue("--label")), pad = parseFloat(style.getPropertyValue("--pad"));
  return { label, width: Math.max($("gantt-scroll").clientWidth - label - pad, 1) };
};
const applyGantt = () => {
  const box = $("gantt-scroll");
  if (!box) return;
  box.firstElementChild.style.setProperty("--zoom", zooms.gantt);
  box.firstElementChild.classList.toggle("zoomed", zooms.gantt > 4);
  drawTicks();
};
// Browsers lay out at most about ten million pixels.
const mostGantt = () => ($("gantt-scroll") ? Math.max(8e6 / trackOf().width, 1) : 1);
const zoomGantt = (factor, clientX = null) => {
  const box = $("gantt-scroll");
  if (!box) return;
  const { label, width } = trackOf(), before = zooms.gantt;
  zooms.gantt = Math.min(Math.max(before * factor, 1), mostGantt());
  const at = (clientX === null ? width / 2 : clientX - box.getBoundingClientRect().left - label) + box.scrollLeft;
  const shift = at * (zooms.gantt / before - 1);
  applyGantt();
  box.scrollLeft += shift;
  drawTicks();
  remember();
};
const fitDag = () => {
  const box = $("dag-scroll"), graph = box?.firstElementChild;
  return graph ? Math.min(1, Math.max((box.clientWidth - 2) / graph.dataset.width, 0.05)) : 1;
};
const applyDag = () => {
  const graph = $("dag-scroll")?.firstElementChild;
  if (!graph) return;
  const scale = zooms.dag || Math.max(fitDag(), 0.8);
  graph.setAttribute("width", graph.dataset.width * scale);
  graph.setAttribute("height", graph.dataset.height * scale);
};
const zoomDag = (factor, event = null) => {
  const box = $("dag-scroll"), graph = box?.firstElementChild;
  if (!graph) return;
  const outer = box.getBoundingClientRect(), inner = graph.getBoundingClientRect();
  const x = event ? event.clientX : outer.left + outer.width / 2, y = event ? event.clientY : outer.top + outer.height / 2;
  const part = [(x - inner.left) / inner.width, (y - inner.top) / inner.height];
  zooms.dag = Math.min(Math.max((inner.width / graph.dataset.width) * factor, 0.05), 4);
  applyDag();
  const after = graph.getBoundingClientRect();
  box.scrollLeft += after.left + part[0] * after.width - x;
  box.scrollTop += after.top + part[1] * after.height - y;
  remember();
};
const zoomBy = (of, way) => {
  const factor = way === "in" ? 1.6 : 1 / 1.6;
  if (of === "dag") {
    if (way === "fit") { zooms.dag = fitDag(); applyDag(); } else zoomDag(factor);
  } else if (way === "fit") { zooms.gantt = 1; applyGantt(); } else zoomGantt(factor);
  remember();
};
addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  const box = event.target.closest?.("#gantt-scroll, #dag-scroll");
  if (!box) return;
  event.preventDefault();
  const factor = Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 120) / 300);
  if (box.id === "dag-scroll") zoomDag(factor, event); else zoomGantt(factor, event.clientX);
}, { passive: false });

// The axis has ticks at round times, also when zoomed: the same ones as in axis.py.
const NICE = [...[-3, -2, -1, 0, 1, 2].flatMap((power) => [1, 2, 5].map((base) => base * 10 ** power)),
  ...[1, 2, 5, 10, 15, 30].map((each) => each * 1e3), ...[1, 2, 5, 10, 15, 30].map((each) => each * 6e4),
  ...[1, 2, 3, 6, 12].map((each) => each * 36e5), ...[1, 2, 7, 14, 30, 90, 365].map((each) => each * 864e5)];
const tickText = (ms, step) => {
  if (!ms) return "0";
  const format = (number, unit, digits) => `${digits === undefined ? +number.toPrecision(12) : number.toFixed(digits)} ${unit}`;
  if (ms < 1e3) return format(ms, "ms");
  const decimals = Math.max(0, Math.ceil(-Math.log10(step / 1e3) - 1e-9));
  if (ms < 6e4) return format(ms / 1e3, "s", decimals);
  const parts = [[864e5, "d"], [36e5, "h"], [6e4, "min"]], found = [];
  let left = ms;
  for (const [size, unit] of parts) {
    const count = Math.floor(left / size + 1e-9);
    if (count) found.push(`${count} ${unit}`);
    left = Math.max(left - count * size, 0);
  }
  if (left > step / 2 || !found.length) found.push(format(left / 1e3, "s", decimals));
  return found.join(" ");
};
let drawing = 0;
const drawTicks = () => {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(ticksNow);
};
const ticksNow = () => {
  const box = $("gantt-scroll");
  if (!box) return;
  const chart = box.firstElementChild, span = +chart.dataset.span, { width } = trackOf();
  // Between two segments of a resumed run, the axis has a gap.
  const begins = chart.dataset.begins.split(" ").map(Number), gap = +chart.dataset.gap / 100, wide = 1 - gap * (begins.length - 1);
  const placeOf = (ms, segment) => (ms / span) * wide + gap * segment;
  const timeAt = (place) => {
    const segment = Math.max(begins.findLastIndex((ms, at) => placeOf(ms, at) <= place), 0);
    return Math.min(((place - gap * segment) / wide) * span, begins[segment + 1] ?? span);
  };
  const full = width * zooms.gantt, from = timeAt(box.scrollLeft / full), to = timeAt((box.scrollLeft + width) / full);
  const wanted = span / zooms.gantt / wide / Math.max(Math.floor(width / 105), 2);
  const step = NICE.find((each) => each >= wanted) ?? Math.ceil(wanted / NICE.at(-1)) * NICE.at(-1);
  const svg = (tag, set, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(set)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  };
  const texts = [], lines = [];
  for (let number = Math.ceil(from / step - 1e-9); number * step <= to * (1 + 1e-9); number++) {
    const ms = number * step, at = `${Math.min(placeOf(ms, begins.findLastIndex((each) => each <= ms)) * 100, 100)}%`;
    const anchor = !number ? "start" : number * step > from + (to - from) * 0.97 ? "end" : "middle";
    texts.push(svg("text", { x: at, y: 18, dx: number ? 0 : 2, "text-anchor": anchor }, tickText(number * step, step)));
    lines.push(svg("line", { x1: at, x2: at, y1: 0, y2: "100%" }));
  }
  chart.querySelector(".ticks").replaceChildren(...texts);
  chart.querySelector(".grid").replaceChildren(...lines);
};
// Paper does not scroll.
let printed = null;
addEventListener("beforeprint", () => {
  printed = [zooms.gantt, $("gantt-scroll")?.scrollLeft];
  zooms.gantt = 1;
  applyGantt();
  ticksNow();
});
addEventListener("afterprint", () => {
  if (!printed || printed[0] === 1) return;
  zooms.gantt = printed[0];
  applyGantt();
  $("gantt-scroll").scrollLeft = printed[1];
});

// Dragging pans.
let drag = null, dragged = false;
addEventListener("pointerdown", (event) => {
  dragged = false;
  const box = event.target.closest?.("#gantt-scroll, #dag-scroll");
  if (!box || event.button || event.pointerType === "touch" || event.target.closest("summary, .label")) return;
  const edge = box.getBoundingClientRect();
  if (event.clientX > edge.left + box.clientWidth || event.clientY > edge.top + box.clientHeight) return; // a scroll bar
  drag = { box, x: event.clientX, y: event.clientY, left: box.scrollLeft, top: box.scrollTop };
});
addEventListener("pointermove", (event) => {
  if (!drag) return;
  const { box, x, y, left, top } = drag;
  if (!dragged && Math.hypot(event.clientX - x, event.clientY - y) < 5) return;
  dragged = true;
  body.classList.add("grabbing");
  box.scrollLeft = left - event.clientX + x;
  box.scrollTop = top - event.clientY + y;
});
addEventListener("pointerup", () => { drag = null; body.classList.remove("grabbing"); setTimeout(() => { dragged = false; }); });
addEventListener("pointercancel", () => { drag = null; body.classList.remove("grabbing"); });
addEventListener("dragstart", (event) => { if (event.target.closest?.("#gantt-scroll, #dag-scroll")) event.preventDefault(); });

// Shows the title of a bar without the delay of the browser.
const tip = $("tip");
addEventListener("pointerover", (event) => {
  let over = event.target.closest?.(".bar, use, .marks g");
  if (over?.matches("use")) over = over.parentNode.querySelector(`.bar:is(.attempt, .items)[data-a="${over.dataset.a}"]`);
  if (!over) { tip.hidden = true; return; }
  const title = over.querySelector(":scope > title");
  if (title) { over.dataset.tip = title.textContent; title.remove(); }
  tip.textContent = over.dataset.tip ?? "";
  tip.hidden = !tip.textContent;
});
addEventListener("pointermove", (event) => {
  if (tip.hidden) return;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
});

// The keyboard.
const help = $("help");
const KEYS = {
  ArrowDown: () => move(1), ArrowUp: () => move(-1), ArrowRight: () => moveAttempt(1), ArrowLeft: () => moveAttempt(-1),
  "+": () => zoomGantt(1.6), "=": () => zoomGantt(1.6), "-": () => zoomGantt(1 / 1.6), 0: () => zoomBy("gantt", "fit"),
  t: nextTheme, "?": () => help.showModal(),
  "/": () => { $("bar").scrollIntoView({ block: "nearest" }); find.focus(); find.select(); },
};
const clear = () => {
  if (find.value || findStatus.value) { find.value = findStatus.value = ""; filterSteps(); remember(); if (chosen !== null) reveal(); } else choose(null);
  document.activeElement?.matches("input, select") && document.activeElement.blur();
};
addEventListener("keydown", (event) => {
  if (help.open || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { clear(); return; }
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "ArrowDown" && event.target === find) { event.preventDefault(); find.blur(); move(1); }
    return;
  }
  // Arrows scroll what has its own scroll bar.
  if (event.key.startsWith("Arrow") && (event.shiftKey || event.target.matches("pre, #steps .scroll, #events .scroll"))) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});
$("help-open").addEventListener("click", () => help.showModal());
$("theme").addEventListener("click", nextTheme);
$("panel-close").addEventListener("click", () => choose(null));
$("panel-next").addEventListener("click", () => move(1));
$("panel-previous").addEventListener("click", () => move(-1));

// Replaces sections, and keeps what the reader has opened, scrolled and focused.
const keyOf = (details) => details.dataset.key ?? details.querySelector("summary")?.textContent.replace(/\d+/g, "");
const focusable = (inside) => all("a, button, summary, [tabindex]", inside);
const placeOf = (focus, element) => {
  if (!focus || !element.contains(focus)) return null;
  const near = focus.parentElement.closest("[data-i]"), inside = near && element.contains(near) ? near : element;
  const query = inside === element ? null : `${inside.tagName}[data-i="${inside.dataset.i}"]`;
  return { query, at: focusable(inside).indexOf(focus) };
};
const shown = new Map();
const update = (sections) => {
  for (const [id, html] of Object.entries(sections)) {
    const element = $(id);
    if (!element || shown.get(id) === html) continue;
    shown.set(id, html);
    const scrolls = all(".scroll", element).map((each) => [each.scrollLeft, each.scrollTop]);
    const open = new Map(all("details", element).map((each) => [keyOf(each), each.open]));
    const place = placeOf(document.activeElement, element);
    element.innerHTML = html;
    for (const each of all("details", element)) if (open.has(keyOf(each))) each.open = open.get(keyOf(each));
    if (id === "header") document.title = element.firstElementChild.dataset.tab;
    if (id === "gantt") applyGantt();
    if (id === "dag") applyDag();
    all(".scroll", element).forEach((each, at) => { if (scrolls[at]) [each.scrollLeft, each.scrollTop] = scrolls[at]; });
    const inside = place && (place.query ? element.querySelector(place.query) : element);
    // An element that is hidden until it is selected again can't have the focus yet.
    if (inside) { show(false); focusable(inside)[place.at]?.focus({ preventScroll: true }); }
  }
  ready();
};
const ready = () => {
  localTimes();
  readNames();
  readKinds();
  sort();
  filterSteps();
  if (chosen !== null && !(chosen in names)) [chosen, attempt] = [null, null];
  show(false);
};
window.asyncflow = { update, choose };
applyGantt();
applyDag();
ready();
follow();
// Without the script, links lead to the details at the end of the page.
const old = /^#s(\d+)$/.exec(location.hash);
if (old && names[old[1]] !== undefined) choose(old[1]);
document.addEventListener("scroll", (event) => { if (event.target.id === "gantt-scroll") { drawTicks(); if (zooms.gantt > 1) remember(); } }, true);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => { applyGantt(); applyDag(); }, 80); });
})();
