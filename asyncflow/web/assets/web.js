// What a page of the server does beside the page of a run: it has the reader's theme, and times in the reader's zone.
try {
  const theme = localStorage.getItem("asyncflow-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* the browser may forbid it */ }
showTimes(document);
