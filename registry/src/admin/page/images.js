// ---- Images

let found = { images: [], truncated: false, query: "" };
let serverTime = Date.now(); // as of the last answer; clocks may differ
let imagesDue = 0;
let imagesRequest = null;
let isFirstLook = true;
let showAll = false;
let sorting = { by: "use", descending: true };

const SORTS = {
  name: (a, b) => imageName(a).localeCompare(imageName(b), "en"),
  size: (a, b) => a.held - b.held,
  use: (a, b) => (Date.parse(a.lastUse ?? "") || 0) - (Date.parse(b.lastUse ?? "") || 0),
};

const imageName = ({ repository, tag }) => (tag ? `${repository}:${tag}` : repository);

async function loadImages() {
  imagesRequest?.abort();
  const request = (imagesRequest = new AbortController());
  const query = $("query").value.trim();
  imagesDue = performance.now() + IMAGES_PERIOD;
  try {
    const reply = await ask(`${API.images}?q=${encodeURIComponent(query)}`, request.signal);
    found = { ...(await reply.json()), query };
  } catch (error) {
    if (request.signal.aborted) return;
    say($("images-count"), `The list is not available: ${reason(error)}`);
    return;
  } finally {
    if (imagesRequest === request) imagesRequest = null;
  }
  showImages();
  // Whoever sees an empty cache wants to know this; once, since it can be closed.
  if (isFirstLook) $("connect").open = !query && !found.images.length;
  isFirstLook = false;
}

function showImages() {
  const { images, truncated, query } = found;
  const direction = sorting.descending ? -1 : 1;
  const sorted = images.toSorted((a, b) => direction * SORTS[sorting.by](a, b));
  const shown = showAll ? sorted : sorted.slice(0, FIRST_IMAGES);
  const key = ({ repository, tag, digest }) => `${repository} ${tag ?? ""} ${digest}`;
  keep($("images").tBodies[0], shown, key, () => makeRow("images", [1]), updateImage);
  for (const column of $("images").tHead.rows[0].cells) {
    const direction = sorting.descending ? "descending" : "ascending";
    if (column.dataset.sort) attribute(column, "aria-sort", column.dataset.sort === sorting.by ? direction : "none");
  }
  const matching = query ? ` with “${query}”` : "";
  const first = images.length.toLocaleString("en");
  const all = count(images.length, "image") + matching;
  say($("images-count"), truncated ? `the first ${first} by name${matching}; search for more` : all);
  $("images").hidden = !images.length;
  $("images-empty").hidden = images.length > 0;
  showNoImages(query);
  $("more").hidden = shown.length === sorted.length;
  say($("more"), `Show ${sorted.length - shown.length} more`);
}

function showNoImages(query) {
  const place = $("images-empty");
  if (query) {
    say(place, `No image has “${query}” in its name or tag. Capitals count; Escape clears the search.`);
  } else if (!place.firstElementChild) {
    const link = make("a", { href: "#connect" }, "Point a client here");
    const command = make("code", {}, "coral-registry prefetch nginx");
    place.replaceChildren("The cache is empty. ", link, " and pull, or fetch ahead: ", command);
  }
}

function updateImage(row, { repository, tag, digest, held, lastUse }) {
  const [who, hash, size, use] = row.cells;
  const [name, label] = parts(who, () => [make("span"), make("span")]);
  say(name, repository);
  say(label, tag ? `:${tag}` : "");
  attribute(label, "class", "tag");
  const [code] = parts(hash, () => [make("code", { class: "dim digest" })]);
  say(code, digest);
  attribute(code, "title", digest);
  figure(size, held ? bytes(held) : "nothing", !held);
  const [time] = parts(use, () => [make("time")]);
  say(time, lastUse ? ago((serverTime - Date.parse(lastUse)) / 1000) : "–");
  attribute(time, "datetime", lastUse ?? null);
  attribute(time, "title", lastUse ? new Date(lastUse).toLocaleString() : null);
}

// ---- Mirror configuration

async function showMirrorConfig() {
  if (!$("connect").open) return;
  const runtime = document.querySelector("#runtime input:checked").value;
  let text;
  try {
    text = await (await ask(`${API.mirrorConfig}?runtime=${runtime}`)).text();
  } catch (error) {
    text = reason(error);
  }
  say($("mirror-config"), text);
  say($("copy"), "Copy");
}

// Without HTTPS a browser keeps the clipboard to itself, except on this machine; then it is selected at least.
async function copyMirrorConfig() {
  try {
    await navigator.clipboard.writeText($("mirror-config").textContent);
    say($("copy"), "Copied");
  } catch {
    getSelection().selectAllChildren($("mirror-config"));
    say($("copy"), "Selected");
  }
}
