// The log of the selected step: its lines are those of the page, or all that the server has.
const logLines = $("log-lines"), logLevel = $("log-level"), logText = $("log-text");
const logState = $("log-state"), logFollow = $("log-follow"), logEarlier = $("log-earlier");
const FIRST_LINES = 200, MOST_LINES = 5000;
let logOf = null, logLatest = 0, logLimit = FIRST_LINES, logAsked = 0, isAsking = false;
const isLogFiltered = () => logText.value.trim() !== "" || logLevel.value !== "0";
const atEnd = () => logLines.scrollHeight - logLines.scrollTop - logLines.clientHeight < 24;
const toEnd = () => { logLines.scrollTop = logLines.scrollHeight; };
const listOfLines = () => logLines.firstElementChild;
// Says how many of how many lines are shown.
const sayLines = () => {
  const total = +(articleOf(chosen)?.querySelector(".log")?.dataset.total ?? 0), count = (number) => number.toLocaleString("en");
  const lines = all("li", logLines), shown = lines.filter((each) => !each.hidden).length;
  if (logEarlier) logEarlier.hidden = !(lines.length >= logLimit && logLimit < MOST_LINES);
  const what = isLogFiltered() ? `${count(shown)} ${shown === 1 ? "line matches" : "lines match"}` : shown < total ? `the last ${count(shown)} lines` : `${count(shown)} ${shown === 1 ? "line" : "lines"}`;
  const of = !isLogFiltered() ? shown < total && ` of ${count(total)}` : !server.notesUrl && `, of the ${count(lines.length)} here`;
  const text = what + (of || "");
  if (logState.textContent !== text) logState.textContent = text;
};
const filterLog = () => {
  const text = logText.value.trim().toLowerCase(), level = +logLevel.value;
  for (const line of all("li", logLines)) line.hidden = +line.dataset.n < level || (text && !line.textContent.toLowerCase().includes(text));
  sayLines();
};
const takeLog = (log) => {
  const list = log.querySelector(".lines").cloneNode(true);
  logLines.replaceChildren(list);
  filterLog();
  toEnd();
};
const askLog = async (more) => {
  const asked = ++logAsked, step = chosen;
  isAsking = true;
  const parameters = { step: names[step], kind: "log", html: 1, ...(more ? { after: logLatest, limit: MOST_LINES } : { newest: 1, limit: logLimit }) };
  if (logText.value.trim()) parameters.text = logText.value.trim();
  if (logLevel.value !== "0") parameters.level = logLevel.value;
  try {
    const { html, last } = await (await ask(server.notesUrl, parameters)).json();
    if (asked !== logAsked || step !== chosen) return;
    const wasAtEnd = atEnd(), height = logLines.scrollHeight, top = logLines.scrollTop;
    const lines = parse(html)[0].children;
    if (more) listOfLines().append(...lines); else listOfLines().replaceChildren(...lines);
    while (listOfLines().childElementCount > MOST_LINES) listOfLines().firstElementChild.remove();
    logLimit = Math.max(logLimit, listOfLines().childElementCount);
    logLatest = last;
    sayLines();
    if (logFollow.checked && (wasAtEnd || !more && logLimit === FIRST_LINES)) toEnd();
    else if (!more) logLines.scrollTop = top + logLines.scrollHeight - height;
  } catch (error) {
    if (asked === logAsked) logState.textContent = `The log can't be loaded: ${error.message}.`;
  } finally {
    if (asked === logAsked) isAsking = false;
  }
};
// Called when a log is to be shown, and when it may have more lines.
const showLog = (log) => {
  if (logOf !== chosen) {
    [logOf, logLimit, logLatest] = [chosen, FIRST_LINES, 0];
    takeLog(log);
    if (server.notesUrl) askLog(false);
  } else if (server.notesUrl) {
    if (+log.dataset.latest > logLatest && !isAsking) askLog(true);
  }
};
let logTyping = 0;
const refilter = () => {
  if (!server.notesUrl) { filterLog(); return; }
  clearTimeout(logTyping);
  logTyping = setTimeout(() => { logLimit = FIRST_LINES; askLog(false); }, 200);
};
logText.addEventListener("input", refilter);
logLevel.addEventListener("change", refilter);
logEarlier?.addEventListener("click", () => { logLimit = Math.min(logLimit + 1000, MOST_LINES); askLog(false); });
logFollow?.addEventListener("change", () => { if (logFollow.checked) toEnd(); });
logLines.addEventListener("scroll", () => { if (logFollow && !logLines.parentNode.hidden) logFollow.checked = atEnd(); });
$("log-copy").addEventListener("click", () => copyFrom($("log-copy"), all("li:not([hidden])", logLines).map((line) => [...line.children].filter((each) => !each.matches("details")).map((each) => each.textContent).join(" ") + (line.querySelector("pre") ? `\n${line.querySelector("pre").textContent}` : "")).join("\n")));
