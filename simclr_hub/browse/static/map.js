// The collection as a map: dots that become photos when one comes near; clusters, odd, dark and blank photos.

import { attempt, count, fill, get, h, loadInTurn, picture, post, thumbnail } from "./page.js";
import { openViewer } from "./viewer.js";

export const title = "Map";
const SHOWN = 200; // thumbnails at once
const LISTS = { clusters: "Clusters", odd: "Odd ones out", dark: "Dark", blank: "Blank", blurred: "Blurred" };

export function show(main, values, state) {
  const canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": "Map of the photos; arrows move, plus and minus zoom. The lists beside it hold photos as buttons." });
  const stage = h("div", { class: "mapstage" }, canvas);
  const side = h("aside", { class: "maplists", "aria-label": "Lists" });
  const told = h("p", { class: "total", role: "status" });
  const redraw = h("button", { onclick: () => begin() }, "Draw anew");
  const controller = new AbortController();
  let map = null;
  let running = false;
  let list = "clusters";
  let view = { x: 0, y: 0, scale: 1 }; // the map's point in the middle, and zoom
  let chosen = -1; // cluster
  let frame = 0;
  const images = new Map();

  main.append(h("div", { class: "toolbar" }, h("button", { onclick: () => zoom(1.6) , "aria-label": "Zoom in" }, "+"), h("button", { onclick: () => zoom(1 / 1.6), "aria-label": "Zoom out" }, "−"), h("button", { onclick: () => { view = { x: 0, y: 0, scale: 1 }; chosen = -1; ask(); } }, "All"), told, redraw), h("div", { class: "mapping" }, stage, side));

  const load = () => attempt(async () => {
    const found = await get("map", {}, controller.signal);
    if (!found.found) {
      told.textContent = "drawing the map…";
      if (!running) await begin();
      return;
    }
    map = found;
    told.textContent = found.ids.length < found.total ? `${count(found.ids.length, "photo")}, drawn by chance of ${found.total.toLocaleString("en")}` : count(found.ids.length, "photo");
    redraw.hidden = !found.stale;
    lists();
    ask();
  });
  const begin = () => attempt(async () => {
    try {
      await post("jobs/map");
    } catch (error) {
      if (error.status !== 409) throw error; // another window asked
    }
    running = true;
    told.textContent = "drawing the map…";
  });

  const lists = () => {
    const photos = (some) => h("div", { class: "strip" }, some.map((photo) => h("button", { onclick: () => openViewer(photo, { local: state.local }), "aria-label": photo.name, title: photo.name }, picture(photo, { alt: "" }))));
    fill(
      side,
      h("div", { class: "tiers", role: "group", "aria-label": "Lists" }, Object.entries(LISTS).map(([key, name]) => h("button", { "aria-pressed": String(key === list), onclick: () => { list = key; lists(); } }, `${name}${["clusters", "odd", "blurred"].includes(key) ? "" : ` ${map[key].length}`}`))),
      list === "clusters"
        ? map.clusters.map((one) => h("section", {}, h("button", { class: "quiet", "aria-pressed": String(one.cluster === chosen), onclick: () => { chosen = chosen === one.cluster ? -1 : one.cluster; if (chosen >= 0) goTo(chosen); lists(); ask(); } }, h("i", { class: "dot", "data-colour": String(one.cluster % 12) }), count(one.size, "photo")), photos(one.typical.slice(0, 6))))
        : [
            list === "blurred" && h("button", { onclick: () => attempt(() => post("jobs/blurred")) }, map.blurred.length ? "Measure new photos" : "Look for blurred photos, which reads them all"),
            list === "blurred" && map.blurred.length > 0 && h("p", { class: "soft" }, "The least sharp first."),
            map[list].length ? photos(map[list]) : list !== "blurred" && h("p", { class: "soft" }, "None."),
          ],
    );
  };
  const goTo = (cluster) => {
    const mine = map.cluster.flatMap((one, at) => (one === cluster ? [at] : []));
    const middle = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];
    view = { x: middle(mine.map((at) => map.x[at])), y: middle(mine.map((at) => map.y[at])), scale: Math.max(view.scale, 4) };
  };

  const colours = () => Array.from({ length: 12 }, (_, at) => `hsl(${at * 30} 65% ${matchMedia("(prefers-color-scheme: dark)").matches ? 65 : 45}%)`);
  const place = () => {
    const { clientWidth: width, clientHeight: height } = stage;
    const side = Math.min(width, height);
    // Drawn a little wider, or higher, than it is: distances far apart mean little in such a map, and room is there.
    const [across, down] = [width, height].map((one) => (Math.min(one, 1.7 * side) / 2.3) * view.scale);
    return { width, height, across, down, at: (x, y) => [width / 2 + (x - view.x) * across, height / 2 + (y - view.y) * down] };
  };
  const image = (id) => {
    let one = images.get(id);
    if (!one) {
      one = loadInTurn(new Image(), thumbnail(id), canvas);
      one.onload = ask;
      images.set(id, one);
      if (images.size > 600) images.delete(images.keys().next().value);
    }
    return one;
  };
  const ask = () => (frame = frame || requestAnimationFrame(paint));
  const paint = () => {
    frame = 0;
    if (!map) return;
    const { width, height, at } = place();
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const inside = [];
    const palette = colours();
    const size = Math.min(6, 1.6 + view.scale / 4);
    for (let one = 0; one < map.ids.length; one++) {
      const [x, y] = at(map.x[one], map.y[one]);
      if (x < -40 || y < -40 || x > width + 40 || y > height + 40) continue;
      inside.push([one, x, y]);
      pen.globalAlpha = chosen < 0 || map.cluster[one] === chosen ? 0.85 : 0.15;
      pen.fillStyle = palette[map.cluster[one] % 12];
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
    pen.globalAlpha = 1;
    const edge = width < 600 ? 44 : width < 1800 ? 56 : 80;
    const taken = new Set();
    let drawn = 0;
    for (const [one, x, y] of inside) {
      if (chosen >= 0 && map.cluster[one] !== chosen) continue;
      const cell = `${Math.floor(x / (edge + 6))},${Math.floor(y / (edge + 6))}`;
      if (taken.has(cell) || drawn >= SHOWN) continue; // one a place, so that photos do not hide one another
      taken.add(cell);
      drawn++;
      const shown = image(map.ids[one]);
      if (!shown.complete || !shown.naturalWidth) continue;
      const crop = Math.min(shown.naturalWidth, shown.naturalHeight);
      pen.drawImage(shown, (shown.naturalWidth - crop) / 2, (shown.naturalHeight - crop) / 2, crop, crop, x - edge / 2, y - edge / 2, edge, edge);
    }
  };
  const near = (event) => {
    const { at } = place();
    const box = stage.getBoundingClientRect();
    let best = -1;
    let least = 28 ** 2;
    for (let one = 0; one < map.ids.length; one++) {
      const [x, y] = at(map.x[one], map.y[one]);
      const distance = (x - event.clientX + box.x) ** 2 + (y - event.clientY + box.y) ** 2;
      if (distance < least) [best, least] = [one, distance];
    }
    return best;
  };
  const zoom = (by, event) => {
    const before = place();
    const box = stage.getBoundingClientRect();
    const [x, y] = event ? [event.clientX - box.x - before.width / 2, event.clientY - box.y - before.height / 2] : [0, 0];
    const scale = Math.min(200, Math.max(0.5, view.scale * by));
    const less = 1 - view.scale / scale;
    view = { x: view.x + (x / before.across) * less, y: view.y + (y / before.down) * less, scale };
    ask();
  };
  const pointers = new Map();
  let moved = 0;
  stage.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), event); }, { passive: false });
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); pointers.set(event.pointerId, event); moved = 0; });
  stage.addEventListener("pointermove", (event) => {
    if (!map) return;
    const before = pointers.get(event.pointerId);
    if (!before) {
      const one = near(event);
      canvas.style.cursor = one < 0 ? "grab" : "pointer";
      return;
    }
    if (pointers.size === 2) {
      const [other] = [...pointers.values()].filter((one) => one.pointerId !== event.pointerId);
      const distance = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
      zoom(distance(event) / Math.max(1, distance(before)), event);
    } else {
      const { across, down } = place();
      view.x -= (event.clientX - before.clientX) / across;
      view.y -= (event.clientY - before.clientY) / down;
    }
    moved += Math.abs(event.clientX - before.clientX) + Math.abs(event.clientY - before.clientY);
    pointers.set(event.pointerId, event);
    ask();
  });
  stage.addEventListener("pointerup", (event) => {
    pointers.delete(event.pointerId);
    if (!map || moved > 6) return;
    const one = near(event);
    if (one >= 0) attempt(async () => openViewer(await get(`photos/${map.ids[one]}`), { local: state.local }));
  });
  stage.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("keydown", (event) => {
    const step = 0.2 / view.scale;
    const keys = { ArrowLeft: () => (view.x -= step), ArrowRight: () => (view.x += step), ArrowUp: () => (view.y -= step), ArrowDown: () => (view.y += step), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => (view = { x: 0, y: 0, scale: 1 }) };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
    ask();
  });
  const observer = new ResizeObserver(ask);
  observer.observe(stage);
  load();
  return {
    changed() {
      redraw.hidden = false;
    },
    told: (now) => {
      const was = running;
      const job = now.jobs.map?.state === "running" ? now.jobs.map : now.jobs.blurred;
      running = job?.state === "running";
      if (was && !running) {
        if (now.jobs.map?.state === "failed") told.textContent = now.jobs.map.message;
        else load();
      }
    },
    close: () => {
      controller.abort();
      observer.disconnect();
    },
  };
}
