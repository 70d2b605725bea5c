// What the index holds, what is going on, and what could not be used.

import { attempt, count, fill, get, h, post } from "./page.js";

export const title = "Status";

const JOBS = { sync: "Sync", check: "Check", duplicates: "Duplicates", map: "Map", blurred: "Blurred photos" };

export function show(main, values, first) {
  const facts = h("dl", { class: "facts" });
  const roots = h("ul", { class: "rows" });
  const jobs = h("ul", { class: "rows" });
  const lists = h("div");
  main.append(h("div", { class: "text" }, h("h2", {}, "Index"), facts, h("h2", {}, "Folders"), roots, h("h2", {}, "At work"), h("button", { onclick: () => attempt(() => post("jobs/check")) }, "Check the index"), h("div", { class: "rows", role: "status" }, jobs), lists));
  const tell = (state) => {
    const busy = state.jobs.sync?.state === "running";
    facts.replaceChildren(
      ...[["Photos", state.photos.toLocaleString("en")], ["Missing", state.missing.toLocaleString("en")], ["Could not be used", state.failed.toLocaleString("en")], ["Model", state.model + (state.whitened ? ", whitened" : "")]].flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    );
    roots.replaceChildren(
      ...state.roots.map((root) =>
        h("li", {}, h("span", {}, root.path), root.listing !== "ok" && h("b", { class: "warn" }, root.listing === "failed" ? "could not be listed in full" : "was not there"), h("button", { disabled: busy || state.read_only, onclick: () => attempt(() => post("jobs/sync", { root: root.id })) }, "Sync")),
      ),
    );
    const known = Object.entries(state.jobs).filter(([name]) => name in JOBS);
    jobs.replaceChildren(
      ...known.map(([name, job]) =>
        h("li", {}, h("b", {}, JOBS[name]), job.state === "running" ? h("progress", { max: job.total || 1, value: job.total ? job.done : undefined, "aria-label": JOBS[name] }) : h("span", { class: job.state === "failed" ? "warn" : "" }, job.message || "done"), h("span", { class: "soft" }, job.state === "running" && job.total ? `${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : `${job.seconds} s`)),
      ),
    );
  };
  // Read when they are opened: the server goes through every photo for them.
  const list = () => fill(lists, opened("Photos that could not be used", "failures", ({ path, why }) => `${path}: ${why}`), opened("Missing at the last sync", "missing", (path) => path));
  const opened = (name, path, line) => {
    const body = h("div");
    const load = () => attempt(async () => {
      const rows = await get(path);
      fill(body, h("p", { class: "soft" }, count(rows.length, "photo")), h("ul", { class: "paths" }, rows.slice(0, 1000).map((row) => h("li", {}, line(row)))), rows.length > 1000 && h("p", {}, `and ${(rows.length - 1000).toLocaleString("en")} more`));
    });
    return h("details", { ontoggle: (event) => event.target.open && load() }, h("summary", {}, name), body);
  };
  tell(first);
  list();
  return { changed: list, told: tell, close() {} };
}
