// ---- What is shown

const traffic = []; // { time, sent, received, sentRate, receivedRate }, oldest first

function showTraffic(metrics, isFetching) {
  const isContent = (labels) => labels.kind === "manifest" || labels.kind === "blob";
  const results = RESULTS.map(([result, word, meaning]) => ({
    result,
    word,
    meaning,
    requests: total(metrics, METRICS.requests, (labels) => isContent(labels) && labels.result === result),
  }));
  const of = (names) => results.reduce((sum, { result, requests }) => (names.includes(result) ? sum + requests : sum), 0);
  const free = of(FREE);
  const answered = free + of(FETCHED);
  say($("ratio"), answered ? percent(free, answered) : "–");
  say($("ratio-note"), answered ? "" : "No image was served since the start.");
  const seen = results.filter(({ requests }) => requests > 0);
  const key = ({ result }) => result;
  keep($("results"), seen, key, () => make("span"), (node, { result, requests }) => {
    node.style.setProperty("--color", `var(--${result})`);
    node.style.setProperty("flex-grow", requests);
  });
  const makeEntry = () => make("li", {}, make("b"), make("span"));
  keep($("results-legend"), seen, key, makeEntry, (node, { result, word, meaning, requests }) => {
    node.style.setProperty("--color", `var(--${result})`);
    node.title = meaning;
    say(node.children[0], requests.toLocaleString("en"));
    say(node.children[1], ` ${word}`);
  });

  // Without the bodies of refusals, which no cache can save.
  const sent = total(metrics, METRICS.sent, ({ source }) => source !== "none");
  const received = total(metrics, METRICS.received);
  say($("saved"), sent || received ? bytes(Math.max(0, sent - received)) : "–");
  say($("sent"), bytes(sent));
  say($("fetched"), bytes(received));
  showShare($("saved-share"), Math.max(0, sent - received));
  showShare($("fetched-share"), Math.min(sent, received));
  const isAhead = received > sent && !isFetching;
  say($("saved-note"), isAhead ? "More was fetched ahead than was sent so far." : "");
  showRates(sent, received);
}

function showShare(node, share) {
  node.hidden = !share;
  node.style.setProperty("flex-grow", share);
}

function showRates(sent, received) {
  const now = { time: performance.now(), sent, received, sentRate: 0, receivedRate: 0 };
  const last = traffic.at(-1);
  if (last) {
    const seconds = (now.time - last.time) / 1000;
    // Counters start again with the process.
    now.sentRate = Math.max(0, sent - last.sent) / seconds;
    now.receivedRate = Math.max(0, received - last.received) / seconds;
  }
  traffic.push(now);
  if (traffic.length > HISTORY) traffic.shift();
  say($("sent-rate"), `${bytes(now.sentRate)}/s`);
  say($("fetched-rate"), `${bytes(now.receivedRate)}/s`);
  if (traffic.length < 2) return;
  const highest = Math.max(1, ...traffic.map(({ sentRate, receivedRate }) => Math.max(sentRate, receivedRate)));
  const start = HISTORY - traffic.length;
  const height = (rate) => (39 - (rate / highest) * 37).toFixed(1);
  const curve = (rate) => traffic.map((sample, at) => `${start + at},${height(rate(sample))}`).join("L");
  const sentCurve = curve(({ sentRate }) => sentRate);
  attribute($("spark-sent"), "d", `M${sentCurve}`);
  attribute($("spark-fetched"), "d", `M${curve(({ receivedRate }) => receivedRate)}`);
  attribute($("spark-area"), "d", `M${start},40L${sentCurve}L${HISTORY - 1},40Z`);
}

function showSpace({ used, limit, free, degraded }) {
  const share = limit ? used / limit : 0;
  say($("space"), limit ? percent(used, limit) : bytes(used));
  say($("space-used"), limit ? `${bytes(used)} of ${bytes(limit)}` : bytes(used));
  say($("space-free"), bytes(free));
  say($("space-note"), degraded ? "The store cannot be written: downloads are passed through without keeping them." : "");
  attribute($("space-bar"), "aria-valuenow", Math.round(share * 100));
  attribute($("space-bar"), "class", share >= 0.9 ? "bar full" : "bar");
  fill($("space-bar"), share);
}

function showProcess(status, now) {
  const { ready, index, config, disk } = status;
  const states = [
    ["ready", ready ? ["ready", "good"] : ["not ready", "bad"]],
    ["index", INDEX_STATES[index.state] ?? [index.state, ""]],
    ["config", CONFIG_STATES[config.state] ?? [config.state, ""]],
  ];
  if (disk.degraded) states.push(["store", ["store degraded", "bad"]]);
  keep($("states"), states, ([name]) => name, () => make("li"), (node, [, look]) => chip(node, look));
  say($("process"), `Version ${status.version}, up ${duration((now - Date.parse(status.started)) / 1000)}`);
  $("refused").hidden = config.state !== "refused";
  say($("refused-error"), config.error ?? "");
  return states.map(([, look]) => look);
}

