// The filter of the events.
const eventText = $("event-text"), eventKind = $("event-kind"), eventStep = $("event-step");
const readKinds = () => {
  const kinds = [...new Set(tables.events.rows.map(({ html }) => /<\/td><td>(\w+)</.exec(html)?.[1]).filter(Boolean))].sort();
  if (kinds.join() === [...eventKind.options].slice(1).map((each) => each.value).join()) return;
  const before = eventKind.value;
  eventKind.length = 1;
  for (const kind of kinds) eventKind.add(new Option(kind, kind));
  eventKind.value = kinds.includes(before) ? before : "";
};
const filterEvents = (again = false) => {
  const text = eventText.value.trim().toLowerCase(), kind = eventKind.value, { rows } = tables.events;
  const only = eventStep.checked && chosen !== null, filtering = only || text !== "" || kind !== "";
  showRows("events", !filtering ? rows : rows.filter((each) => { const row = elementOf(each); return row.dataset.ms && (!kind || row.cells[1].textContent === kind)
    && (!only || row.dataset.i === chosen) && (!text || row.textContent.toLowerCase().includes(text)); }), again);
};
for (const input of [eventText, eventKind, eventStep]) input.addEventListener("input", () => { filterEvents(true); remember(); });

// Exports the events that the filter shows.
const timeOf = (ms) => {
  const clock = $("events-table").dataset.clock.trim().split(" ").map(Number);
  let at = 0;
  while (at + 2 < clock.length && clock[at + 2] <= ms) at += 2;
  const moment = new Date(clock[at + 1] + ms - clock[at]);
  return Number.isNaN(+moment) ? null : moment.toISOString();
};
const records = () => tables.events.shown.map(elementOf).filter((row) => row.dataset.ms).map((row) => ({
  at_ms: +row.dataset.ms, time: timeOf(+row.dataset.ms), event: row.cells[1].textContent,
  step: row.dataset.i === undefined ? row.cells[2].textContent || null : names[row.dataset.i],
  attempt: row.dataset.a ? +row.dataset.a.split(".").at(-1) : null, item: row.dataset.item ? +row.dataset.item : null,
  text: row.cells[3].textContent,
}));
// A spreadsheet would run a text that begins like a formula.
const cell = (value) => {
  const text = value === null ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
const save = (kind) => {
  const found = records(), columns = ["at_ms", "time", "event", "step", "attempt", "item", "text"];
  const text = kind === "json" ? JSON.stringify(found, null, 1)
    : [columns, ...found.map((each) => columns.map((name) => each[name]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" }));
  link.download = `${($("events-table").dataset.run || "run").replace(/[^\w.-]+/g, "_")}-events.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};
