// The items of a mapped step: a cell for each, and the attempts of the one that is selected.
const ENDS = { s: "succeeded", f: "failed", t: "timed out", c: "cancelled", x: "crashed", r: "running" };
const COLUMNS = 40, PITCH = 8;
const cellsOf = (number) => {
  return (articleOf(number)?.querySelector(".cells")?.dataset.cells ?? "").split("|").filter(Boolean).flatMap((group) => {
    const [outcome, ...cells] = group.split(" ");
    return cells.map((cell) => { const [at, attempts] = cell.split(":"); return { at, outcome, attempts }; });
  });
};
const chooseCell = (strip, event) => {
  const box = strip.getBoundingClientRect(), pitch = (box.width / (COLUMNS * PITCH - 1)) * PITCH, number = strip.closest("article").dataset.i;
  const cell = cellsOf(number)[Math.floor((event.clientY - box.top) / pitch) * COLUMNS + Math.floor((event.clientX - box.left) / pitch)];
  if (cell) choose(number, null, { at: cell.at });
};
// Returns whether the selected step has items.
const moveItem = (by) => {
  const cells = cellsOf(chosen), at = cells.findIndex((cell) => cell.at === item);
  if (cells.length) choose(chosen, null, { at: cells[at < 0 ? (by > 0 ? 0 : cells.length - 1) : Math.min(Math.max(at + by, 0), cells.length - 1)].at });
  return cells.length > 0;
};
const lasted = (ms) => (ms ? tickText(ms < 10 ? +ms.toFixed(1) : Math.round(ms), 100) : "0 ms");
const showItem = () => {
  for (const each of all(".of-item")) each.replaceChildren();
  for (const each of all(".chosen-cell")) each.remove();
  for (const each of all("[data-item].chosen")) if (!each.matches("#events-table *")) each.classList.remove("chosen");
  const article = item === null || chosen === null ? null : articleOf(chosen), box = article?.querySelector(".cells");
  if (!box) return;
  const cells = cellsOf(chosen), at = cells.findIndex((cell) => cell.at === item), cell = cells[at], card = box.querySelector(".of-item");
  const row = article.querySelector(`tr[data-item="${item}"]`), line = document.querySelector(`.line.step[data-i="${chosen}"]`)?.nextElementSibling;
  for (const each of [row, line?.querySelector(`.line.item[data-item="${item}"]`)]) each?.classList.add("chosen");
  const head = document.createElement("h4");
  head.textContent = `${names[chosen]}[${item}]: ${cell ? cell.outcome.replace("success", "succeeded") : "the page has no details of it"}`;
  card.append(head);
  if (!cell) return;
  const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [name, value] of Object.entries({ class: "chosen-cell", x: (at % COLUMNS) * PITCH, y: Math.floor(at / COLUMNS) * PITCH, width: PITCH - 1, height: PITCH - 1 })) mark.setAttribute(name, value);
  box.querySelector(".strip-of-cells").append(mark);
  const attempts = [...cell.attempts.matchAll(/(\d+)([a-z])([\d.]+)\+([\d.]*)/g)];
  const rows = attempts.map(([, number, end, begin, took]) => `<tr><td>${number}</td><td>${ENDS[end]}</td><td>${lasted(+begin)}</td><td>${took ? lasted(+took) : "–"}</td></tr>`);
  if (rows.length) card.insertAdjacentHTML("beforeend", `<table class="attempts"><thead><tr><th>#</th><th>Ended</th><th>Started</th><th>Took</th></tr></thead><tbody>${rows.join("")}</tbody></table>`);
  const taken = row?.querySelector(".taken");
  if (row) card.append(`${taken ? `received ${taken.textContent}: ` : ""}${row.querySelector(".result").textContent}`);
};
