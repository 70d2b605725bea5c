// What the index holds, what is going on, and what could not be used.

import { attempt, count, fill, get, h, post } from "./page.js";

export const title = "Status";

const JOBS = { sync: "Sync", check: "Check", duplicates: "Duplicates", map: "Map", blurred: "Blurred photos" };

export function show(main, values, first) {
  const facts = h("dl", { class: "facts" });
  const roots = h("ul", { class: "rows" });
  const jobs = h("ul", { class: "rows" });
  const lists = h("div");
  main.append(h("div", { class: "text" }, h("section", {}, h("h2", {}, "Index"), facts), h("section", {}, h("h2", {}, "Folders"), roots), h("section", {}, h("h2", {}, "At work"), h("button", { onclick: () => attempt(() => post("jobs/check")) }, "Check the index"), h("div", { class: "rows", role: "status" }, jobs)), h("section", {}, h("h2", {}, "Photos that are not shown"), lists)));
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
  // Read when they are opened, in parts: after a disk was unplugged all photos may be missing.
  const opened = (name, path) => {
    const rows = h("ul", { class: "paths" });
    const told = h("p", { class: "soft" });
    const more = h("button", { hidden: true, onclick: () => load(rows.children.length) }, "Show more");
    const load = (offset) => attempt(async () => {
      const { total, photos } = await get(path, { offset, limit: 500 });
      if (!offset) rows.replaceChildren();
      rows.append(...photos.map((photo) => h("li", {}, photo.why ? `${photo.path}: ${photo.why}` : photo.path)));
      told.textContent = count(total, "photo");
      more.hidden = rows.children.length >= total;
    });
    const details = h("details", { ontoggle: () => details.open && load(0) }, h("summary", {}, name), told, rows, more);
    return { details, again: () => details.open && load(0) };
  };
  const both = [opened("Photos that could not be used", "failures"), opened("Missing at the last sync", "missing")];
  fill(lists, both.map((one) => one.details));
  tell(first);
  return { changed: () => both.forEach((one) => one.again()), told: tell, close() {} };
}
