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
const packedIn = (html) => /<script[^>]* data-packed>([^<]*)/.exec(html)?.[1];
const apply = async (sections) => {
  const changed = Object.entries(sections).filter(([id, html]) => $(id) && shown.get(id) !== html);
  await Promise.all(changed.map(([id, html]) => unpack(id, packedIn(html))));
  const before = changed.map(([id, html]) => {
    const element = $(id), place = placeOf(document.activeElement, element);
    const scrolls = all(".scroll", element).map((each) => [each.scrollLeft, each.scrollTop]);
    const open = new Map(all("details", element).map((each) => [keyOf(each), each.open]));
    shown.set(id, html);
    element.innerHTML = html;
    for (const each of all("details", element)) if (open.has(keyOf(each))) each.open = open.get(keyOf(each));
    if (id === "header") document.title = element.firstElementChild.dataset.tab;
    if (id in tables) readRows(id);
    return [element, place, scrolls];
  });
  applyGantt();
  applyDag();
  ready();
  for (const [element, place, scrolls] of before) {
    all(".scroll", element).forEach((each, at) => { if (scrolls[at]?.some(Boolean)) [each.scrollLeft, each.scrollTop] = scrolls[at]; });
    const inside = place && (place.query ? element.querySelector(place.query) : element);
    if (inside) focusable(inside)[place.at]?.focus({ preventScroll: true });
  }
  drawBlocks();
};
const ready = () => {
  showTimes(document);
  readNames();
  readKinds();
  if (chosen !== null && !(chosen in names)) [chosen, attempt, item] = [null, null, null];
  filterSteps();
  show(false);
};
let updating = (async () => {
  await Promise.all(["steps", "events", "gantt", "details"].map((id) => unpack(id, $(id).querySelector("[data-packed]")?.textContent)));
  for (const id of Object.keys(tables)) readRows(id);
  applyGantt();
  applyDag();
  ready();
  centreDag();
  follow();
  if (chosen === null && firstFailed() && !fitting) { drawBlock(document.querySelector(`.block[data-of~="${firstFailed()}"]`)); into($("gantt-scroll"), document.querySelector(`.line.step[data-i="${firstFailed()}"]`)); }
  // Without the script, links lead to the details at the end of the page.
  const old = /^#s(\d+)$/.exec(location.hash);
  if (old && names[old[1]] !== undefined) choose(old[1]);
})();
const update = (sections) => { updating = updating.then(() => apply(sections)); return updating; };
const stepRows = () => tables.steps.rows.map(elementOf);
window.asyncflow = { update, choose, stepRows };
document.addEventListener("scroll", (event) => { if (event.target.id === "gantt-scroll") { drawTicks(); if (zooms.gantt > 1) remember(); } }, true);
if ($("live")) setInterval(() => { for (const each of all("time[data-so-far]")) showTimes(each.parentNode); }, 1000);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(applyDag, 80); });
})();
