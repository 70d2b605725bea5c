// The grid of all photos, by date, folder, camera or size.

import { Grid } from "./grid.js";
import { filterBar, readFilters, short } from "./filters.js";
import { attempt, count, get, go, h } from "./page.js";
import { openViewer } from "./viewer.js";

const SORTS = { date: "Date", folder: "Folder", camera: "Camera", size: "File size" };

export const title = "Photos";

/** Show the view in `main`; returns what is called with each new state, and when the view is left. */
export function show(main, values, state) {
  const sort = values.get("sort") in SORTS ? values.get("sort") : "date";
  const reverse = values.get("reverse") === "1";
  const filters = readFilters(values);
  const change = (some) => go("photos", { sort, reverse: reverse ? "1" : "", ...filters, ...some });
  const label = (group) => (sort === "folder" ? short(group, state.roots) : group);
  const where = h("p", { class: "where", "aria-live": "off" });
  const total = h("p", { class: "total", role: "status" });
  const jump = h("select", { "aria-label": "Go to", onchange: (event) => grid.jump(Number(event.target.value)) });
  const box = h("div", { class: "box" });
  const empty = h("p", { class: "empty" });
  main.append(
    h(
      "div",
      { class: "toolbar" },
      h("label", {}, h("span", {}, "Order"), h("select", { onchange: (event) => change({ sort: event.target.value }) }, Object.entries(SORTS).map(([key, name]) => h("option", { value: key, selected: key === sort }, name)))),
      h("button", { onclick: () => change({ reverse: reverse ? "" : "1" }), "aria-pressed": String(reverse), title: "Reverse the order" }, reverse ? "↑ reversed" : "↓"),
      h("label", {}, h("span", {}, "Go to"), jump),
      total,
      filterBar(filters, (some) => go("photos", { sort, reverse: reverse ? "1" : "", ...some }), state.roots),
    ),
    where,
    empty,
    box,
  );
  const grid = new Grid(box, (offset, limit, signal) => get("photos", { sort, reverse, ...filters, offset, limit }, signal), {
    label: "Photos",
    ontotal: (number, reasons = []) => {
      total.textContent = number ? count(number, "photo") : "No photo";
      empty.textContent = reasons.join("; ");
    },
    onmove: (_, photo) => (where.textContent = label(photo?.group ?? "")),
    buttons: (photo) => [h("button", { class: "similar", tabIndex: -1, title: "Find similar", "aria-label": `Find photos like ${photo.name}`, onclick: () => go("search", { like: photo.id }) }, "≈")],
    onopen: async (index) => {
      let at = index;
      await openViewer(grid.photo(index), {
        local: state.local,
        at: async (step) => {
          const next = at + step;
          if (next < 0 || next >= grid.total) return undefined;
          await grid.fetch(Math.floor(next / 200));
          at = next;
          return grid.photo(at);
        },
      });
      grid.focus(at);
    },
  });
  const groups = () =>
    attempt(async () => {
      const found = await get("groups", { sort, reverse, ...filters });
      jump.replaceChildren(...found.groups.map((group) => h("option", { value: String(group.first) }, label(group.label))));
    });
  attempt(() => grid.reload());
  groups();
  return {
    changed: () => {
      grid.reload({ keep: true });
      groups();
    },
    close: () => grid.close(),
  };
}
