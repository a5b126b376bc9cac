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
// Of a long table, only the rows that have changed are replaced: to lay out thousands takes seconds.
const patch = (element, before, html) => {
  const [old, now] = [before ?? "", html].map((text) => text.split(/(?=<tr data-)/)), body = element.querySelector("tbody");
  const changed = [...old.keys()].filter((at) => old[at] !== now[at]);
  if (!body || now.length < old.length || changed[0] === 0 || changed.length > old.length / 4) return false;
  const rows = element.id === "steps" ? [...body.rows].sort((one, other) => one.dataset.i - other.dataset.i) : [...body.rows];
  for (const at of changed) rows[at - 1].outerHTML = now[at];
  body.insertAdjacentHTML("beforeend", now.slice(old.length).join(""));
  return true;
};
const update = (sections) => {
  const changed = Object.entries(sections).filter(([id, html]) => $(id) && shown.get(id) !== html).map(([id, html]) => [id, html, $(id), all(`#${id} .scroll`).map((each) => [each.scrollLeft, each.scrollTop])]);
  for (const [id, html, element, scrolls] of changed) { // whatever asks for a place now lays out all that has changed
    const before = shown.get(id);
    shown.set(id, html);
    if (["steps", "events"].includes(id) && patch(element, before, html)) continue;
    const open = new Map(all("details", element).map((each) => [keyOf(each), each.open]));
    const place = placeOf(document.activeElement, element);
    element.innerHTML = html;
    for (const each of all("details", element)) if (open.has(keyOf(each))) each.open = open.get(keyOf(each));
    if (id === "header") document.title = element.firstElementChild.dataset.tab;
    if (id === "gantt") { sizeBlocks(); applyGantt(); }
    if (id === "dag") applyDag();
    all(".scroll", element).forEach((each, at) => { if (scrolls[at]?.some(Boolean)) [each.scrollLeft, each.scrollTop] = scrolls[at]; });
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
  listDag();
  filterSteps();
  if (chosen !== null && !(chosen in names)) [chosen, attempt, item] = [null, null, null];
  show(false);
};
window.asyncflow = { update, choose };
sizeBlocks();
applyGantt();
applyDag();
ready();
centreDag();
follow();
// Without the script, links lead to the details at the end of the page.
const old = /^#s(\d+)$/.exec(location.hash);
if (old && names[old[1]] !== undefined) choose(old[1]);
document.addEventListener("scroll", (event) => { if (event.target.id === "gantt-scroll") { drawTicks(); if (zooms.gantt > 1) remember(); } }, true);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(applyDag, 80); });
})();
