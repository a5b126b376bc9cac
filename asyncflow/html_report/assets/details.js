// The details of the selected step: its tabs, and what only a server has.
const server = $("live")?.dataset ?? {};
const oneBox = $("one"), detailsBox = $("details"), tabsBox = $("tabs");
let tab = "details", loading = null, fetchedAt = 0, stateThen = null;
const ask = async (url, parameters) => {
  const answer = await fetch(`${url}?${new URLSearchParams(parameters)}`, { cache: "no-store", headers: { accept: url === server.notesUrl ? "application/json" : "text/html" } });
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return answer;
};
const articleOf = (number) => (oneBox.dataset.i === number && oneBox.querySelector("article")) || $(`s${number}`);
const TABS = [["details", "tab-details"], ["log", "tab-log"]];
detailsBox.setAttribute("role", "tabpanel");
$("log").setAttribute("role", "tabpanel");
tabsBox.setAttribute("role", "tablist");
tabsBox.setAttribute("aria-label", "Details of the step");
for (const [panel, id] of TABS) { $(id).setAttribute("role", "tab"); $(panel).setAttribute("aria-labelledby", id); }
const showTabs = () => {
  const log = chosen === null ? null : articleOf(chosen)?.querySelector(".log");
  const is = log && tab === "log" ? "log" : "details";
  tabsBox.hidden = !log;
  $("tab-log").textContent = log ? `Log ${(+log.dataset.total).toLocaleString("en")}` : "Log";
  for (const [panel, id] of TABS) {
    $(id).setAttribute("aria-selected", panel === is);
    $(id).tabIndex = panel === is ? 0 : -1;
  }
  $("log").hidden = is !== "log";
  const hasOne = chosen !== null && oneBox.dataset.i === chosen;
  oneBox.hidden = is === "log" || !hasOne;
  detailsBox.hidden = is === "log" || hasOne;
  if (is === "log") showLog(log);
};
const setTab = (name) => { tab = name; showTabs(); remember(); };
for (const [panel, id] of TABS) $(id).addEventListener("click", () => setTab(panel));
tabsBox.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  event.preventDefault(); // or it would select an attempt
  setTab(tab === "log" ? "details" : "log");
  tabsBox.querySelector("[aria-selected=true]").focus();
});

// What the page of a server leaves out: steps of a large run, and the rest of long texts.
const stateOf = (article) => article && `${article.dataset.s} ${all("tr[data-a]", article).length}`;
const clearOne = () => { oneBox.replaceChildren(); delete oneBox.dataset.i; };
const fetchStep = async (number) => {
  if (loading === number) return;
  loading = number;
  fetchedAt = Date.now();
  stateThen = stateOf($(`s${number}`));
  const note = document.createElement("p");
  note.setAttribute("role", "status");
  note.textContent = "loading …";
  if (!articleOf(number)) { oneBox.dataset.i = number; oneBox.replaceChildren(note); }
  let html = "";
  try { html = await (await ask(server.detailsUrl, { step: names[number] })).text(); } catch (error) { note.textContent = `The details can't be loaded: ${error.message}.`; }
  if (loading === number) loading = null;
  if (chosen !== number) return;
  oneBox.dataset.i = number;
  if (html) {
    const open = new Map(all("details", articleOf(number) ?? oneBox).map((each) => [keyOf(each), each.open]));
    oneBox.innerHTML = html;
    oneBox.firstElementChild.removeAttribute("id"); // the page may have it too
    for (const each of all("details", oneBox)) if (open.has(keyOf(each))) each.open = open.get(keyOf(each));
    showTimes(document);
  } else oneBox.replaceChildren(note);
  show(false);
};
// Called when another step is selected, and when the page has changed.
const showDetails = () => {
  if (oneBox.dataset.i !== undefined && oneBox.dataset.i !== chosen) clearOne();
  const inPage = chosen !== null && $(`s${chosen}`);
  // The page knows more now than the step that was loaded whole.
  if (oneBox.dataset.i === chosen && inPage && stateThen && stateThen !== stateOf(inPage)) clearOne();
  if (chosen !== null && !inPage && packed.details?.[chosen]) {
    oneBox.dataset.i = chosen;
    oneBox.innerHTML = packed.details[chosen];
  } else if (server.detailsUrl && chosen !== null && !inPage) {
    const now = rowOf(chosen).dataset.s, had = articleOf(chosen)?.dataset.s;
    const isOld = had !== now || ["running", "pending", "waits", "orphaned"].includes(now);
    if (oneBox.dataset.i !== chosen || (had && isOld && Date.now() - fetchedAt > 2000)) fetchStep(chosen);
  }
  showTabs();
};
addEventListener("click", (event) => {
  if (event.target.closest?.("[data-whole]")) fetchStep(chosen);
});
