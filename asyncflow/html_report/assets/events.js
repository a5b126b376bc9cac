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
