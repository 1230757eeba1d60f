"use strict";
// Shared by the scripts below: the data, how values are written, and which runs are shown. Data enters the page as text only.
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const NORMS = { linf: "L∞", l2: "L2", l1: "L1", l0: "L0" };
const DASHES = ["", "7 4", "2 3", "10 3 2 3"];
const COLOURS = 7;
const FIRST_SHOWN = 8;
const PAPER = 960; // pixels across a landscape page, A4 or letter, within its margins
const FIRST_NOTES = 6; // of the notes before the table; the most serious come first

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const at = (id) => document.getElementById(id);
const column = (attributes, ...children) => el("th", { scope: "col", ...attributes }, ...children);
const table = (columns, rows) => el("table", {}, el("thead", {}, el("tr", {}, ...columns)), el("tbody", {}, ...rows));

// A name may be long or run right to left: it is isolated from the text around it.
const nameOf = (run) => el("bdi", { class: "name", title: run.name }, run.name);

const grouped = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 1 }).replace(/,/g, "\u202f");
// As many digits as the number of examples justifies.
const percent = (share, n) => (100 * share).toFixed(n >= 5000 ? 2 : 1);
const short = (x) => String(Number(x.toPrecision(4)));
// A budget as people write it, 8/255 or 0.3: as `budget_text` in robustlit/checks.py.
function budgetText(eps) {
  const levels = Math.round(510 * eps) / 2;
  const isShort = Math.abs(eps - Number(eps.toPrecision(3))) <= 1e-6 * eps;
  return !isShort && levels && Math.abs(255 * eps - levels) <= 1e-5 * levels ? `${levels}/255` : short(eps);
}
const plural = (n, one, many) => `${grouped(n)} ${n === 1 ? one : many || one + "s"}`;

function wilson(correct, n) {
  const z = 1.959963984540054, p = correct / n;
  const centre = (p + z * z / (2 * n)) / (1 + z * z / n);
  const half = z / (1 + z * z / n) * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return [correct === 0 ? 0 : centre - half, correct === n ? 1 : centre + half];
}
const interval = (correct, n) => `[${wilson(correct, n).map((bound) => percent(bound, n)).join(", ")}]`;

const clipped = (name, most) => {
  const letters = [...name];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : name;
};
const shortName = (run) => el("bdi", { title: run.name }, clipped(run.name, 80));

// The runs shown. Each has a slot, which sets its colour and dash, until it is hidden.
const shown = new Map();
function show(run, on) {
  if (!on) return shown.delete(run);
  if (shown.has(run)) return true;
  const taken = new Set(shown.values());
  let slot = 0;
  while (taken.has(slot)) slot += 1;
  return shown.set(run, slot);
}
const ink = (slot) => `var(--c${slot % COLOURS})`;
const dash = (slot) => DASHES[Math.floor(slot / COLOURS) % DASHES.length];
const shownRuns = () => RUNS.map((_, k) => k).filter((k) => shown.has(k));

// A figure's status is marked by a sign and words, not by colour alone. None is green: a believable figure may be 0 %. A run
// with an overstated figure does not lead a ranking.
const CHECKS = { FAIL: "✕", PASS: "✓", INCONCLUSIVE: "?" };
const MARKS = { overstated: "✕", believable: "•", undecided: "?" };
const doubted = (run) => run.verdict !== null && run.verdict.status === "overstated";
const notRobust = ({ status, robust }) => status === "believable" && robust !== null && robust[0] === 0;
const badge = ({ status }) => el("span", { class: `badge ${status}` }, `${MARKS[status]} ${status}`);
const judged = (verdict) => {
  if (verdict.robust === null) return "";
  const [correct, n] = verdict.robust, start = notRobust(verdict) ? "the net is not robust: " : "";
  return `${start}${percent(correct / n, n)} % ${interval(correct, n)} of ${grouped(n)} robust`;
};
const doubt = (run) => (doubted(run) ? el("small", { class: "flag" }, "✕ figure overstated") : null);
const ranked = () => {
  const share = (k) => (RUNS[k].worst ? RUNS[k].worst.correct / RUNS[k].worst.n : -1);
  return RUNS.map((_, k) => k).filter((k) => RUNS[k].attacked)
    .sort((a, b) => doubted(RUNS[a]) - doubted(RUNS[b]) || share(b) - share(a));
};

const redraws = [];
const redraw = () => redraws.forEach((f) => f());

// A set of examples as one byte each.
function bits(mask) {
  const bytes = atob(mask);
  return Uint8Array.from({ length: DATA.index.length }, (_, k) => (bytes.charCodeAt(k >> 3) >> (k & 7)) & 1);
}

// A table that is wider than the paper is scaled down.
window.addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  for (const wide of document.querySelectorAll(".wide table")) {
    wide.classList.add("measured");
    wide.style.setProperty("--fit", Math.min(1, PAPER / wide.offsetWidth));
    wide.classList.remove("measured");
  }
});
window.addEventListener("afterprint", () => document.documentElement.classList.remove("printing"));

// Heading and theme.
at("title").textContent = `Robustness of ${plural(RUNS.length, "run")}`;
document.title = `${plural(RUNS.length, "run")} compared: robustlit`;
const extent = DATA.split === null ? plural(DATA.index.length, "test image") :
  `${grouped(DATA.index.length)} of ${grouped(DATA.split)} test images, chosen class by class`;
at("subtitle").textContent =
  `${DATA.data || "unnamed data"}, ${extent}. Brackets and bands are Wilson 95 % ` +
  `intervals. Distances are in pixel units (pixels in [0, 1]). Written by robustlit ${DATA.version}.`;
if (DATA.caveats.length) {
  at("caveats").hidden = false;
  const listed = (texts) => el("ul", {}, ...texts.map((text) => el("li", {}, text)));
  const [first, more] = [DATA.caveats.slice(0, FIRST_NOTES), DATA.caveats.slice(FIRST_NOTES)];
  at("caveats").append(listed(first), more.length ? el("details", {}, el("summary", {}, `${plural(more.length, "more note")}`), listed(more)) : "");
}
{
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = window.localStorage.getItem("robustlit-theme"); } catch (error) { /* a file may not store */ }
  const paint = () => {
    const theme = chosen === "dark" || chosen === "light" ? chosen : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    at("theme").textContent = theme === "dark" ? "Light page" : "Dark page";
  };
  at("theme").addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { window.localStorage.setItem("robustlit-theme", chosen); } catch (error) { /* kept until the page is closed */ }
    paint();
  });
  dark.addEventListener("change", paint);
  paint();
}
