// Writes a time as all displays do, in the reader's own zone: 2024-06-01 14:00:00 UTC+02:00.
function momentText(moment) {
  const two = (number) => String(number).padStart(2, "0");
  const day = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  const clock = `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
  const minutes = -moment.getTimezoneOffset(), ahead = Math.abs(minutes);
  const offset = `${minutes < 0 ? "-" : "+"}${two(Math.floor(ahead / 60))}:${two(ahead % 60)}`;
  return `${day} ${clock} UTC${minutes ? offset : ""}`;
}

function agoText(moment) {
  const seconds = (Date.now() - moment) / 1000;
  const unit = [["d", 86400, 172800], ["h", 3600, 3600], ["min", 60, 60], ["s", 1, 1]].find((each) => seconds >= each[2]);
  return unit ? `${Math.floor(seconds / unit[1])} ${unit[0]} ago` : "just now";
}

// As all displays write a duration: 2 min 11 s.
function soFarText(moment) {
  const seconds = Math.max(Math.floor((Date.now() - moment) / 1000), 0), units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = Math.max(units.findIndex((each) => seconds >= each[1]), 0), at = seconds < 1 ? 3 : first;
  let left = seconds;
  return units.slice(at, at + 2).map(([unit, size]) => { const count = Math.floor(left / size); left -= count * size; return `${count} ${unit}`; }).join(" ");
}

// The title of a time has what its text does not: the exact time, or else that of UTC.
function showTimes(inside) {
  for (const time of inside.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!time.dateTime || Number.isNaN(+moment)) continue;
    if ("soFar" in time.dataset) {
      time.title = `since ${momentText(moment)}`;
      if (document.getElementById("live")) time.textContent = soFarText(moment);
      continue;
    }
    const exact = momentText(moment), isAgo = "ago" in time.dataset, text = isAgo ? agoText(moment) : exact;
    if (isAgo) time.title = exact;
    else if (time.textContent !== text) time.title ||= time.textContent;
    if (time.textContent !== text) time.textContent = text;
  }
}
