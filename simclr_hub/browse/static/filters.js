// The filters of the grid and of searches, which live in the address.

import { attempt, debounced, get, h } from "./page.js";

const FIELDS = ["folder", "folder_of", "root", "path", "camera", "taken_from", "taken_to", "min_side"];

/** Read the filters from an address's values, as the API takes them. */
export function readFilters(values) {
  const found = Object.fromEntries(FIELDS.map((name) => [name, values.get(name)]).filter(([, value]) => value));
  if (found.min_side) found.min_side = Number(found.min_side);
  return found;
}

/** A row of fields; `onchange(filters)` is called when one changed; the index's root folders are offered. */
export function filterBar(filters, onchange, roots) {
  const values = { ...filters };
  const set = (name, value) => {
    if (value) values[name] = value;
    else delete values[name];
    onchange({ ...values });
  };
  const late = debounced(set, 400);
  const text = (name, label, properties) =>
    h("label", {}, h("span", {}, label), h("input", { value: String(values[name] ?? ""), oninput: (event) => event.target.validity.valid && late(name, event.target.value.trim()), ...properties }));
  const chosen = values.folder_of && h("button", { onclick: () => set("folder_of", ""), title: "Show photos of all folders" }, "one folder ×");
  if (chosen) attempt(async () => (chosen.textContent = `in ${short((await get(`photos/${values.folder_of}`)).folder, roots)} ×`));
  return h(
    "details",
    { class: "filters", open: Object.keys(values).length > 0 },
    h("summary", {}, "Filter"),
    h(
      "div",
      {},
      chosen,
      roots.length > 1 &&
        h(
          "label",
          {},
          h("span", {}, "Folder"),
          h("select", { onchange: (event) => set("root", event.target.value) }, h("option", { value: "" }, "all"), roots.map((one) => h("option", { value: String(one.id), selected: String(one.id) === values.root }, one.path))),
        ),
      text("path", "Name or path", { id: "path", type: "search", placeholder: "holiday/**/*.jpg", title: "A pattern: * and ? stay within a folder, ** stands for any folders" }),
      text("taken_from", "Taken from", { inputmode: "numeric", placeholder: "2019-06", pattern: "\\d{4}(-\\d\\d(-\\d\\d)?)?", size: 10 }),
      text("taken_to", "to", { inputmode: "numeric", placeholder: "2020", pattern: "\\d{4}(-\\d\\d(-\\d\\d)?)?", size: 10 }),
      text("camera", "Camera", { placeholder: "Canon EOS 5D" }),
      text("min_side", "Pixels, at least", { type: "number", min: 1, max: 100000, placeholder: "1024" }),
      h("button", { class: "quiet", onclick: () => onchange({}) }, "Clear"),
    ),
  );
}

/** A folder below the only root folder, or whole where there are several. */
export function short(folder, roots) {
  const [{ path } = { path: "" }] = roots;
  if (roots.length !== 1 || !folder.startsWith(path)) return folder;
  return folder.slice(path.length).replace(/^[/\\]/, "") || folder.split(/[/\\]/).at(-1) || folder;
}
