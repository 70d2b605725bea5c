// The page's frame: tabs, the view that the address names, keys, and what the server is doing.

import { address, get, go, h, notice } from "./page.js";
import * as duplicates from "./duplicates.js";
import * as label from "./label.js";
import * as map from "./map.js";
import * as photos from "./photos.js";
import * as search from "./search.js";
import * as status from "./status.js";

const VIEWS = { photos, search, duplicates, map, label, status };
const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const activity = document.getElementById("activity");
let view = null;
let state = null;
let silent = false;

function show() {
  const { view: name, values } = address();
  const found = VIEWS[name] ?? photos;
  view?.close();
  main.replaceChildren();
  main.className = name;
  for (const tab of tabs.children) {
    if (VIEWS[tab.dataset.view] === found) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  document.title = `${found.title}: ${state.name}`;
  view = found.show(main, values, state);
}

/** Ask what is going on: every second while something is, every five otherwise. */
async function watch() {
  let wait = 5000;
  try {
    const now = await get("state");
    const changed = state && String(now.version) !== String(state.version);
    state = now;
    silent = false;
    const running = Object.entries(now.jobs).filter(([name, job]) => job.state === "running" && !["warm", "tidy"].includes(name));
    activity.textContent = running.map(([name, job]) => `${name} ${job.total ? `${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : "…"}`).join(", ");
    if (running.length) wait = 1000;
    view?.told?.(now);
    if (changed) view?.changed();
  } catch (error) {
    activity.textContent = error.status === 403 ? "open the new address" : "no answer";
    if (!silent) notice(error.status === 403 ? "The server was started anew: open the address that it printed." : error.message, { error: true });
    silent = true;
    wait = 3000;
  }
  setTimeout(watch, wait);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea") || document.querySelector("dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const number = Number(event.key) - 1;
  if (event.key === "/") {
    const filters = main.querySelector(".filters");
    if (!filters) return;
    event.preventDefault();
    filters.open = true;
    filters.querySelector("#path").focus();
  } else if (event.key === "Escape") {
    document.activeElement.blur();
  } else if (number in Object.keys(VIEWS)) go(Object.keys(VIEWS)[number]);
  else if (event.key.startsWith("Arrow") && document.activeElement === document.body) main.querySelector(".open[tabindex='0']")?.focus();
});

async function begin() {
  try {
    state = await get("state");
  } catch (error) {
    notice(error.message, { error: true });
    setTimeout(begin, 3000);
    return;
  }
  document.getElementById("name").textContent = state.name;
  tabs.replaceChildren(...Object.entries(VIEWS).map(([name, one], place) => h("a", { href: `#${name}`, "data-view": name, title: `${one.title} (${place + 1})` }, one.title)));
  search.acceptPhotos(() => {
    const { view: name, values } = address();
    return name === "search" ? { like: values.getAll("like"), unlike: values.getAll("unlike") } : {};
  });
  window.addEventListener("hashchange", show);
  show();
  setTimeout(watch, 1000);
}

begin();
