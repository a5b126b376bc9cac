// Shows times in the reader's own zone, and how long ago they were.
function showTimes(inside) {
  const now = Date.now() / 1000;
  const units = [["d", 86400, 172800], ["h", 3600, 3600], ["min", 60, 60], ["s", 1, 1]];
  for (const element of inside.querySelectorAll("[data-time]")) {
    const at = Number(element.dataset.time), exact = momentText(new Date(at * 1000));
    if (element.dataset.form === "exact") { element.textContent = exact; continue; }
    const unit = units.find((each) => now - at >= each[2]);
    element.textContent = unit ? `${Math.floor((now - at) / unit[1])} ${unit[0]} ago` : "just now";
    element.title = exact;
  }
}

try {
  const theme = localStorage.getItem("asyncflow-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* the browser may forbid it */ }
showTimes(document);
