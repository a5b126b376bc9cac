// The filter of the steps.
const find = $("find"), findStatus = $("find-status");
let isFiltered = false, only = new Set();
const setOnly = (traits) => {
  const chips = all("[data-only]");
  only = new Set(chips.map((chip) => chip.dataset.only).filter((each) => traits.includes(each)));
  for (const chip of chips) chip.setAttribute("aria-pressed", String(only.has(chip.dataset.only)));
};
const filterSteps = () => {
  const words = find.value.trim().toLowerCase().split(/\s+/).filter(Boolean), status = findStatus.value;
  const filtering = words.length > 0 || status !== "" || only.size > 0;
  if (!filtering && !isFiltered) return; // thousands of steps take time
  isFiltered = filtering;
  let count = 0;
  const fits = new Map();
  for (const row of all("#steps-table tbody tr")) {
    const text = row.textContent.toLowerCase();
    const has = row.dataset.is?.split(" ") ?? [];
    const fit = (!status || row.dataset.s === status) && (!only.size || has.some((trait) => only.has(trait))) && words.every((word) => text.includes(word));
    fits.set(row.dataset.i, fit);
    row.hidden = !fit;
    count += fit;
  }
  for (const line of all(".line.step")) {
    line.hidden = !fits.get(line.dataset.i);
    const items = line.nextElementSibling;
    if (items?.matches(".items")) items.hidden = line.hidden;
  }
  for (const tier of all(".tier")) tier.hidden = filtering && !tier.querySelector(".line.step:not([hidden])");
  for (const node of all(".node, .listed")) node.classList.toggle("faint", !fits.get(node.dataset.i));
  sizeBlocks();
  $("found").textContent = filtering ? `${count} of ${fits.size}` : "";
};
find.addEventListener("input", () => { filterSteps(); remember(); });
findStatus.addEventListener("change", () => { filterSteps(); remember(); });

// Sorting the table of steps.
let order = null;
const sortBy = (button) => {
  const column = +button.dataset.sort;
  order = { column, down: order?.column === column && !order.down };
  sort();
};
const sort = () => {
  if (!order) return;
  const { column, down } = order, table = $("steps-table");
  const number = table.tHead.rows[0].cells[column].classList.contains("number");
  const key = (row) => {
    const of = row.cells[column];
    return number ? parseFloat(of.dataset.v ?? (of.textContent === "–" ? -1 : of.textContent)) : of.textContent.trim().toLowerCase();
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), +row.dataset.i, row]);
  const compare = (one, other) => (number ? one - other : one.localeCompare(other, undefined, { numeric: true }));
  rows.sort((one, other) => (down ? -1 : 1) * compare(one[0], other[0]) || one[1] - other[1]);
  table.tBodies[0].append(...rows.map(([, , row]) => row));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", down ? "descending" : "ascending");
};
