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
    tab: tab === "log" ? tab : "",
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
  showDetails();
  if (chosen === null) return filterEvents();
  const is = `[data-i="${chosen}"]`;
  for (const each of all(`.line.step${is}, .node${is}, #steps-table tr${is}`)) each.classList.add("chosen");
  for (const each of all(`#events-table tr${is}`)) {
    if (attempt === null || each.dataset.a === attempt) each.classList.add("chosen");
  }
  for (const each of all(`.line.step${is} > a, #steps-table tr${is} th a, .node${is}`)) each.setAttribute("aria-current", "true");
  for (const each of all(`.edge[data-f="${chosen}"], .edge[data-t="${chosen}"]`)) each.classList.add("beside");
  $(`s${chosen}`)?.classList.add("selected");
  if (attempt !== null) {
    for (const each of all(`.line.step${is} .bar[data-a="${attempt}"], :is(#s${chosen}, #one) tr[data-a="${attempt}"]`)) each.classList.add("chosen");
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
  tab = state.get("tab") === "log" ? "log" : "details";
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
