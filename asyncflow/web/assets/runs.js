// Keeps the list of runs up to date.
(function () {
  "use strict";
  const EVERY_MS = 2000, AGAIN_MS = 1000;
  const live = document.getElementById("live");
  const word = document.getElementById("live-word");
  const filters = document.getElementById("filters");
  const runs = document.getElementById("runs");
  let latest = null;
  let asking = false;
  let timer = 0;

  function show(state, text) {
    if (live.dataset.state === state) return;
    live.dataset.state = state;
    word.textContent = text;
  }

  function replace(text) {
    if (text === latest) return;
    latest = text;
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("runs");
    if (!fresh) return;
    const focused = runs.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    runs.replaceChildren(...fresh.childNodes);
    showTimes(runs);
    if (focused === null) return;
    for (const link of runs.querySelectorAll("#list a, .pages a, .chips a")) {
      if (link.getAttribute("href") === focused) { link.focus(); return; }
    }
  }

  async function refresh() {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      // The nonce changes with each response.
      replace((await answer.text()).replace(/ nonce="[^"]*"/g, ""));
      show("live", "live");
    } catch {
      show("disconnected", "disconnected: the server does not answer");
    } finally {
      asking = false;
      timer = setTimeout(refresh, live.dataset.state === "live" ? EVERY_MS : AGAIN_MS);
    }
  }

  for (const select of filters.querySelectorAll("select")) {
    select.addEventListener("change", () => filters.requestSubmit());
  }
  document.addEventListener("visibilitychange", refresh);
  show("live", "live");
  timer = setTimeout(refresh, EVERY_MS);
})();
