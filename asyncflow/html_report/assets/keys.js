// The keyboard.
const help = $("help");
const KEYS = {
  ArrowDown: () => move(1), ArrowUp: () => move(-1), ArrowRight: () => moveAttempt(1), ArrowLeft: () => moveAttempt(-1),
  "+": () => zoomGantt(1.6), "=": () => zoomGantt(1.6), "-": () => zoomGantt(1 / 1.6), 0: () => zoomBy("gantt", "fit"),
  t: nextTheme, "?": () => help.showModal(),
  "/": () => { $("bar").scrollIntoView({ block: "nearest" }); find.focus(); find.select(); },
};
const clear = () => {
  if (find.value || findStatus.value || only.size) { find.value = findStatus.value = ""; setOnly([]); filterSteps(); remember(); if (chosen !== null) reveal(); } else choose(null);
  document.activeElement?.matches("input, select") && document.activeElement.blur();
};
addEventListener("keydown", (event) => {
  if (help.open || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { clear(); return; }
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "ArrowDown" && event.target === find) { event.preventDefault(); find.blur(); move(1); }
    return;
  }
  // Arrows scroll what has its own scroll bar.
  if (event.key.startsWith("Arrow") && (event.shiftKey || event.target.matches("pre, #steps .scroll, #events .scroll, #log-lines, .attached .scroll"))) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});
$("help-open").addEventListener("click", () => help.showModal());
$("theme").addEventListener("click", nextTheme);
$("panel-close").addEventListener("click", () => choose(null));
$("panel-next").addEventListener("click", () => move(1));
$("panel-previous").addEventListener("click", () => move(-1));
