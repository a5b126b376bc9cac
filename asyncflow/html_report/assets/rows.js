// Of a large run, rows are packed, and drawn when they come into view.
const AT_ONCE = 100, LINE = 26;
const packed = {}, tables = Object.fromEntries(["steps", "events"].map((id) => [id, { rows: [], shown: [], from: 0, to: AT_ONCE }]));
const unpack = async (id, text) => {
  const bytes = text && Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  packed[id] = text && await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
};
const parse = (html) => {
  const made = document.createElement("template");
  made.innerHTML = html;
  return [...made.content.children];
};

// A table has all its rows in the page or, if they are packed, those from one to another.
// A packed row becomes an element when it is needed.
const bodyOf = (id) => $(`${id}-table`).tBodies[0];
const readRows = (id) => {
  tables[id].rows = packed[id] ? Object.values(packed[id]).map((html) => ({ html })) : [...bodyOf(id).rows].map((made) => ({ html: made.outerHTML, made }));
};
const elementOf = (row) => row.made ??= parse(row.html)[0];
const drawRows = (id) => {
  const { shown, from, to } = tables[id], rows = (packed[id] ? shown.slice(from, to) : shown).map(elementOf), body = bodyOf(id);
  if (rows.length !== body.rows.length || rows.some((row, at) => row !== body.rows[at])) body.replaceChildren(...rows);
};
const showRows = (id, rows, again) => {
  Object.assign(tables[id], { shown: rows, ...(again && { from: 0, to: AT_ONCE }) });
  drawRows(id);
};
const drawRow = (id, row) => {
  const table = tables[id], at = table.shown.indexOf(row);
  if (at < 0 || (at >= table.from && at < table.to)) return;
  table.from = Math.max(at - AT_ONCE / 2, 0);
  table.to = table.from + AT_ONCE;
  drawRows(id);
};
const drawMore = (id, box) => {
  const table = tables[id], height = box.scrollHeight, top = box.scrollTop;
  if (box.scrollHeight - box.scrollTop - box.clientHeight < 400 && table.to < table.shown.length) { table.to += AT_ONCE; drawRows(id); }
  else if (top < 400 && table.from) {
    table.from = Math.max(table.from - AT_ONCE, 0);
    drawRows(id);
    box.scrollTop = top + box.scrollHeight - height;
  }
};
const rowOf = (number) => elementOf(tables.steps.rows[number]);

// The timeline has its rows in blocks, which have their height before they are drawn.
let fitting = null; // the steps that the filter shows
const fits = (number) => !fitting || fitting.has(number);
const stepsOf = (block) => block.dataset.of.trim().split(" ").filter(fits);
const drawBlock = (block) => {
  if (!block?.style.height) return;
  block.style.height = "";
  block.innerHTML = stepsOf(block).map((number) => packed.gantt[number]).join("");
  mark();
};
const drawBlocks = () => {
  const box = $("gantt-scroll")?.getBoundingClientRect();
  for (const block of all(fitting ? ".block" : ".rows[open] .block")) {
    if (!fitting && block.closest(".rows:not([open])")) continue; // a fold of an open tier
    const { top, bottom } = block.getBoundingClientRect();
    if (bottom > box.top - 400 && top < box.bottom + 400) drawBlock(block);
  }
};
const layBlocks = () => {
  for (const block of all(".block")) {
    const number = stepsOf(block).length;
    block.hidden = !number;
    block.style.height = `${number * LINE}px`;
  }
  drawBlocks();
};
document.addEventListener("scroll", ({ target }) => {
  const id = target.parentNode?.id;
  if (packed[id] && id in tables) drawMore(id, target);
  if (target.id === "gantt-scroll") drawBlocks();
}, true);
