// Words for figures, and the head of the page.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const count = data.instants.length;
const state = { a: 0, b: count - 1, zoom: [], hidden: new Set() };

// ---- small things

function el(name, properties, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key === "style") Object.assign(element.style, value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  let size = Math.abs(value);
  let unit = 0;
  while (size >= 1024 && unit < UNITS.length - 1) { size /= 1024; unit += 1; }
  const text = unit === 0 ? String(Math.round(size)) : size.toFixed(size < 10 ? 2 : 1);
  return `${value < 0 ? "−" : ""}${text} ${UNITS[unit]}`;
}
const signed = (value) => (value > 0 ? `+${bytes(value)}` : bytes(value));
const whole = (value) => value.toLocaleString("en").replace(/^-/, "−");
function span(seconds) {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
const at = (instant) => span(data.instants[instant].elapsed_s);
const colour = (key) => getComputedStyle(document.documentElement).getPropertyValue(`--${key}`).trim() || "#888";
const ratio = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "");

// ---- head

const tracee = data.tracee;
const container = tracee.container;
$("subject").textContent = `${tracee.comm} (pid ${tracee.pid})${container && container.name ? ` in ${container.name}` : ""}`;
document.title = `memtrace: ${tracee.comm}`;
const last = data.last;
$("facts").textContent = [
  new Date(data.armed_at_unix_ns / 1e6).toISOString().replace("T", " ").slice(0, 19) + " UTC",
  count ? `${span(data.instants[count - 1].elapsed_s)}, ${count} snapshot${count === 1 ? "" : "s"}` : "no snapshot",
  tracee.executable,
  tracee.go_version,
  `Linux ${data.host.kernel_release}`,
].filter(Boolean).join(" · ");
$("made").textContent = `Made by memtrace ${data.memtrace}. Bytes are binary (1 MiB = 1,048,576 B).`;

const dark = window.matchMedia("(prefers-color-scheme: dark)");
document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  drawChart();
  drawInstants();
});
