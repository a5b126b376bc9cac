// Follows a run, cancels it, resumes it or reruns it, and sends what its steps wait for. The attributes of #live say how.
(function () {
  "use strict";
  const live = document.getElementById("live");
  const word = document.getElementById("live-word");
  const buttons = { cancel: document.getElementById("live-cancel"), resume: document.getElementById("live-resume"), rerun: document.getElementById("live-rerun") };
  const note = document.createElement("span");
  note.id = "live-note";
  note.setAttribute("role", "status");
  note.tabIndex = -1;
  const question = document.createElement("dialog");
  question.id = "live-question";
  question.setAttribute("aria-labelledby", "live-question-title");
  question.setAttribute("aria-describedby", "live-question-text");
  question.innerHTML = `<h2 id="live-question-title">Cancel this run?</h2>
    <p id="live-question-text">Its running steps are cancelled, and clean up first. A cancelled run can be resumed.</p>
    <form method="dialog"><button>Keep it running</button> <button type="button" id="live-yes">Yes, cancel it</button></form>`;
  const form = document.createElement("dialog");
  form.id = "live-form";
  form.setAttribute("aria-labelledby", "live-form-title");
  form.innerHTML = `<h2 id="live-form-title">Rerun</h2>
    <p>A new run reuses the results of this one that are still valid. This run stays as it is.</p>
    <form method="dialog"><p><label for="live-from">What runs again</label><select id="live-from"></select></p>
    <div id="live-inputs"></div><div id="live-preview" role="status"></div><p id="live-refused" role="alert"></p>
    <button>Close</button> <button type="button" id="live-start">Rerun</button></form>`;
  const sure = document.createElement("dialog");
  sure.id = "live-answer";
  sure.setAttribute("aria-labelledby", "live-answer-title");
  sure.innerHTML = `<h2 id="live-answer-title">Send this answer?</h2><p id="live-answer-text"></p>
    <p>The first answer counts. It can't be changed.</p>
    <form method="dialog"><p><label for="live-by">Your name</label><input id="live-by" type="text" maxlength="200" autocomplete="name"></p>
    <p><label for="live-words">Note</label><input id="live-words" type="text" maxlength="10000" autocomplete="off"></p>
    <p class="dim">Both are stored and shown with the answer, as they are.</p>
    <button type="button" id="live-back">Back</button> <button id="live-send">Send the answer</button></form>`;
  live.append(note, question, form, sure);
  let deliver = null; // sends the answer that was confirmed
  const signals = new Map(); // the form of each step that waits
  const from = document.getElementById("live-from"), start = document.getElementById("live-start");
  const fields = document.getElementById("live-inputs"), refusal = document.getElementById("live-refused");
  const planned = document.getElementById("live-preview");
  const yes = document.getElementById("live-yes");

  const SILENCE_MS = 16000; // the server sends a ping every 5 seconds
  const AGAIN_MS = 1000, LONGEST_MS = 5000, ASK_MS = 3000, ANSWER_MS = 10000, HIDDEN_MS = 10000, TYPING_MS = 300;
  const DONE = {
    cancelling: "Stopping: its running steps are cancelled, and clean up first.",
    "cancelled-later": "Cancelled: no process runs it now, and the next to take it up ends it.",
    cancelled: "Cancelled.",
    started: "Started.",
    resumed: "Resumed: completed steps are not run again.",
    waiting: "It waits on: nothing has come, and its code is the same.",
  };
  const partsUrl = live.dataset.partsUrl;
  const have = new Map(live.dataset.have.trim().split(" ").map((each) => each.split(":"))); // the digest of each part of the page
  let [url, after] = live.dataset.eventsUrl.split("?after=");
  let source = null, heard = 0, pause = AGAIN_MS, timer = 0, hidden = 0, said = "", can = {}, trouble = null;
  let asked = 0, typing = 0; // of the preview in the dialog
  let isFresh = false, isActing = false, isAsking = false, isWanted = false;

  function show(state, text) {
    if (live.dataset.state === state && word.textContent === text) return;
    live.dataset.state = state;
    word.textContent = text;
    enable();
  }

  function say(text) { note.textContent = text; }

  // Without a connection the page may show a run that is no longer like that.
  function enable() {
    const isOff = isActing || !["live", "orphaned", "waiting", "ended"].includes(live.dataset.state);
    for (const button of [...Object.values(buttons), yes, start, ...document.querySelectorAll(".signal button"), document.getElementById("live-send")]) button.disabled = isOff;
  }

  function offer(now) {
    can = now;
    for (const [name, button] of Object.entries(buttons)) button.hidden = !can[name];
    buttons.resume.textContent = `${can.queued ? "Start" : "Resume"} the run${can.preview ? ` (${can.preview})` : ""}`;
    if (!can.cancel) question.close();
    if (can.note || !said) say(can.note);
    const waits = can.signals || {};
    for (const [name, each] of signals) if (!Object.hasOwn(waits, name)) {
      if (each.contains(document.activeElement)) note.focus();
      each.remove();
      signals.delete(name);
    }
    for (const [name, field] of Object.entries(waits)) {
      const old = signals.get(name), has = field.kind === "answered";
      // A form that is there stays, because someone may be writing in it, until an answer has come from elsewhere, or the run
      // has refused the one that the server had.
      if (old && has && old.dataset.kind === "answered") { old.dataset.known = "answered"; continue; }
      if (old && !has && old.dataset.known !== "answered") continue;
      const asks = signalForm(name, field), hadFocus = old?.contains(document.activeElement);
      if (old) old.replaceWith(asks);
      signals.set(name, asks);
      place();
      if (hadFocus) asks.querySelector("[role=status]").focus();
    }
  }

  function close() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
    forget();
  }

  // What came last through a connection that was lost.
  function forget() {
    isFresh = false;
    trouble = null;
  }

  function lost() {
    close();
    show("disconnected", "disconnected");
    timer = setTimeout(connect, pause);
    pause = Math.min(pause * 1.5, LONGEST_MS);
  }

  function connect() {
    close();
    if (document.hidden) return; // a browser has few connections
    heard = Date.now();
    source = new EventSource(`${url}?after=${after}`);
    source.addEventListener("ping", alive);
    source.addEventListener("changed", () => { heard = Date.now(); ask(); });
    source.addEventListener("error", () => {
      const isRefused = source?.readyState === EventSource.CLOSED;
      forget();
      show("disconnected", "disconnected");
      // The browser connects again by itself, if it may. A script can't see why a stream was refused.
      if (isRefused) { close(); ask(); }
    });
  }

  function alive() {
    heard = Date.now();
    pause = AGAIN_MS;
    if (!isFresh) return; // the page does not know yet what has changed
    // A server that answers may still be unable to read the run.
    if (trouble) show("disconnected", `the run can't be read: ${trouble}`);
    else if (can.orphaned) show("orphaned", "orphaned: its process is gone");
    else if (can.waiting) show("waiting", can.queued ? "waiting to start" : "waiting for a signal");
    else show("live", "live");
  }

  async function parts() {
    const where = `${partsUrl}&after=${after}&have=${[...have].map((each) => each.join(":")).join(",")}`, headers = { accept: "application/json" };
    let answer = null;
    try {
      answer = await fetch(where, { cache: "no-store", headers, signal: AbortSignal.timeout(ANSWER_MS) });
      return [answer, await answer.json()];
    } catch { return [answer, null]; } // no server answers, or none of ours
  }

  // Asks for the parts that the page does not have. One request at a time: what changes meanwhile is asked for after it.
  async function ask() {
    clearTimeout(timer);
    if (document.hidden && !source) { askIn(ASK_MS); return; }
    isWanted = true;
    if (isAsking) return;
    isAsking = true;
    try {
      while (isWanted) {
        isWanted = false;
        receive(...await parts());
      }
    } finally { isAsking = false; }
  }

  function askIn(ms) {
    clearTimeout(timer);
    timer = setTimeout(ask, ms);
  }

  function receive(answer, data) {
    if (answer?.status === 401) { location.reload(); return; }
    if (!data) { lost(); return; }
    if (answer.ok) { update(data); return; }
    if (answer.status === 404) { close(); show("ended", "gone: the journal no longer has the run"); offer({}); return; }
    [isFresh, trouble] = [true, data.detail];
    alive();
    askIn(ASK_MS);
  }

  function update({ position, end, sections: { live: actions, ...parts } }) {
    [isFresh, trouble, after] = [true, null, position];
    if (end === "reload") { location.reload(); return; }
    if (actions) { have.set("live", actions[0]); offer(actions[1]); }
    for (const [id, [digest]] of Object.entries(parts)) have.set(id, digest);
    const fresh = Object.fromEntries(Object.entries(parts).map(([id, [, html]]) => [id, html]));
    const focus = document.activeElement?.closest(".signal") && document.activeElement;
    if (Object.keys(fresh).length) window.asyncflow.update(fresh).then(() => { place(); focus?.focus({ preventScroll: true }); });
    if (end === "ended") {
      const wasEnded = live.dataset.state === "ended";
      close();
      if (!wasEnded) { said = ""; say(can.note || ""); }
      show("ended", "ended");
      askIn(ASK_MS); // it may be resumed; a stream that says nothing else would look like a running one
    } else if (source) {
      alive();
    } else if (live.dataset.state === "ended") {
      connect();
    } else {
      lost();
    }
  }

  async function act(button, where) {
    if (document.activeElement === button) note.focus(); // a button that is off would lose it to the page
    isActing = true;
    enable();
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
    isActing = false;
    enable();
  }

  const element = (tag, text, attributes) => Object.assign(document.createElement(tag), { textContent: text }, attributes);

  // The steps and their statuses are those of the table; the server says which inputs there are.
  function fill() {
    const rows = window.asyncflow.stepRows();
    const isWhole = rows.every((row) => ["success", "skipped"].includes(row.dataset.s));
    const steps = element("optgroup", "", { label: "One step, and what depends on it" });
    steps.append(...rows.map((row) => row.querySelector("th").textContent).map((name) => element("option", name, { value: `=${name}` })));
    from.replaceChildren(
      element("option", "Only what failed or no longer holds", { value: "", selected: !isWhole }),
      element("option", "All steps", { value: "*", selected: isWhole }), steps);
    fields.replaceChildren();
    if (can.rerun.inputs.length) fields.append(element("p", "New values of inputs, as JSON or text. Leave empty what stays as it is.", { className: "dim" }));
    can.rerun.inputs.forEach((name, at) => {
      const row = element("p", ""), id = `live-input-${at}`;
      const field = element("input", "", { id, name, type: "text", autocomplete: "off", spellcheck: false });
      row.append(element("label", name, { htmlFor: id }), field);
      fields.append(row);
    });
    const secret = can.rerun.secret.join(", ");
    if (secret) fields.append(element("p", `Secret, so not to be given here: ${secret}. Use asyncflow rerun, or Python.`, { className: "dim" }));
    refusal.textContent = "";
  }

  function chosen() {
    const wanted = { all: from.value === "*", from: from.value.startsWith("=") ? [from.value.slice(1)] : [], inputs: {} };
    for (const { name, value } of fields.querySelectorAll("input")) {
      if (value) try { wanted.inputs[name] = JSON.parse(value); } catch { wanted.inputs[name] = value; }
    }
    return wanted;
  }

  const post = (where, body) => fetch(where, {
    method: "POST", headers: { accept: "application/json", "content-type": "application/json" }, body,
  });

  // What the rerun would do as it is chosen now. Only the answer to the latest choice is shown.
  async function preview() {
    const mine = ++asked;
    let answer = null, data = null;
    try {
      answer = await post(live.dataset.rerunUrl, JSON.stringify({ ...chosen(), preview: true }));
      data = await answer.json();
    } catch { /* the rerun itself says so */ }
    if (mine !== asked) return;
    planned.replaceChildren();
    refusal.textContent = data && !answer.ok ? `${data.error}. ${data.detail}` : "";
    if (!data?.steps) return;
    const list = element("ul", "");
    list.append(...data.steps.map(({ name, decision, words }) => {
      const line = element("li", "", { className: decision });
      line.append(element("span", decision, { className: "tag" }), " ", element("b", name), words && ` ${words}`);
      return line;
    }));
    const more = data.left_out ? element("p", `and ${data.left_out.toLocaleString("en")} more steps`, { className: "dim" }) : "";
    planned.append(element("p", data.runs_nothing ? `Nothing would run: ${data.counts}` : data.counts), list, more);
  }

  function previewSoon() {
    clearTimeout(typing);
    typing = setTimeout(preview, TYPING_MS);
  }

  async function rerun() {
    isActing = true;
    enable();
    refusal.textContent = "";
    try {
      const answer = await post(live.dataset.rerunUrl, JSON.stringify(chosen()));
      if (answer.status === 401) { location.reload(); return; }
      const data = await answer.json();
      if (data.url) { location.href = data.url; return; }
      refusal.textContent = answer.ok ? "Nothing would run, so there is no new run. Choose what runs again, or another input." : `${data.error}. ${data.detail}`;
    } catch {
      refusal.textContent = "The server does not answer. The request may not have arrived.";
    }
    isActing = false;
    enable();
  }

  const LABELS = { boolean: "Answer", choice: "Choice", integer: "Whole number", number: "Number", string: "Text", json: "JSON" };
  const YES_NO = [["true", "Yes"], ["false", "No"]];

  // The control of a value, and `jsonOf` reads it: a number of a script has 53 bits, so what was written is sent.
  function control({ kind, choices, example = "", nullable = false, required: isRequired = true, default: first }) {
    const required = isRequired && !nullable; // empty, it is null
    const tag = { boolean: "select", choice: "select", json: "textarea" }[kind] || "input";
    const field = element(tag, "", {});
    field.dataset.kind = kind;
    if (tag === "input") Object.assign(field, { type: "text", placeholder: example });
    if (["integer", "number"].includes(kind)) Object.assign(field, { type: "number", step: kind === "integer" ? "1" : "any", required });
    if (kind === "json" && required) field.required = true;
    const known = kind === "boolean" ? YES_NO : (choices || []).map((value) => [value, value.startsWith('"') ? JSON.parse(value) : value]);
    if (tag === "select") {
      field.append(element("option", "", { value: "" })); // nothing is chosen for a person
      field.append(...known.map(([value, text]) => element("option", text, { value })));
      field.required = required;
    }
    if (first !== undefined && first !== "null") field.value = kind === "string" ? JSON.parse(first) : first;
    return field;
  }

  function jsonOf(field) {
    const text = field.value;
    if (field.dataset.kind === "json") JSON.parse(text);
    const written = { string: JSON.stringify, number: (number) => String(Number(number)), integer: (number) => number.replace(/^(-?)0+(?=\d)/, "$1") }[field.dataset.kind];
    return written ? written(text) : text;
  }

  // A form of its own for each type; `field` says which.
  function signalForm(name, field) {
    const { kind, fields } = field;
    const asks = element("form", "", { className: "signal" }), group = element("fieldset", ""), answer = element("p", "", { tabIndex: -1 });
    answer.setAttribute("role", "status");
    group.append(element("legend", name));
    let read = (event) => [event.submitter.value, event.submitter.textContent];
    if (kind === "answered") {
      answer.textContent = `It has an answer. ${can.next}`;
    } else if (kind === "boolean") {
      group.append(element("button", "Yes", { value: "true" }), " ", element("button", "No", { value: "false" }));
    } else if (kind === "object") {
      const controls = fields.map((each) => {
        const one = control(each), row = element("p", "", { className: "field" }), label = element("label", "");
        label.append(element("span", each.name), one);
        if (each.help) label.append(element("span", each.help, { className: "dim" }));
        row.append(label);
        group.append(row);
        return [each, one];
      });
      group.append(element("button", "Send …"));
      read = () => {
        const parts = [];
        for (const [{ name: key, required, nullable, default: first }, one] of controls) {
          // A default that was deleted is not what a person answers.
          const empty = nullable ? "null" : one.dataset.kind === "string" ? '""' : null;
          const isLeftOut = one.value === "" && !required && (first === undefined || first === "null" || !empty);
          if (!isLeftOut) parts.push(`${JSON.stringify(key)}: ${one.value === "" ? empty : jsonOf(one)}`);
        }
        const json = `{${parts.join(", ")}}`;
        return [json, json];
      };
    } else {
      const one = control(field), labelled = element("label", `${LABELS[kind]} `);
      if (kind === "json") one.required = false;
      labelled.append(one);
      group.append(labelled, " ", element("button", "Send …"));
      read = () => [jsonOf(one), one.selectedOptions?.[0].textContent ?? one.value];
    }
    asks.dataset.kind = asks.dataset.known = kind;
    asks.append(group, answer);
    asks.addEventListener("keydown", (event) => event.stopPropagation());
    asks.addEventListener("submit", (event) => {
      event.preventDefault();
      try {
        confirmed(name, ...read(event), answer);
      } catch (error) {
        answer.textContent = `This is not JSON: ${error.message}`;
      }
    });
    return asks;
  }

  // The first answer counts, so a person sees it once more.
  function confirmed(name, json, shown, answer) {
    const text = document.getElementById("live-answer-text");
    text.replaceChildren(element("b", name), ": ", element("span", shown));
    deliver = () => { send(name, json, answer); };
    sure.showModal();
    document.getElementById("live-send").focus();
  }

  async function send(name, json, answer) {
    answer.focus(); // a button that is off would lose it to the page
    isActing = true;
    enable();
    const by = document.getElementById("live-by").value.trim(), words = document.getElementById("live-words");
    const sender = `, "sent_by": ${JSON.stringify(by || null)}, "note": ${JSON.stringify(words.value)}`;
    try {
      const sent = await post(live.dataset.signalUrl, `{"name": ${JSON.stringify(name)}, "value": ${json}${sender}}`);
      if (sent.status === 401) { location.reload(); return; }
      const data = await sent.json();
      answer.textContent = sent.ok ? `Stored. ${data.continues ? "The run goes on." : can.next}` : `${data.error}: ${data.detail}`;
      if (sent.ok) { answer.parentNode.dataset.kind = "answered"; words.value = ""; }
    } catch {
      answer.textContent = "The server does not answer. The value may not have arrived.";
    }
    isActing = false;
    enable();
  }

  // The panel of a step that waits has a place for its form, and an update of the panel makes another one.
  function place() {
    for (const [name, asks] of signals) {
      const slot = document.querySelector(`#waiting [data-signal="${can.places?.[name]}"]`) ?? live;
      if (asks.parentNode === slot && asks.isConnected) continue;
      const focus = asks.contains(document.activeElement) ? document.activeElement : null;
      slot.append(asks);
      focus?.focus({ preventScroll: true });
    }
  }

  sure.addEventListener("keydown", (event) => event.stopPropagation());
  sure.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); sure.close(); deliver(); });
  document.getElementById("live-back").addEventListener("click", () => sure.close());
  buttons.rerun.addEventListener("click", () => { fill(); planned.replaceChildren(); form.showModal(); preview(); });
  from.addEventListener("change", preview);
  fields.addEventListener("input", previewSoon);
  start.addEventListener("click", rerun);
  form.addEventListener("keydown", (event) => event.stopPropagation());
  buttons.cancel.addEventListener("click", () => question.showModal());
  yes.addEventListener("click", () => { question.close(); act(buttons.cancel, live.dataset.cancelUrl); });
  buttons.resume.addEventListener("click", () => act(buttons.resume, live.dataset.resumeUrl));
  question.addEventListener("keydown", (event) => event.stopPropagation()); // the page has keys of its own
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(() => { if (source) close(); }, HIDDEN_MS); // a poll just pauses
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
