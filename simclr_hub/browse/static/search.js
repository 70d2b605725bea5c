// Photos like some and not like others: clicked, dropped, pasted or chosen.

import { Grid, loaded } from "./grid.js";
import { filterBar, readFilters } from "./filters.js";
import { attempt, count, go, h, notice, picture, post, share } from "./page.js";
import { openViewer } from "./viewer.js";

export const title = "Search";
const K = 90; // an index of a million compares few candidates up to 100, and all beyond

/** Search for dropped or chosen files; the address then names what the server keeps of them. */
export async function searchFiles(files, values = {}) {
  const added = await attempt(async () => {
    const ids = [];
    for (const file of files) ids.push((await post("uploads", file)).id);
    return ids;
  });
  if (added?.length) go("search", { ...values, like: [...(values.like ?? []), ...added] });
}

export function show(main, values, state) {
  const like = values.getAll("like");
  const unlike = values.getAll("unlike");
  const weight = Number(values.get("weight") ?? 0.5);
  const filters = readFilters(values);
  const copies = values.get("copies") === "1";
  const now = { like, unlike, weight: weight === 0.5 ? "" : weight, copies: copies ? "1" : "", ...filters };
  const change = (some) => go("search", { ...now, ...some });
  const without = (list, id) => list.filter((one) => one !== id);
  const chooser = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => searchFiles(chooser.files, now) });
  const chip = (id, kind) =>
    h(
      "span",
      { class: `chip ${kind}` },
      picture({ id, name: kind === "like" ? "like this" : "not like this" }),
      h("button", { onclick: () => change({ like: without(like, id), unlike: without(unlike, id) }), "aria-label": kind === "like" ? "Remove this photo from what is searched for" : "Remove this photo from what is not wanted" }, "×"),
    );
  const told = h("p", { class: "total", role: "status" });
  const box = h("div", { class: "box" });
  main.append(
    h(
      "div",
      { class: "toolbar" },
      h("div", { class: "chips", "aria-label": "Searched for", role: "group" }, like.length > 0 && h("b", {}, "Like"), like.map((id) => chip(id, "like")), unlike.length > 0 && h("b", {}, "not like"), unlike.map((id) => chip(id, "unlike"))),
      h("button", { onclick: () => chooser.click() }, "Add a photo…"),
      chooser,
      unlike.length > 0 && h("label", {}, h("span", {}, "“Not” counts"), h("input", { type: "range", min: 0, max: 2, step: 0.1, value: String(weight), onchange: (event) => change({ weight: event.target.value }) })),
      h("label", { class: "check" }, h("input", { type: "checkbox", checked: copies, onchange: (event) => change({ copies: event.target.checked ? "1" : "" }) }), h("span", {}, "every copy")),
      told,
      filterBar(filters, (some) => go("search", { like, unlike, weight: now.weight, copies: now.copies, ...some }), state.roots),
    ),
    box,
  );
  if (!like.length) {
    told.textContent = unlike.length ? "Add a photo that results should be like." : "";
    box.append(h("p", { class: "empty" }, "Click ≈ on a photo, or drop, paste or add one from anywhere, to see what is like it."));
    return { changed() {}, close() {} };
  }
  let grid;
  const controller = new AbortController();
  attempt(async () => {
    const { matches, reasons } = await post("search", { like, unlike, weight, k: K, all_copies: copies, filters }, { signal: controller.signal });
    told.textContent = matches.length ? `${count(matches.length, "photo")}, the most alike first` : "No photo found";
    if (!matches.length) box.append(h("p", { class: "empty" }, reasons.join("; ")));
    grid = new Grid(box, loaded(matches), {
      label: "Results",
      caption: (photo) => [photo.closer_than === null ? photo.score.toFixed(3) : `closer than ${share(photo.closer_than)}`, photo.copies ? `+${count(photo.copies, "copy", "copies")}` : ""].filter(Boolean).join(" · "),
      buttons: (photo) => [
        h("button", { tabIndex: -1, title: "More like this", "aria-label": `More like ${photo.name}`, onclick: () => change({ like: [...without(like, photo.id), photo.id], unlike: without(unlike, photo.id) }) }, "+"),
        h("button", { tabIndex: -1, title: "Not like this", "aria-label": `Not like ${photo.name}`, onclick: () => change({ unlike: [...without(unlike, photo.id), photo.id], like: without(like, photo.id) }) }, "−"),
        h("button", { tabIndex: -1, title: "Search for this one", "aria-label": `Search for photos like ${photo.name}`, onclick: () => change({ like: [photo.id], unlike: [] }) }, "≈"),
      ],
      onopen: async (index) => {
        let at = index;
        await openViewer(matches[index], { local: state.local, at: async (step) => matches[at + step] && matches[(at += step)] });
        grid.focus(at);
      },
    });
    await grid.reload();
  });
  return {
    changed() {}, // results stay until they are asked for again
    close: () => {
      controller.abort();
      grid?.close();
    },
  };
}

/** Take photos that are dropped or pasted anywhere on the page. */
export function acceptPhotos(currentValues) {
  const images = (items) => [...items].filter((item) => item.kind === "file" && (item.type.startsWith("image/") || !item.type)).map((item) => item.getAsFile());
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const files = images(event.dataTransfer.items);
    if (files.length) searchFiles(files, currentValues());
    else notice("This is no photo.", { error: true });
  });
  document.addEventListener("paste", (event) => {
    const files = images(event.clipboardData.items);
    if (files.length) searchFiles(files, currentValues());
  });
}
