// Makes the page of a run interactive. Without it the page shows the same, and does not change.
(() => {
"use strict";
const root = document.documentElement, body = document.body;
const $ = (id) => document.getElementById(id);
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
root.classList.add("js");

// The theme. A browser may not let a file store anything.
const THEMES = ["system", "light", "dark"], THEME_SYMBOLS = { system: "◐", light: "○", dark: "●" };
const stored = (() => { try { return localStorage; } catch { return null; } })();
let theme = "system";
const setTheme = (name) => {
  theme = THEMES.includes(name) ? name : "system";
  if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
  $("theme").textContent = THEME_SYMBOLS[theme];
  $("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
  $("theme").title = $("theme").getAttribute("aria-label");
  try { stored?.setItem("asyncflow-theme", theme); } catch { /* not stored then */ }
};
const nextTheme = () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
try { setTheme(stored?.getItem("asyncflow-theme")); } catch { setTheme("system"); }
