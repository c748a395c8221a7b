// ---- Asking

let token = null; // of whoever looks, where the cache asks for one; nowhere else than here

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.wantsToken = status === 401 || status === 403;
  }
}

async function ask(path, signal) {
  const deadline = AbortSignal.timeout(DEADLINE);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const either = signal ? AbortSignal.any([signal, deadline]) : deadline;
  const reply = await fetch(path, { cache: "no-store", headers, signal: either });
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => null);
  throw new Refused(reply.status, body?.error ?? `the answer is ${reply.status}`);
}

function reason(error) {
  if (error instanceof Refused) return error.message;
  if (error.name === "TimeoutError") return `no answer within ${DEADLINE / 1000} s`;
  return "no connection";
}

let failures = 0;
let asking = false;
let timer = 0;
let nextAttempt = 0;
let running = new Set();

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const answer = await look().catch(failed);
  asking = false;
  const pause = failures ? Math.min(PERIOD * 2 ** failures, LONGEST_PAUSE) : PERIOD;
  nextAttempt = performance.now() + pause;
  showNextAttempt();
  timer = setTimeout(poll, pause);
  if (answer) show(...answer);
}

async function look() {
  const [status, metrics] = await Promise.all([ask(API.status), ask(API.metrics)]);
  const answer = await Promise.all([status.json(), metrics.text()]);
  serverTime = Date.parse(status.headers.get("date") ?? "") || Date.now();
  answered();
  return [answer[0], parseMetrics(answer[1])];
}

function show(status, metrics) {
  const looks = showProcess(status, serverTime);
  showTraffic(metrics, status.transfers.length > 0);
  showSpace(status.disk);
  showTransfers(status.transfers);
  showUpstreams(status.upstreams, metrics);
  announceChanges(looks, status.upstreams);

  const now = new Set(status.transfers.map(({ digest }) => digest));
  if ([...running].some((digest) => !now.has(digest))) imagesDue = Math.min(imagesDue, performance.now() + IMAGES_PAUSE);
  running = now;
  if (performance.now() >= imagesDue && !imagesRequest) loadImages();
}

function answered() {
  if (failures) say($("news"), "The cache answers again.");
  failures = 0;
  $("banner").hidden = true;
}

function failed(error) {
  failures += 1;
  const since = lastStates ? ` What you see is from ${new Date(serverTime).toLocaleTimeString()}.` : "";
  const wantsToken = error.wantsToken === true;
  say($("banner-title"), wantsToken ? "The cache asks who you are." : "The cache does not answer.");
  say($("news"), $("banner-title").textContent);
  const sentence = reason(error);
  say($("banner-reason"), `${sentence[0].toUpperCase()}${sentence.slice(1)}.${since}`);
  attribute($("banner"), "class", wantsToken ? "banner" : "banner refused");
  $("again").hidden = wantsToken;
  $("login").hidden = !wantsToken;
  $("banner").hidden = false;
}

function showNextAttempt() {
  if (!failures) return;
  const seconds = Math.max(0, Math.ceil((nextAttempt - performance.now()) / 1000));
  say($("banner-next"), asking ? "Trying…" : `Next attempt in ${duration(seconds)}.`);
}

// ---- What people do

let typing = 0;

function search(delay) {
  clearTimeout(typing);
  typing = setTimeout(loadImages, delay);
}

$("query").addEventListener("input", () => search(TYPING));
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search(0);
});
$("more").addEventListener("click", () => {
  const next = $("images").tBodies[0].rows.length;
  showAll = true;
  showImages();
  // The button is gone; whoever used the keyboard goes on at the first new row.
  const row = $("images").tBodies[0].rows[next];
  row.tabIndex = -1;
  row.focus();
});
$("images").tHead.addEventListener("click", ({ target }) => {
  const by = target.closest("button") && target.closest("th").dataset.sort;
  if (!by) return;
  sorting = { by, descending: sorting.by === by ? !sorting.descending : by !== "name" };
  showImages();
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLInputElement && ["search", "password"].includes(event.target.type);
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  } else if (event.key === "Escape" && event.target === $("query") && $("query").value) {
    event.preventDefault();
    $("query").value = "";
    search(0);
  }
});
$("images-empty").addEventListener("click", ({ target }) => {
  if (target instanceof HTMLAnchorElement) $("connect").open = true;
});
$("connect").addEventListener("toggle", showMirrorConfig);
$("runtime").addEventListener("change", showMirrorConfig);
$("copy").addEventListener("click", copyMirrorConfig);
$("retry").addEventListener("click", poll);
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  imagesDue = 0;
  poll();
});
document.addEventListener("visibilitychange", poll);
setInterval(showNextAttempt, 1000);

for (const table of document.querySelectorAll("table")) {
  table.setAttribute("role", "table");
  for (const group of table.querySelectorAll("thead, tbody")) group.setAttribute("role", "rowgroup");
  for (const row of table.tHead.rows) row.setAttribute("role", "row");
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("role", "columnheader");
}
poll();
