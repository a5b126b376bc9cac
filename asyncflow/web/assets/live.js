// Follows a run that goes on, and has it cancelled or resumed. What it needs stands in #live.
(function () {
  "use strict";
  const live = document.getElementById("live");
  const word = document.getElementById("live-word");
  const buttons = { cancel: document.getElementById("live-cancel"), resume: document.getElementById("live-resume") };
  const note = document.createElement("span");
  note.id = "live-note";
  note.setAttribute("role", "status");
  live.append(note);

  const SILENCE_MS = 16000; // the server says something every 5 seconds
  const AGAIN_MS = 1000, LONGEST_MS = 5000, ASK_MS = 3000, HIDDEN_MS = 10000;
  const DONE = {
    cancelling: "It was asked to stop. Its running steps are cancelled, and end their own clean-up first.",
    resumed: "It goes on. What had succeeded is not run again.",
  };
  const seen = {}; // the parts as they are on the page
  let [url, after] = live.dataset.eventsUrl.split("?after=");
  let source = null, heard = 0, pause = AGAIN_MS, timer = 0, hidden = 0, said = "", can = {}, trouble = null;

  function show(state, text) {
    if (live.dataset.state === state && word.textContent === text) return;
    live.dataset.state = state;
    word.textContent = text;
  }

  function say(text) { note.textContent = text; }

  function offer(now) {
    can = now;
    for (const [name, button] of Object.entries(buttons)) if (button) { button.hidden = !can[name]; button.disabled = false; }
    if (can.note || !said) say(can.note);
  }

  function close() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  }

  function connectIn(ms) {
    close();
    timer = setTimeout(connect, ms);
  }

  function lost() {
    show("disconnected", "disconnected");
    connectIn(pause);
    pause = Math.min(pause * 1.5, LONGEST_MS);
  }

  function connect() {
    close();
    if (document.hidden) return; // a browser has few connections
    heard = Date.now();
    trouble = null;
    source = new EventSource(`${url}?after=${after}`);
    source.addEventListener("ping", alive);
    source.addEventListener("update", update);
    source.addEventListener("error", () => {
      // The browser connects again by itself, with the id of the last event, if it may.
      if (source && source.readyState === EventSource.CLOSED) lost();
      else show("disconnected", "disconnected");
    });
  }

  function alive() {
    heard = Date.now();
    pause = AGAIN_MS;
    // A server that is there may still not be able to read the run.
    if (trouble) show("disconnected", `the run can't be read: ${trouble}`);
    else if (live.dataset.state !== "live") show("live", "live");
  }

  function update(event) {
    const told = JSON.parse(event.data);
    trouble = told.trouble;
    alive();
    after = event.lastEventId || after;
    if (told.end === "reload") { location.reload(); return; }
    if (told.end === "gone") { close(); show("ended", "gone: the journal has forgotten the run"); offer({}); return; }
    const fresh = {};
    for (const [id, html] of Object.entries(told.sections)) {
      if (seen[id] === html) continue;
      seen[id] = html;
      if (id === "live") offer(JSON.parse(html)); else fresh[id] = html;
    }
    if (Object.keys(fresh).length) window.asyncflow.update(fresh);
    if (told.end === "ended") {
      said = "";
      say(can.note || "");
      show("ended", "ended");
      connectQuietlyIn(ASK_MS); // it may be resumed
    }
  }

  async function ask() {
    // A stream that only says that the run has ended is not shown as one that goes on.
    if (document.hidden) { timer = setTimeout(ask, ASK_MS); return; }
    try {
      const answer = await fetch(`${url}?after=${after}`, { cache: "no-store", headers: { accept: "application/json" } });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const told = await answer.json();
      if (told.more) connect();
      else { show("ended", "ended"); timer = setTimeout(ask, ASK_MS); }
    } catch {
      show("disconnected", "disconnected");
      timer = setTimeout(ask, ASK_MS);
    }
  }

  function connectQuietlyIn(ms) {
    close();
    timer = setTimeout(ask, ms);
  }

  async function act(button, where) {
    button.disabled = true;
    said = "";
    say("");
    try {
      const answer = await fetch(where, { method: "POST", headers: { accept: "application/json" } });
      if (answer.status === 401) { location.reload(); return; }
      const told = await answer.json();
      said = answer.ok ? DONE[told.done] : `${told.error}. ${told.detail}`;
      if (answer.ok) button.hidden = true;
      say(said);
      if (answer.ok && !source) connect();
    } catch {
      say("The server does not answer. Nothing may have been done.");
    }
    button.disabled = false;
  }

  for (const [name, button] of Object.entries(buttons)) {
    if (button) button.addEventListener("click", () => act(button, live.dataset[`${name}Url`]));
  }
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(close, HIDDEN_MS);
    else if (!source && live.dataset.state !== "ended") connect();
  });
  setInterval(() => { if (source && Date.now() - heard > SILENCE_MS) lost(); }, 1000);

  const done = DONE[new URLSearchParams(location.search).get("done")];
  if (done) { // a form has led here
    say(said = done);
    history.replaceState(null, "", location.pathname + location.hash);
  }
  connect();
})();
