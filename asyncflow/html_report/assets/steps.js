// The filter of the steps.
const find = $("find"), findStatus = $("find-status");
let only = new Set();
const setOnly = (traits) => {
  const chips = all("[data-only]");
  only = new Set(chips.map((chip) => chip.dataset.only).filter((each) => traits.includes(each)));
  for (const chip of chips) chip.setAttribute("aria-pressed", String(only.has(chip.dataset.only)));
};
const filterSteps = (again = false) => {
  const words = find.value.trim().toLowerCase().split(/\s+/).filter(Boolean), status = findStatus.value;
  const filtering = words.length > 0 || status !== "" || only.size > 0;
  const shown = !filtering ? tables.steps.rows : tables.steps.rows.filter((each) => {
    const row = elementOf(each), text = row.textContent.toLowerCase(), has = row.dataset.is?.split(" ") ?? [];
    return (!status || row.dataset.s === status) && (!only.size || has.some((trait) => only.has(trait))) && words.every((word) => text.includes(word));
  });
  fitting = filtering ? new Set(shown.map(({ made }) => made.dataset.i)) : null;
  body.classList.toggle("filtering", filtering);
  showRows("steps", order ? sorted(shown) : urgentFirst(shown), again);
  for (const line of all(".line.step")) {
    line.hidden = !fits(line.dataset.i);
    const items = line.nextElementSibling;
    if (items?.matches(".items")) items.hidden = line.hidden;
  }
  layBlocks();
  for (const tier of all(".tier, .fold")) tier.hidden = filtering && !tier.querySelector(":is(.line.step, .block):not([hidden])");
  for (const node of all(".node")) node.classList.toggle("faint", !membersOf(node).some(fits));
  const failed = only.has("failed") ? shown.reduce((sum, each) => sum + +(elementOf(each).dataset.failed ?? 0), 0) : 0;
  const items = failed ? `, ${failed.toLocaleString("en")} failed ${failed === 1 ? "item" : "items"}` : "";
  $("found").textContent = filtering ? `${shown.length} of ${names.length}${items}` : "";
};
for (const input of [find, findStatus]) input.addEventListener("input", () => { filterSteps(true); remember(); });

// A long table begins with what needs attention.
const LONG = 20, URGENCY = { failed: 0, cancelled: 1, running: 2 };
const urgencyOf = (row) => (row.urgency ??= URGENCY[/ data-s="(\w+)"/.exec(row.html)?.[1]] ?? 3);
const urgentFirst = (rows) => (rows.length > LONG ? [...rows].sort((one, other) => urgencyOf(one) - urgencyOf(other)) : rows);

// Sorting the table of steps.
let order = null;
const sortBy = (button) => {
  const column = +button.dataset.sort;
  order = { column, down: order?.column === column && !order.down };
  filterSteps(true);
};
const sorted = (shown) => {
  const { column, down } = order, table = $("steps-table");
  const number = table.tHead.rows[0].cells[column].classList.contains("number");
  const key = (row) => {
    const of = elementOf(row).cells[column];
    return number ? parseFloat(of.dataset.v ?? (of.textContent === "–" ? -1 : of.textContent)) : of.textContent.trim().toLowerCase();
  };
  const rows = shown.map((row) => [key(row), +row.made.dataset.i, row]);
  const compare = (one, other) => (number ? one - other : one.localeCompare(other, undefined, { numeric: true }));
  rows.sort((one, other) => (down ? -1 : 1) * compare(one[0], other[0]) || one[1] - other[1]);
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  return rows.map(([, , row]) => row);
};
