// Groups of duplicates to look through, what goes of them, and the plan that moves it.

import { compare } from "./compare.js";
import { attempt, bytes, copy, count, fill, get, go, h, notice, picture, post, save } from "./page.js";

export const title = "Duplicates";
const TIERS = {
  "same-bytes": ["Exact copies", "The same bytes: any one of them is enough."],
  "same-picture": ["Same picture", "One picture, re-encoded, resized or edited. Look before you tick."],
  similar: ["Similar", "Different pictures of much the same thing, such as a burst. Not duplicates: nothing here is one too many."],
};
const PAGE = 40;
const SPANS = { 3: "double", 4: "double", 5: "triple", 6: "triple", 7: "wide", 8: "wide", 9: "wide" }; // two files fit one column
// What was ticked, which outlives a change of view but not of the page.
const ticks = new Map();
const chosen = { tiers: new Set(["same-bytes"]), target: "", kind: ".sh", never_from: [], prefer: [] };

export function show(main, values, state) {
  const tier = values.get("tier") in TIERS ? values.get("tier") : "same-bytes";
  const sort = values.get("sort") === "path" ? "path" : "bytes";
  const controller = new AbortController();
  const list = h("div", { class: "groups" });
  const tabs = h("div", { class: "tiers", role: "group", "aria-label": "Kinds of duplicates" });
  const told = h("p", { class: "total", role: "status" });
  const looking = h("p", { class: "empty" });
  const footer = h("footer", { class: "plan" });
  const end = h("div", { class: "end" });
  const box = h("div", { class: "box scroll", tabindex: "-1" }, looking, list, end);
  let offset = 0;
  let total = null;
  let busy = false;
  let running = false;
  const rules = () => ({ never_from: chosen.never_from, prefer: chosen.prefer });

  const load = async () => {
    if (busy || (total !== null && offset >= total)) return;
    busy = true;
    await attempt(async () => {
      const found = await post("duplicates", { tier, sort, offset, limit: PAGE, ...rules() }, { signal: controller.signal });
      if (!found.found) {
        if (!running) find();
        total = 0;
        return;
      }
      fill(looking, found.stale && "The index has changed since. ", found.stale && h("button", { onclick: find }, "Look again"));
      total = found.total;
      fill(tabs, Object.entries(TIERS).map(([key, [name]]) => h("button", { "aria-pressed": String(key === tier), onclick: () => go("duplicates", { tier: key, sort }) }, `${name} ${found.counts[key].toLocaleString("en")}`)));
      told.textContent = tier === "similar" ? count(total, "group") : `${count(total, "group")}, ${bytes(found.bytes)} to win`;
      if (!offset && tier !== "similar") list.append(...found.folders.map(contained));
      list.append(...found.groups.map(card));
      offset += found.groups.length;
      if (!total) fill(looking, "None.");
    });
    busy = false;
    if (total > offset && end.getBoundingClientRect().top < innerHeight + 600) load();
  };
  const restart = () => {
    list.replaceChildren();
    offset = 0;
    total = null;
    load();
    sum();
  };
  const find = () => attempt(async () => {
    fill(looking, "Looking for duplicates…");
    try {
      await post("jobs/duplicates");
    } catch (error) {
      if (error.status !== 409) throw error; // another window asked
    }
    running = true;
  });
  const contained = ({ folder, inside, photos }) =>
    h(
      "section",
      { class: "contained" },
      h("p", {}, h("b", {}, folder), ` (${count(photos, "photo")}) lies wholly inside `, h("b", {}, inside)),
      h("button", { onclick: () => { chosen.prefer = [inside, ...chosen.prefer.filter((one) => one !== inside)]; notice("Where both have a photo, that folder's stays."); restart(); showRules(); } }, "Keep the latter"),
    );

  const card = (group) => {
    const [first] = group.files;
    const figures = group.files.map((file) => figure(group, file));
    const section = h(
      "section",
      { class: `group ${SPANS[Math.min(group.files.length, 9)] ?? ""}` },
      h("p", {}, h("b", {}, group.tier === "similar" ? "like " : "keep ", first.name), group.why && `: ${group.why}`),
      h("div", { class: "files" }, figures),
      group.more > 0 && h("p", { class: "soft" }, `and ${count(group.more, "more file")}`),
      h(
        "p",
        { class: "actions" },
        group.files.length > 1 && h("button", { onclick: () => compare(group.files) }, "Compare"),
        h("button", { disabled: state.read_only, onclick: () => attempt(async () => {
          const contents = new Map(group.files.map((file) => [file.id.slice(0, 64), file.id]));
          if (contents.size < 2) return notice("These hold the same bytes: they are one picture.", { error: true });
          await post("duplicates/distinct", { ids: [...contents.values()] });
          section.remove();
          notice("Recorded: these are different pictures.");
          sum();
        }) }, "Not duplicates"),
        group.tier === "similar" && h("button", { onclick: (event) => propose(group, figures, event.target) }, "Which is best?"),
      ),
    );
    return section;
  };
  const figure = (group, file) => {
    const movable = file.movable;
    const ticked = ticks.get(file.id) ?? chosen.tiers.has(file.relation.replace(" ", "-"));
    const words = file.role === "keep" ? (group.tier === "similar" ? "" : "stays") : file.same_file ? "same file" : file.role.replace("-", " ");
    const box = movable && h("input", { type: "checkbox", checked: ticked, onchange: (event) => { ticks.set(file.id, event.target.checked); mark(); sum(); } });
    const element = h(
      "figure",
      {},
      h("button", { class: "open", "aria-label": `Compare ${file.name} with the others`, onclick: () => compare(group.files, group.files.indexOf(file)) }, picture(file, { alt: "" })),
      h(
        "figcaption",
        {},
        h("b", {}, words, file.score < 1 && ` ${file.score.toFixed(3)}`),
        movable && h("label", { class: "check" }, box, h("span", {}, "goes")),
        h("span", {}, file.name),
        h("span", { class: "soft" }, file.facts.join(" · ")),
        h("span", { class: "soft" }, file.folder.split("/").flatMap((part, at) => (at ? ["/", h("wbr"), part] : [part]))),
        file.pair && h("span", { class: "soft" }, `one shot with ${file.pair}: both stay`),
        h("span", { class: "quality" }),
      ),
    );
    const mark = () => element.classList.toggle("goes", Boolean(box && box.checked));
    mark();
    return element;
  };
  /** Measure the files of a similar group, and say which is sharpest and which best exposed; nobody is told to keep it. */
  const propose = (group, figures, button) => attempt(async () => {
    button.disabled = true;
    const measured = await Promise.all(group.files.map((file) => get(`photos/${file.id}/quality`, {}, controller.signal)));
    const best = (key) => measured.indexOf(measured.reduce((a, b) => (key(b) > key(a) ? b : a)));
    const words = [["sharpest", best((one) => one.sharpness)], ["best exposed", best((one) => -one.clipped - Math.abs(one.brightness - 0.45) / 2)]];
    figures.forEach((element, at) => (element.querySelector(".quality").textContent = words.filter(([, place]) => place === at).map(([word]) => word).join(", ")));
  });

  const planned = () => ({ tiers: [...chosen.tiers], ticks: Object.fromEntries(ticks), target: chosen.target, kind: chosen.kind, ...rules() });
  const sums = h("b", { role: "status" });
  const sum = () => attempt(async () => {
    const { files, bytes: size } = await post("duplicates/summary", planned(), { signal: controller.signal });
    sums.textContent = `${count(files, "file")} ticked, ${bytes(size)}`;
  });
  const rulesBox = h("div", { class: "rules" });
  const showRules = () => {
    const field = (name, label) =>
      h("label", {}, h("span", {}, label), h("textarea", { rows: 2, placeholder: "/a/folder, one a line", onchange: (event) => { chosen[name] = event.target.value.split("\n").map((line) => line.trim()).filter(Boolean); restart(); } }, chosen[name].join("\n")));
    fill(rulesBox, field("prefer", "These stay first"), field("never_from", "Nothing goes from"));
  };
  showRules();
  fill(
    footer,
    sums,
    Object.entries(TIERS).slice(0, 2).map(([key, [name]]) => h("label", { class: "check" }, h("input", { type: "checkbox", checked: chosen.tiers.has(key), onchange: (event) => { if (event.target.checked) chosen.tiers.add(key); else chosen.tiers.delete(key); restart(); } }), h("span", {}, name.toLowerCase()))),
    h("details", { class: "which" }, h("summary", {}, "Which stays"), rulesBox),
    h("label", { class: "target" }, h("span", {}, "Move to"), h("input", { value: chosen.target, placeholder: "/home/you/moved copies", onchange: (event) => (chosen.target = event.target.value.trim()) })),
    h("select", { "aria-label": "Kind of plan", onchange: (event) => (chosen.kind = event.target.value) }, [[".sh", "shell script"], [".ps1", "PowerShell"], [".csv", "list (CSV)"]].map(([kind, name]) => h("option", { value: kind, selected: kind === chosen.kind }, name))),
    h("button", { class: "strong", onclick: () => attempt(async () => showPlan(await post("duplicates/plan", planned(), { as: "text" }))) }, "Show the plan"),
  );
  fill(main, h("div", { class: "toolbar" }, tabs, told, h("button", { "aria-pressed": String(sort === "path"), onclick: () => go("duplicates", { tier, sort: sort === "path" ? "bytes" : "path" }) }, sort === "path" ? "by path" : "by size")), h("p", { class: "meaning" }, TIERS[tier][1]), box, tier !== "similar" && footer);
  const observer = new IntersectionObserver(() => total !== null && load(), { root: box, rootMargin: "600px" });
  observer.observe(end);
  restart();
  return {
    changed() {},
    told: (now) => {
      const was = running;
      running = now.jobs.duplicates?.state === "running";
      if (running) looking.textContent = `Looking for duplicates… ${now.jobs.duplicates.total ? `${Math.floor((100 * now.jobs.duplicates.done) / now.jobs.duplicates.total)} %` : ""}`;
      else if (was) restart();
    },
    close: () => {
      controller.abort();
      observer.disconnect();
    },
  };
}

/** Show a plan before it is saved; only the person runs it. */
function showPlan(text) {
  const dialog = h(
    "dialog",
    { class: "sheet", "aria-label": "Plan" },
    h("h2", {}, "The plan"),
    h("p", {}, "Nothing has been moved. Save it, read it, and run it yourself: each file is checked again before it moves, and ", h("code", {}, "undo"), " brings all back."),
    h("pre", { tabindex: "0" }, text.length > 200_000 ? `${text.slice(0, 200_000)}\n… (the file has all of it)` : text),
    h(
      "p",
      { class: "actions" },
      h("button", { class: "strong", onclick: () => save(`plan${chosen.kind}`, text) }, `Save plan${chosen.kind}`),
      h("button", { onclick: () => copy(text) }, "Copy"),
      h("button", { onclick: () => dialog.close() }, "Close"),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
