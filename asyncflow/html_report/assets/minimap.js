// The strip of parallelism is a map of the whole timeline: its window is what the timeline shows.
const setView = (from, to) => {
  const box = $("gantt-scroll"), part = Math.min(Math.max(to - from, 1 / mostGantt()), 1);
  zooms.gantt = 1 / part;
  applyGantt();
  box.scrollLeft = Math.min(Math.max(from, 0), 1 - part) * trackOf().width * zooms.gantt;
  ticksNow();
  remember();
};
// The details take room from the timeline. It shows the same part then.
new ResizeObserver(() => { if ($("gantt-scroll")) setView(...view); }).observe($("gantt"));
const drawMap = (fromMs, toMs, step) => {
  const map = document.querySelector(".minimap"), texts = [fromMs, toMs].map((ms) => tickText(Math.round(ms / step * 10) * step / 10, step / 10));
  map.style.setProperty("--from", `${view[0] * 100}%`);
  map.style.setProperty("--to", `${view[1] * 100}%`);
  map.classList.toggle("zoomable", zooms.gantt > 1);
  for (const each of all("[data-map]", map)) {
    const isEnd = each.dataset.map === "to";
    each.setAttribute("aria-valuenow", isEnd ? toMs : fromMs);
    each.setAttribute("aria-valuetext", each.dataset.map === "view" ? texts.join(" to ") : texts[+isEnd]);
  }
};
let map = null;
addEventListener("pointerdown", (event) => {
  const box = event.target.closest?.(".minimap")?.getBoundingClientRect();
  if (!box || event.button) return;
  event.preventDefault();
  const at = (event.clientX - box.left) / box.width, [from, to] = view, part = event.target.dataset.map;
  if (part) event.target.focus({ preventScroll: true });
  const fixed = { from: to, to: from }[part] ?? Math.min(Math.max(at, 0), 1);
  map = { box, x: event.clientX, isMoved: false, move: part === "view" && zooms.gantt > 1
    ? (x) => setView(from + x - at, to + x - at)
    : (x) => setView(Math.min(fixed, x), Math.max(fixed, x)) };
});
addEventListener("pointermove", (event) => {
  if (!map || (!map.isMoved && Math.abs(event.clientX - map.x) < 3)) return;
  map.isMoved = true;
  map.move(Math.min(Math.max((event.clientX - map.box.left) / map.box.width, 0), 1));
});
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { map = null; });
document.addEventListener("dblclick", (event) => { if (event.target.closest(".minimap")) zoomBy("gantt", "fit"); });
document.addEventListener("keydown", (event) => {
  const part = event.target.dataset?.map, [from, to] = view;
  const by = { ArrowLeft: -0.1, ArrowDown: -0.1, ArrowRight: 0.1, ArrowUp: 0.1, PageDown: -0.5, PageUp: 0.5, Home: -Infinity, End: Infinity }[event.key];
  if (!part || !by || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const move = (at, least, most) => Math.min(Math.max(at + by * (to - from), least), most), least = 1 / mostGantt();
  if (part === "from") setView(move(from, 0, to - least), to);
  else if (part === "to") setView(from, move(to, from + least, 1));
  else { const at = move(from, 0, 1 - to + from); setView(at, at + to - from); }
});
