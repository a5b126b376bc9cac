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
