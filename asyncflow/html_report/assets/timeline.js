// The timeline. Zooming changes its width, and the size of the graph. The address has the tiers that are closed.
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
  drawn = "";
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
let drawing = 0, drawn = "", view = [0, 1];
const drawTicks = () => {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(ticksNow);
};
const ticksNow = () => {
  const box = $("gantt-scroll");
  if (!box) return;
  const chart = box.firstElementChild, span = +chart.dataset.span, { width } = trackOf(), now = `${box.scrollLeft} ${zooms.gantt} ${width}`;
  if (now === drawn) return; // it was scrolled down or up
  drawn = now;
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
  view = [box.scrollLeft / full, (box.scrollLeft + width) / full];
  drawMap(from, to, step);
};
document.addEventListener("toggle", (event) => { if (event.target.matches(".rows")) { drawBlocks(); remember(); } }, true);
