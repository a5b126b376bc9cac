// Follows a run, and cancels or resumes it. The attributes of #live say how.
(function () {
  "use strict";
  const live = document.getElementById("live");
  const word = document.getElementById("live-word");
  const buttons = { cancel: document.getElementById("live-cancel"), resume: document.getElementById("live-resume") };
  const note = document.createElement("span");
  note.id = "live-note";
  note.setAttribute("role", "status");
  live.append(note);

  const SILENCE_MS = 16000; // the server sends a ping every 5 seconds
  const AGAIN_MS = 1000, LONGEST_MS = 5000, ASK_MS = 3000, HIDDEN_MS = 10000;
  const DONE = {
    cancelling: "Stopping: its running steps are cancelled, and clean up first.",
    resumed: "Resumed: completed steps are not run again.",
  };
  const seen = {}; // the parts that the page has
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
    // A server that answers may still be unable to read the run.
    if (trouble) show("disconnected", `the run can't be read: ${trouble}`);
    else if (live.dataset.state !== "live") show("live", "live");
  }

  function update(event) {
    const data = JSON.parse(event.data);
    trouble = data.trouble;
    alive();
    after = event.lastEventId || after;
    if (data.end === "reload") { location.reload(); return; }
    if (data.end === "gone") { close(); show("ended", "gone: the journal no longer has the run"); offer({}); return; }
    const fresh = {};
    for (const [id, html] of Object.entries(data.sections)) {
      if (seen[id] === html) continue;
      seen[id] = html;
      if (id === "live") offer(JSON.parse(html)); else fresh[id] = html;
    }
    if (Object.keys(fresh).length) window.asyncflow.update(fresh);
    if (data.end === "ended") {
      said = "";
      say(can.note || "");
      show("ended", "ended");
      connectQuietlyIn(ASK_MS); // it may be resumed
    }
  }

  async function ask() {
    // Polls: a stream that only says that the run has ended would look like a running one.
    if (document.hidden) { timer = setTimeout(ask, ASK_MS); return; }
    try {
      const answer = await fetch(`${url}?after=${after}`, { cache: "no-store", headers: { accept: "application/json" } });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const data = await answer.json();
      if (data.more) connect();
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
      const data = await answer.json();
      said = answer.ok ? DONE[data.done] : `${data.error}. ${data.detail}`;
      if (answer.ok) button.hidden = true;
      say(said);
      if (answer.ok && !source) connect();
    } catch {
      say("The server does not answer. The request may not have arrived.");
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
  if (done) { // after a redirect from a form
    say(said = done);
    history.replaceState(null, "", location.pathname + location.hash);
  }
  connect();
})();