function showTransfers(transfers) {
  // New ones below those that were there: rows do not jump.
  const order = new Map([...$("transfers").tBodies[0].rows].map((row, at) => [row.dataset.key, at]));
  const place = ({ digest }) => order.get(digest) ?? Infinity;
  const shown = transfers.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b))).slice(0, MOST_TRANSFERS);
  const key = ({ digest }) => digest;
  keep($("transfers").tBodies[0], shown, key, () => makeRow("transfers", [1]), updateTransfer);
  $("transfers").hidden = !transfers.length;
  $("transfers-empty").hidden = transfers.length > 0;
  const more = transfers.length > MOST_TRANSFERS ? `, the first ${MOST_TRANSFERS} are shown` : "";
  say($("transfers-count"), transfers.length ? `${transfers.length}${more}` : "");
}

function updateTransfer(row, { digest, repository, size, watermark, rate, secondsLeft, readers, state }) {
  const [blob, progress, speed, left, reading, stands] = row.cells;
  const [name, hash] = parts(blob, () => [make("span"), make("code", { class: "under digest" })]);
  say(name, repository ?? "unknown repository");
  say(hash, digest);
  const [bar, figures] = parts(progress, () => [makeProgressBar(), make("span", { class: "under" })]);
  const amount = size ? `${bytes(watermark)} of ${bytes(size)}, ${percent(watermark, size)}` : bytes(watermark);
  attribute(bar, "aria-label", `Download of ${repository ?? "a blob"}, ${digest.slice(0, 19)}`);
  attribute(bar, "aria-valuenow", size ? Math.floor((watermark / size) * 100) : null);
  attribute(bar, "aria-valuetext", amount);
  if (size) fill(bar, watermark / size);
  say(figures, amount);
  figure(speed, rate ? `${bytes(rate)}/s` : "–", !rate);
  figure(left, secondsLeft === undefined ? "–" : duration(secondsLeft), secondsLeft === undefined);
  figure(reading, String(readers), !readers);
  const [look] = parts(stands, () => [make("span")]);
  chip(look, TRANSFER_STATES[state] ?? [state, ""]);
}

function makeProgressBar() {
  return make("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, make("span"));
}

function showUpstreams(upstreams, metrics) {
  const rows = upstreams.flatMap(({ name, endpoints }) => endpoints.map((endpoint, at) => ({ name, endpoint, at })));
  const facts = (upstream) => ({
    requests: total(metrics, METRICS.upstreamRequests, (labels) => labels.upstream === upstream),
    received: total(metrics, METRICS.received, (labels) => labels.upstream === upstream),
  });
  const key = ({ name, endpoint, at }) => `${name} ${at} ${endpoint.url}`;
  const update = (row, item) => updateUpstream(row, item, facts(item.name));
  keep($("upstreams").tBodies[0], rows, key, () => makeRow("upstreams", [1]), update);
  $("upstreams").hidden = !rows.length;
  $("upstreams-empty").hidden = rows.length > 0;
  say($("upstreams-count"), rows.length ? String(upstreams.length) : "");
}

function upstreamLook({ breakerOpen, lastError }, requests) {
  if (breakerOpen) return ["left alone for a while", "bad"];
  if (lastError) return ["last request failed", "warn"];
  return requests ? ["answers", "good"] : ["not asked yet", ""];
}

function updateUpstream(row, { name, endpoint, at }, { requests, received }) {
  const [who, state, busy, budget, asked, got] = row.cells;
  const [title, url] = parts(who, () => [make("span"), make("span", { class: "under" })]);
  say(title, name);
  say(url, endpoint.url);
  const [look, error] = parts(state, () => [make("span"), make("span", { class: "under" })]);
  chip(look, upstreamLook(endpoint, requests));
  say(error, endpoint.lastError ?? "");
  const { inFlight, ratelimitRemaining: left } = endpoint;
  figure(busy, String(inFlight), !inFlight);
  figure(budget, left === undefined ? "–" : left.toLocaleString("en"), left === undefined);
  // They are counted for all endpoints of an upstream together.
  figure(asked, at ? "" : requests.toLocaleString("en"), !requests);
  figure(got, at ? "" : bytes(received), !received);
}

// ---- Changes of state, for those who cannot see them

let lastStates = null;

function announceChanges(looks, upstreams) {
  const open = upstreams.flatMap(({ endpoints }) => endpoints.filter(({ breakerOpen }) => breakerOpen));
  const states = new Set([...looks.map(([text]) => text), ...open.map(({ url }) => `upstream ${url} is left alone`)]);
  const news = [...states].filter((state) => lastStates && !lastStates.has(state));
  if (news.length) say($("news"), `Now: ${news.join(", ")}`);
  lastStates = states;
}
