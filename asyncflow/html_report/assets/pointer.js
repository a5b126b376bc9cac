// Zooming and panning, and what a bar says, by the pointer.
const zoomBy = (of, way) => {
  const factor = way === "in" ? 1.6 : 1 / 1.6;
  if (of === "dag") {
    if (way === "fit") { zooms.dag = fitDag(); applyDag(); } else zoomDag(factor);
  } else if (way === "fit") { zooms.gantt = 1; applyGantt(); } else zoomGantt(factor);
  remember();
};
addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  const box = event.target.closest?.("#gantt-scroll, #dag-scroll");
  if (!box) return;
  event.preventDefault();
  const factor = Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 120) / 300);
  if (box.id === "dag-scroll") zoomDag(factor, event); else zoomGantt(factor, event.clientX);
}, { passive: false });

// Dragging pans.
let drag = null, dragged = false;
addEventListener("pointerdown", (event) => {
  dragged = false;
  const box = event.target.closest?.("#gantt-scroll, #dag-scroll");
  if (!box || event.button || event.pointerType === "touch" || event.target.closest("summary, .label, .minimap")) return;
  const edge = box.getBoundingClientRect();
  if (event.clientX > edge.left + box.clientWidth || event.clientY > edge.top + box.clientHeight) return; // a scroll bar
  drag = { box, x: event.clientX, y: event.clientY, left: box.scrollLeft, top: box.scrollTop };
});
addEventListener("pointermove", (event) => {
  if (!drag) return;
  const { box, x, y, left, top } = drag;
  if (!dragged && Math.hypot(event.clientX - x, event.clientY - y) < 5) return;
  dragged = true;
  body.classList.add("grabbing");
  box.scrollLeft = left - event.clientX + x;
  box.scrollTop = top - event.clientY + y;
});
addEventListener("pointerup", () => { drag = null; body.classList.remove("grabbing"); setTimeout(() => { dragged = false; }); });
addEventListener("pointercancel", () => { drag = null; body.classList.remove("grabbing"); });
addEventListener("dragstart", (event) => { if (event.target.closest?.("#gantt-scroll, #dag-scroll")) event.preventDefault(); });

// Shows the title of a bar without the delay of the browser.
const tip = $("tip");
addEventListener("pointerover", (event) => {
  let over = event.target.closest?.(".bar, use, .marks g");
  if (over?.matches("use[data-a]")) over = over.parentNode.querySelector(`.bar:is(.attempt, .items)[data-a="${over.dataset.a}"]`);
  if (!over) { tip.hidden = true; return; }
  const title = over.querySelector(":scope > title");
  if (title) { over.dataset.tip = title.textContent; title.remove(); }
  tip.textContent = over.dataset.tip ?? "";
  tip.hidden = !tip.textContent;
});
addEventListener("pointermove", (event) => {
  if (tip.hidden) return;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
});
