// Copies texts. A page that is a file may not use the clipboard of the browser.
const copyText = async (text) => {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* as browsers did before */ }
  const focus = document.activeElement, area = document.createElement("textarea");
  area.value = text;
  area.className = "sr";
  body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focus?.focus({ preventScroll: true });
  return done;
};
let saying = 0;
const copyFrom = async (button, text) => {
  const done = await copyText(text), word = done ? "copied" : "not copied";
  $("said").textContent = "";
  setTimeout(() => { $("said").textContent = word; }); // or the same word is not announced again
  button.dataset.word ??= button.textContent;
  button.textContent = done ? "Copied" : "Not copied";
  clearTimeout(saying);
  saying = setTimeout(() => { for (const each of all("button[data-word]")) { each.textContent = each.dataset.word; delete each.dataset.word; } }, 1500);
};
// The text of a copy button: the code before it, or what comes after it, or after its heading.
const textBeside = (button) => {
  const code = button.previousElementSibling;
  if (code?.matches("code")) return code.textContent;
  const shown = (button.parentNode.matches("h4") ? button.parentNode : button).nextElementSibling.cloneNode(true);
  for (const each of all(".cut", shown)) each.remove();
  return shown.textContent;
};
addEventListener("click", (event) => {
  const button = event.target.closest?.(".copy");
  if (button) copyFrom(button, textBeside(button));
});
$("copy-link").addEventListener("click", () => copyFrom($("copy-link"), location.href));
