// A few examples of each class by clicking; the rest labelled, corrected, exported.

import { Grid } from "./grid.js";
import { attempt, count, fill, get, go, h, notice, picture, post } from "./page.js";
import { openViewer } from "./viewer.js";

export const title = "Label";
// Class -> ids of its examples, for as long as the tab is open, also after a reload.
const kept = "simclr-hub examples";
let examples = new Map();
let result = null;

function remember() {
  try {
    sessionStorage.setItem(kept, JSON.stringify([...examples].map(([name, ids]) => [name, [...ids]])));
  } catch {
    // private windows may keep nothing
  }
}

try {
  examples = new Map(JSON.parse(sessionStorage.getItem(kept) ?? "[]").map(([name, ids]) => [name, new Set(ids)]));
} catch {
  examples = new Map();
}

export function show(main, values, state) {
  let active = values.get("class") && examples.has(values.get("class")) ? values.get("class") : ([...examples.keys()][0] ?? null);
  let of = ""; // which class of the result is looked at; null: all photos, to choose from
  let sort = "unsure";
  const box = h("div", { class: "box" });
  const side = h("aside", { class: "classes", "aria-label": "Classes" });
  const told = h("p", { class: "total", role: "status" });
  const bar = h("div", { class: "toolbar" });
  main.append(h("div", { class: "labelling" }, side, h("div", { class: "rest" }, bar, box)));
  const classOf = (id) => [...examples].find(([, ids]) => ids.has(id))?.[0];

  const add = (name) => {
    const clean = name.trim().slice(0, 200);
    if (!clean) return;
    if (!examples.has(clean)) examples.set(clean, new Set());
    active = clean;
    remember();
    panel();
    side.querySelector("form input").focus();
  };
  const toggle = (photo) => {
    if (!active) return notice("Name a class first, on the left.", { error: true });
    const before = classOf(photo.id);
    if (before) examples.get(before).delete(photo.id);
    if (before !== active) examples.get(active).add(photo.id);
    remember();
    panel();
    grid.remark();
  };
  const panel = () => {
    const rows = [...examples].map(([name, ids]) => {
      const found = result?.classes.find((one) => one.name === name);
      return h(
        "li",
        { class: name === active ? "active" : "" },
        h("button", { class: "quiet name", "aria-pressed": String(name === active), onclick: () => { active = name; panel(); } }, name),
        h("span", { class: "soft" }, count(ids.size, "example"), found && `, ${found.photos.toLocaleString("en")} labelled`),
        h("button", { class: "quiet", "aria-label": `Remove the class ${name}`, title: "Remove", onclick: () => { examples.delete(name); if (active === name) active = [...examples.keys()][0] ?? null; remember(); panel(); grid.remark(); } }, "×"),
        h("span", { class: "examples" }, [...ids].slice(0, 12).map((id) => h("button", { title: "Remove this example", "aria-label": `Remove an example of ${name}`, onclick: () => { ids.delete(id); remember(); panel(); grid.remark(); } }, picture({ id, name: "" }, { alt: "" })))),
      );
    });
    const ready = [...examples.values()].filter((ids) => ids.size).length >= 2;
    const input = h("input", { placeholder: "new class", "aria-label": "Name of a new class", maxLength: 200 });
    fill(
      side,
      h("form", { onsubmit: (event) => { event.preventDefault(); add(input.value); } }, input, h("button", {}, "Add")),
      rows.length ? h("ul", {}, rows) : h("p", { class: "soft" }, "Name two classes or more, and click a few photos of each. Five of each are a good beginning; a class “other” is worth its examples."),
      h("button", { class: "strong", disabled: !ready, onclick: label }, result ? "Label again" : "Label the rest"),
      result && h("p", { class: "soft" }, estimate()),
      result && h("p", { class: "actions" }, ["csv", "parquet"].map((kind) => h("a", { class: "button", href: `api/label/${result.result}/export?kind=${kind}` }, `Export ${kind === "csv" ? "CSV" : "Parquet"}`))),
    );
  };
  const estimate = () => {
    const { examples: tried, right, sure, sure_right: sureRight } = result.left_out;
    if (!tried) return "With one example a class nothing can be said of how right this is.";
    const words = `Leaving each example out, ${right} of ${tried} were labelled right`;
    return sure ? `${words}; of the ${sure} that were sure, ${sureRight}.` : `${words}; none is sure.`;
  };
  const label = () =>
    attempt(async () => {
      told.textContent = "labelling…";
      result = await post("label", { examples: Object.fromEntries([...examples].filter(([, ids]) => ids.size).map(([name, ids]) => [name, [...ids]])) });
      of = "";
      panel();
      look();
    });
  const look = () => {
    const choosing = !result || of === null;
    fill(
      bar,
      result && h("label", {}, h("span", {}, "Show"), h("select", { onchange: (event) => { of = event.target.value === "all photos" ? null : event.target.value; look(); } }, h("option", { value: "", selected: of === "" }, "every label"), result.classes.map((one) => h("option", { value: one.name, selected: of === one.name }, `${one.name} (${one.photos.toLocaleString("en")}, ${one.sure.toLocaleString("en")} sure)`)), h("option", { value: "all photos", selected: of === null }, "all photos, by folder"))),
      !choosing && h("button", { onclick: () => { sort = sort === "unsure" ? "sure" : "unsure"; look(); } }, sort === "unsure" ? "least sure first" : "most sure first"),
      active ? h("span", { class: "soft" }, "A click makes a photo an example of ", h("b", {}, active), ", or takes it back.") : null,
      told,
    );
    grid.reload();
  };
  const grid = new Grid(
    box,
    (offset, limit, signal) => (!result || of === null ? get("photos", { sort: "folder", offset, limit }, signal) : get(`label/${result.result}/photos`, { of, sort, offset, limit }, signal)),
    {
      label: "Photos to label",
      ontotal: (number) => (told.textContent = count(number, "photo")),
      caption: (photo) => {
        const given = classOf(photo.id);
        if (given) return `example: ${given}`;
        return photo.label ? `${photo.label} ${Math.round(photo.confidence * 100)} %${photo.unsure ? " · unsure" : ""}` : "";
      },
      marked: (photo) => Boolean(classOf(photo.id)),
      onopen: (_, photo) => toggle(photo),
      onselect: toggle,
      buttons: (photo) => [
        h("button", { tabIndex: -1, title: "Look closer", "aria-label": `Open ${photo.name}`, onclick: () => openViewer(photo, { local: state.local }) }, "⤢"),
        h("button", { tabIndex: -1, title: "Find similar", "aria-label": `Find photos like ${photo.name}`, onclick: () => go("search", { like: photo.id }) }, "≈"),
      ],
    },
  );
  panel();
  look();
  return { changed() {}, close: () => grid.close() };
}
