// What every view uses: requests, elements, notices, and the address, which holds all of a view's state.

/** Make an element: `h("button", { class: "quiet", onclick: f }, "text")`. Texts are never read as HTML. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  return fill(element, ...children);
}

/** Put these children into an element, in place of those it has; what is null or false is left out. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An error the server told of, with its HTTP status; 0 if it does not answer. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is `simclr-hub browse` still running?", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.trim();
  try {
    const { detail } = JSON.parse(text);
    message = typeof detail === "string" ? detail : detail.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; ");
  } catch {
    // plain text, as the guard answers
  }
  throw new ServerError(message || `HTTP ${response.status}`, response.status);
}

/** GET JSON. */
export async function get(path, values = {}, signal) {
  return (await request(`api/${path}${query(values)}`, { signal })).json();
}

/** POST JSON, or bytes as they are; return JSON, or text where `as` is "text". */
export async function post(path, body = {}, { signal, as = "json" } = {}) {
  const bytes = body instanceof Blob;
  const response = await request(`api/${path}`, {
    method: "POST",
    signal,
    headers: { "content-type": bytes ? "application/octet-stream" : "application/json" },
    body: bytes ? body : JSON.stringify(body),
  });
  return response[as]();
}

/** Return values as a query, without those that are not set. */
export function query(values) {
  const pairs = Object.entries(values).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value]).filter((one) => one !== null && one !== undefined && one !== "").map((one) => [name, one]),
  );
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

/** Where a picture of a photo or an upload is. */
export function thumbnail(id) {
  return id.startsWith("upload-") ? `api/uploads/${id}/thumbnail` : `api/photos/${id}/thumbnail`;
}

// A browser asks one server six things at a time. Pictures take four at most, so that no answer waits for them, and
// those whose holder left the page before they came are given up.
const AT_ONCE = 4;
const wanted = new Map();
const coming = new Map();

function load() {
  for (const [image, holder] of coming) {
    if (holder.isConnected) continue;
    coming.delete(image);
    image.removeAttribute("src");
  }
  for (const [image, { source, holder }] of wanted) {
    if (coming.size >= AT_ONCE) break;
    wanted.delete(image);
    if (!holder.isConnected) continue;
    coming.set(image, holder);
    image.src = source;
  }
}
new MutationObserver(load).observe(document.body, { childList: true, subtree: true });

/** Load a picture when its turn comes, if its holder is in the page then. */
export function loadInTurn(image, source, holder = image) {
  const came = () => coming.delete(image) && load();
  image.addEventListener("load", came);
  image.addEventListener("error", came);
  wanted.set(image, { source, holder });
  queueMicrotask(load);
  return image;
}

/** An <img> of a photo, for the page, that says so in place if it cannot be read. */
export function picture(photo, { alt = photo.name ?? "", source = thumbnail(photo.id) } = {}) {
  const image = loadInTurn(h("img", { alt, decoding: "async", draggable: false }), source);
  image.addEventListener("error", () => image.replaceWith(h("span", { class: "gone" }, "cannot be shown")), { once: true });
  return image;
}

/** Show a sentence for some seconds; errors stay until they are closed. */
export function notice(text, { error = false } = {}) {
  const places = document.getElementById("notices");
  if ([...places.children].some((one) => one.firstChild.textContent === text)) return;
  const box = h("p", { class: error ? "error" : "" }, h("span", {}, text), h("button", { class: "quiet", "aria-label": "Close", onclick: () => box.remove() }, "×"));
  places.append(box);
  if (!error) setTimeout(() => box.remove(), 5000);
}

/** Run what may fail, and tell if it does; aborted requests are nobody's fault. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message, { error: true });
    return undefined;
  }
}

/** Return { view, values } of an address such as #search?like=ID. */
export function address() {
  const [view, rest = ""] = location.hash.slice(1).split("?");
  return { view: view || "photos", values: new URLSearchParams(rest) };
}

/** Go to a view; `replace` adds nothing to the history. */
export function go(view, values = {}, { replace = false } = {}) {
  const hash = `#${view}${query(values)}`;
  if (replace) {
    history.replaceState(null, "", hash);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = hash;
}

/** Call `work` once things have been quiet for `wait` milliseconds. */
export function debounced(work, wait = 250) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), wait);
  };
}

export const count = (number, word, plural = `${word}s`) => `${number.toLocaleString("en")} ${number === 1 ? word : plural}`;

export function bytes(number) {
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (number >= factor) return `${(number / factor).toFixed(1)} ${unit}`;
  return `${number} bytes`;
}

/** A share, rounded down, so that it is never 100 %. */
export function share(value) {
  if (value === null || value === undefined) return "";
  const digits = value >= 0.999 ? 2 : 1;
  return `${(Math.floor(Math.min(value, 0.9999) * 100 * 10 ** digits + 1e-9) / 10 ** digits).toFixed(digits)} %`;
}

/** Put text on the clipboard, and say so. */
export async function copy(text) {
  await attempt(async () => {
    await navigator.clipboard.writeText(text);
    notice("copied");
  });
}

/** Give a text to save as a file. */
export function save(name, text, type = "text/plain") {
  const link = h("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
