// The graph.
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
