// The selection: a step, or an attempt or an item of it. The address has it too, with the filters and the zoom.
let chosen = null, attempt = null, item = null, names = [], numbers = new Map(), needs = [], neededBy = [];
const readNames = () => {
  names = parse(`<p>${tables.steps.rows.map(({ html }) => /<th [^>]*>(.*?)<\/th>/s.exec(html)[1]).join("\n")}</p>`)[0].textContent.split("\n");
  if (!tables.steps.rows.length) names = [];
  numbers = new Map(names.map((name, number) => [name, String(number)]));
  needs = $("steps-table").dataset.needs.split("|").map((each) => each.split(",").filter(Boolean));
  neededBy = names.map(() => []);
  needs.forEach((each, number) => { for (const needed of each) neededBy[needed].push(String(number)); });
};
// All steps that one leads to, directly or through others.
const reach = (number, next) => {
  const found = new Set(), left = [number];
  while (left.length) for (const each of next[left.pop()] ?? []) if (!found.has(each)) { found.add(each); left.push(each); }
  return found;
};
const address = () => {
  const box = $("gantt-scroll"), state = {
    step: chosen === null ? "" : names[chosen], attempt, item,
    find: find.value, status: findStatus.value, events: eventText.value, kind: eventKind.value, only: eventStep.checked ? "yes" : "",
    show: [...only].join(),
    closed: all(".rows:not([open], [data-closed])").map((tier) => tier.dataset.key.slice(5)).join(),
    opened: all(".rows[data-closed][open]").map((tier) => tier.dataset.key.slice(5)).join(),
    zoom: zooms.gantt > 1 ? zooms.gantt.toPrecision(4) : "",
    from: zooms.gantt > 1 && box?.scrollLeft ? (box.scrollLeft / (trackOf().width * zooms.gantt)).toPrecision(4) : "",
    tab: tab === "log" ? tab : "",
    graph: zooms.dag ? zooms.dag.toPrecision(5) : "",
  };
  const parts = Object.entries(state).filter(([, value]) => value).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return parts.length ? `#${parts.join("&")}` : "";
};
const replaceAddress = () => history.replaceState(null, "", address() || location.pathname + location.search);
let replacing = 0;
const remember = () => { // browsers refuse too many changes, and an update may still have to follow the address
  clearTimeout(replacing);
  replacing = setTimeout(() => updating.then(replaceAddress), 100);
};
const readAddress = (said) => {
  if (!said.has("step")) return [null, null, null];
  const number = numbers.get(said.get("step"));
  if (number === undefined) return [null, null, null];
  const of = said.get("attempt"), at = said.get("item");
  // An attempt is segment.number, or its number in the first one.
  return [number, /^[1-9]\d*(\.[1-9]\d*)?$/.test(of ?? "") ? of : null, /^\d{1,9}$/.test(at ?? "") ? at : null];
};
// The steps of a box of the graph, which may stand for several.
const membersOf = (node) => node.dataset.members?.trim().split(" ") ?? [node.dataset.i];
const isChosen = (row) => row.dataset.i === chosen && (attempt === null || row.dataset.a === attempt) && (item === null || row.dataset.item === item);
// Marks what is drawn of the selected step, and of those before and after it.
const mark = () => {
  for (const each of all(".chosen, .selected, .upstream, .downstream, .beside")) each.classList.remove("chosen", "selected", "upstream", "downstream", "beside");
  for (const each of all("[aria-current]")) each.removeAttribute("aria-current");
  if (chosen === null) return;
  const is = `[data-i="${chosen}"]`, before = reach(chosen, needs), after = reach(chosen, neededBy);
  for (const each of all(`.line.step${is}, .node:is(${is}, [data-members~="${chosen}"]), #steps-table tr${is}`)) each.classList.add("chosen");
  for (const each of all("#events-table tr")) if (isChosen(each)) each.classList.add("chosen");
  for (const each of all(`.line.step${is} > a, #steps-table tr${is} th a, .node${is}`)) each.setAttribute("aria-current", "true");
  for (const [side, those] of [["upstream", before], ["downstream", after]]) {
    for (const each of all(".line.step, .node, #steps-table tr")) each.classList.toggle(side, membersOf(each).some((one) => those.has(one)));
    those.add(chosen);
  }
  const several = new Map(all(".node[data-members]").map((node) => [node.dataset.i, membersOf(node)])), of = (number) => several.get(number) ?? [number];
  for (const { dataset: { f, t }, classList } of all(".edge")) {
    const isDirect = of(f).includes(chosen) || of(t).includes(chosen) || !classList.contains("bundled");
    classList.toggle("beside", isDirect && [before, after].some((those) => [f, t].every((end) => of(end).some((one) => those.has(one)))));
  }
  $(`s${chosen}`)?.classList.add("selected");
  if (attempt !== null) {
    for (const each of all(`.line.step${is} .bar[data-a="${attempt}"], :is(#s${chosen}, #one) tr[data-a="${attempt}"]`)) each.classList.add("chosen");
  }
};
const show = (scroll) => {
  body.classList.toggle("has-selection", chosen !== null);
  showDetails();
  filterEvents();
  if (scroll && chosen !== null) {
    drawBlock(document.querySelector(`.block[data-of~="${chosen}"]`));
    drawRow("steps", tables.steps.rows[chosen]);
    drawRow("events", tables.events.shown.find((row) => row.html.includes(` data-i="${chosen}"`) && isChosen(elementOf(row))));
  }
  mark();
  showItem();
  if (scroll && chosen !== null) reveal();
};
const into = (box, one) => {
  if (!box || !one || one.hidden) return;
  const outer = box.getBoundingClientRect(), inner = one.getBoundingClientRect();
  const above = inner.top - outer.top - 64, below = inner.bottom - outer.bottom + 30;
  if (above < 0 || below > 0) box.scrollTop += (inner.top + inner.bottom - outer.top - outer.bottom) / 2;
  return [outer, inner];
};
// What failed first.
const firstFailed = () => document.querySelector("#failure h2 a")?.getAttribute("href").slice(2);
const reveal = () => {
  const line = document.querySelector(`.line.step[data-i="${chosen}"]`);
  for (let tier = line?.closest(".rows"); tier; tier = tier.parentNode.closest(".rows")) tier.open = true;
  into($("gantt-scroll"), line);
  into($("steps").firstElementChild, document.querySelector(`#steps-table tr[data-i="${chosen}"]`));
  into($("events").firstElementChild, document.querySelector("#events-table tr.chosen"));
  const found = into($("dag-scroll"), document.querySelector(`.node:is([data-i="${chosen}"], [data-members~="${chosen}"])`));
  if (found) {
    const [outer, inner] = found;
    if (inner.left < outer.left) $("dag-scroll").scrollLeft += inner.left - outer.left - 40;
    if (inner.right > outer.right) $("dag-scroll").scrollLeft += inner.right - outer.right + 40;
  }
  const panel = $("panel"), card = item !== null && articleOf(chosen)?.querySelector(".of-item");
  if (!card) { panel.scrollTop = 0; return; }
  const outer = panel.getBoundingClientRect(), isSeen = () => card.getBoundingClientRect().bottom <= outer.bottom;
  const scrollTo = (one) => { panel.scrollTop += one.getBoundingClientRect().top - outer.top - 60; };
  if (card.getBoundingClientRect().top < outer.top || !isSeen()) scrollTo(card.parentNode);
  if (!isSeen()) scrollTo(card);
};
const choose = (number, of = null, { push = true, scroll = true, at = null } = {}) => {
  number = number === null ? null : String(number);
  if (number === chosen && of === attempt && at === item) return;
  [chosen, attempt, item] = [number, of === null ? null : String(of), at];
  if (push) history.pushState(null, "", address() || location.pathname + location.search);
  show(scroll);
};
const follow = () => {
  clearTimeout(replacing);
  // The browser scrolls to a section, and nothing else changes.
  if (location.hash && !location.hash.includes("=")) { if (address()) remember(); return; }
  const state = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  const number = (name) => Math.max(Number(state.get(name)) || 0, 0);
  [chosen, attempt, item] = readAddress(state);
  tab = state.get("tab") === "log" ? "log" : "details";
  body.classList.toggle("has-selection", chosen !== null); // which leaves less room
  for (const [name, input] of Object.entries({ find, status: findStatus, events: eventText, kind: eventKind })) {
    input.value = state.get(name) ?? "";
    if (input.selectedIndex < 0) input.value = "";
  }
  eventStep.checked = state.has("only");
  setOnly((state.get("show") ?? "").split(","));
  const [closed, opened] = ["closed", "opened"].map((name) => (state.get(name) ?? "").split(","));
  for (const tier of all(".rows")) tier.open = "closed" in tier.dataset ? opened.includes(tier.dataset.key.slice(5)) : !closed.includes(tier.dataset.key.slice(5));
  filterSteps(true);
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
const inOrder = () => all(`.rows${fitting ? "" : "[open]"} :is(.block, .line.step:not([hidden], .block *))`).filter((each) => fitting || !each.closest(".rows:not([open])")).flatMap((each) => (each.dataset.of ? stepsOf(each) : each.dataset.i));
const move = (by) => {
  const order = inOrder();
  if (!order.length) return;
  const at = order.indexOf(chosen);
  choose(order[at < 0 ? (by > 0 ? 0 : order.length - 1) : Math.min(Math.max(at + by, 0), order.length - 1)]);
};
const moveAttempt = (by) => {
  if (chosen === null) return;
  if (moveItem(by)) return;
  const bars = all(`.line.step[data-i="${chosen}"] .bar.attempt`).map((bar) => bar.dataset.a);
  if (!bars.length) return;
  const at = bars.indexOf(attempt);
  choose(chosen, bars[at < 0 ? (by > 0 ? 0 : bars.length - 1) : Math.min(Math.max(at + by, 0), bars.length - 1)]);
};

addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const target = event.target.closest?.("a[href^='#s'], [data-i], [data-sort], [data-zoom], [data-only], .strip-of-cells");
  if (!target || dragged) return;
  if (target.dataset.sort) return sortBy(target);
  if (target.dataset.zoom) return zoomBy(target.dataset.of, target.dataset.zoom);
  if (target.dataset.only) { setOnly([...only].includes(target.dataset.only) ? [...only].filter((each) => each !== target.dataset.only) : [...only, target.dataset.only]); filterSteps(); return remember(); }
  if (target.matches(".strip-of-cells")) return chooseCell(target, event);
  const link = event.target.closest("a, button, summary, pre, input");
  const number = link ? /^#s(\d+)$/.exec(link.getAttribute("href") ?? "")?.[1] : target.dataset.i;
  if (number === undefined) return;
  if (!link && (target.tagName === "ARTICLE" || String(getSelection()))) return;
  if (link) event.preventDefault();
  const at = event.target.closest("[data-item]")?.dataset.item ?? null;
  const of = at ?? event.target.closest(".bar, use, a[data-a], tr[data-a]")?.dataset.a ?? "0";
  choose(number, at !== null || of === "0" ? null : of, { at });
});
