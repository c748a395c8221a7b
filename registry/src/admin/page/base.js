"use strict";
// Whatever the API says is inserted as text: the page's policy refuses markup from strings altogether (Trusted Types).

const API = {
  status: "../api/v1/status",
  images: "../api/v1/images",
  mirrorConfig: "../api/v1/mirror-config",
  metrics: "../metrics",
};
const METRICS = {
  requests: "coral_registry_requests_total",
  sent: "coral_registry_sent_bytes_total",
  received: "coral_registry_upstream_bytes_total",
  upstreamRequests: "coral_registry_upstream_requests_total",
};
const PERIOD = 1000; // between two looks at the cache, ms
const LONGEST_PAUSE = 30_000; // between two attempts while it does not answer, ms
const DEADLINE = 5000; // of each request, ms
const IMAGES_PERIOD = 15_000; // the list of images costs the cache more than the status, ms
const IMAGES_PAUSE = 2000; // after a transfer ended, at the soonest, ms
const TYPING = 250; // the search waits for a pause this long, ms
const HISTORY = 120; // samples of the traffic that the curve shows
const MOST_TRANSFERS = 100; // rows shown
const FIRST_IMAGES = 50; // rows shown until more are asked for

// What a request for content came to, from best to worst. The first three cost the upstream nothing.
const RESULTS = [
  ["hit", "hit", "Served from the store"],
  ["join", "shared", "Joined a running download"],
  ["stale", "stale", "Served from the store because the upstream could not be asked"],
  ["miss", "miss", "Fetched from the upstream"],
  ["bypass", "bypass", "Passed through without storing"],
  ["negative", "not found", "The upstream does not have it"],
  ["error", "failed", "Answered with an error"],
];
const FREE = ["hit", "join", "stale"];
const FETCHED = ["miss", "bypass"];

// Words for states, and how good they are.
const INDEX_STATES = {
  open: ["index open", ""],
  rebuilding: ["index is being rebuilt", "warn"],
  failed: ["index failed", "bad"],
};
const CONFIG_STATES = {
  defaults: ["default configuration", ""],
  current: ["configuration current", ""],
  refused: ["configuration refused", "bad"],
};
const TRANSFER_STATES = {
  queued: ["queued", ""],
  connecting: ["connecting", ""],
  running: ["running", "good"],
  verifying: ["verifying", "good"],
  published: ["stored", "good"],
  failed: ["failed", "bad"],
};

const $ = (id) => document.getElementById(id);

// ---- Numbers as people read them

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

function bytes(count) {
  const power = count < 1 ? 0 : Math.min(Math.floor(Math.log2(count) / 10), UNITS.length - 1);
  const value = count / 1024 ** power;
  const digits = power === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[power]}`;
}

function count(number, singular, plural = `${singular}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? singular : plural}`;
}

// Never rounds up to 100 % what is not all.
function percent(part, whole) {
  const value = Math.floor((part / whole) * 1000) / 10;
  return `${value.toFixed(value >= 100 ? 0 : 1)} %`;
}

function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

function ago(seconds) {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

// ---- The document

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Touches the document only for a change, so that a selection survives and assistive technology hears no repetition.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function attribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// Makes the children of `parent` those of `items`, keeping what stays; `update` fills a row in, or in again.
function keep(parent, items, key, create, update) {
  const kept = new Map();
  const wanted = new Set(items.map(key));
  for (const node of [...parent.children]) {
    if (wanted.has(node.dataset.key)) kept.set(node.dataset.key, node);
    else node.remove();
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const node = kept.get(key(item)) ?? create();
    node.dataset.key = key(item);
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
}

// A row whose first cell names it. On a narrow screen each cell shows its column's name; `wide` ones fill the row.
function makeRow(table, wide) {
  const columns = [...$(table).tHead.rows[0].cells];
  const cells = columns.map((column, index) => {
    if (index === 0) return make("th", { scope: "row", role: "rowheader" });
    const cell = make("td", { role: "cell", "data-label": column.textContent.trim() });
    cell.classList.toggle("number", column.classList.contains("number"));
    cell.classList.toggle("wide", wide.includes(index));
    return cell;
  });
  return make("tr", { role: "row" }, ...cells);
}

function chip(node, [text, kind]) {
  say(node, text);
  attribute(node, "class", kind ? `chip ${kind}` : "chip");
}

function figure(cell, text, isNothing) {
  say(cell, text);
  cell.classList.toggle("dim", isNothing);
}

function fill(bar, share) {
  bar.firstElementChild.style.setProperty("transform", `scaleX(${Math.min(Math.max(share, 0), 1)})`);
}

// Digests and names are long: `parts` become children once, then only their texts change.
function parts(cell, makers) {
  if (!cell.firstElementChild) cell.append(...makers());
  return cell.children;
}

// ---- The metrics

// Samples of the wanted families, as [labels, value] by name.
function parseMetrics(text) {
  const families = new Map(Object.values(METRICS).map((name) => [name, []]));
  for (const line of text.split("\n")) {
    const sample = /^([a-z_]+)(?:\{(.*)\})? (\S+)/.exec(line);
    const family = sample && families.get(sample[1]);
    if (!family) continue;
    const labels = {};
    for (const [, name, value] of (sample[2] ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    family.push([labels, Number(sample[3])]);
  }
  return families;
}

// Sums a family, over the samples that `where` takes.
function total(metrics, name, where = () => true) {
  return metrics.get(name).reduce((sum, [labels, value]) => (where(labels) ? sum + value : sum), 0);
}
