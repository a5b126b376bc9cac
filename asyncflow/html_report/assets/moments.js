// Writes a time as all displays do, in the reader's own zone: 2024-06-01 14:00:00 UTC+02:00.
function momentText(moment) {
  const two = (number) => String(number).padStart(2, "0");
  const day = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  const clock = `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
  const minutes = -moment.getTimezoneOffset(), ahead = Math.abs(minutes);
  const offset = `${minutes < 0 ? "-" : "+"}${two(Math.floor(ahead / 60))}:${two(ahead % 60)}`;
  return `${day} ${clock} UTC${minutes ? offset : ""}`;
}
