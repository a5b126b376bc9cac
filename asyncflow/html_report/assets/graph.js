// The graph.
const LEGIBLE = 0.64;
const fitDag = () => {
  const box = $("dag-scroll"), graph = box?.firstElementChild;
  if (!graph) return 1;
  const high = (parseFloat(getComputedStyle(box).maxHeight) || Infinity) - 2;
  return Math.min(1, Math.max(Math.min((box.clientWidth - 2) / graph.dataset.width, high / graph.dataset.height), 0.05));
};
const applyDag = () => {
  const graph = $("dag-scroll")?.firstElementChild;
  if (!graph) return;
  const scale = zooms.dag || Math.max(fitDag(), LEGIBLE);
  graph.setAttribute("width", graph.dataset.width * scale);
  graph.setAttribute("height", graph.dataset.height * scale);
};
// Shows what failed first, else what runs.
const centreDag = () => {
  const box = $("dag-scroll"), first = firstFailed();
  const node = box?.querySelector(first ? `.node[data-i="${first}"]` : ".node.running");
  if (!node) return;
  const outer = box.getBoundingClientRect(), inner = node.getBoundingClientRect();
  box.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
  box.scrollTop += (inner.top + inner.bottom - outer.top - outer.bottom) / 2;
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
