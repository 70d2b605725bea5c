// One photo at a time: large, zoomed, with what is known of it and what is like it.

import { attempt, bytes, copy, count, fill, get, go, h, picture, post, share, thumbnail } from "./page.js";

const NAMES = { taken: "Taken", camera: "Camera", format: "Format", width: "Size", bytes: "File", modified: "Changed", gps: "Place" };

/**
 * Open a photo; `at(step)` gives its neighbour (1 next, -1 before) or undefined; `local` offers its folder.
 * Returns once it is closed, with the photo that was shown last.
 */
export function openViewer(photo, { at = async () => undefined, local = false, onchange = () => {} } = {}) {
  return new Promise((resolve) => new Viewer(photo, { at, local, onchange, resolve }));
}

class Viewer {
  constructor(photo, options) {
    this.options = options;
    this.stage = h("div", { class: "canvas" });
    this.aside = h("aside", { "aria-label": "About this photo" });
    this.dialog = h(
      "dialog",
      { class: "viewer", "aria-label": "Photo" },
      h(
        "div",
        { class: "bar" },
        h("button", { onclick: () => this.step(-1), "aria-label": "Previous photo", title: "Previous (←)" }, "←"),
        h("button", { onclick: () => this.step(1), "aria-label": "Next photo", title: "Next (→)" }, "→"),
        h("button", { onclick: () => this.zoom(1.5), "aria-label": "Zoom in", title: "Zoom in (+)" }, "+"),
        h("button", { onclick: () => this.zoom(1 / 1.5), "aria-label": "Zoom out", title: "Zoom out (-)" }, "−"),
        h("button", { onclick: () => this.fit(), title: "Fit (0)" }, "Fit"),
        h("button", { class: "strong", onclick: () => this.similar(), title: "Search for photos like this (s)" }, "Find similar"),
        h("button", { class: "close", onclick: () => this.dialog.close(), "aria-label": "Close", title: "Close (Esc)" }, "×"),
      ),
      this.stage,
      this.aside,
    );
    this.dialog.addEventListener("close", () => {
      this.controller?.abort();
      window.removeEventListener("hashchange", this.left);
      this.dialog.remove();
      options.resolve(this.photo);
    });
    this.left = () => this.dialog.close();
    window.addEventListener("hashchange", this.left);
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("dblclick", (event) => (this.factor > 1 ? this.fit() : this.zoom(3, event)));
    this.pointers = new Map();
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) this.stage.addEventListener(kind, (event) => this.pointer(event));
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.show(photo);
  }

  async show(photo) {
    this.photo = photo;
    this.controller?.abort();
    this.controller = new AbortController();
    this.options.onchange(photo);
    this.dialog.setAttribute("aria-label", photo.name);
    const small = h("img", { class: "small", src: thumbnail(photo.id), alt: "" });
    const image = h("img", { alt: photo.name, src: `api/photos/${photo.id}/view?side=2048`, draggable: false });
    image.addEventListener("load", () => small.remove());
    image.addEventListener("error", () => {
      small.remove();
      image.replaceWith(h("p", { class: "gone" }, "This photo cannot be read any more. Its folder may be unplugged, or the file was moved or changed: sync it."));
    });
    this.image = image;
    this.stage.replaceChildren(small, image);
    this.fit();
    this.aside.replaceChildren(h("h2", {}, photo.name));
    await attempt(async () => this.tell(await get(`photos/${photo.id}`, {}, this.controller.signal)));
    await attempt(async () => this.alike(photo));
  }

  tell(details) {
    const { metadata } = details;
    const facts = Object.entries(NAMES).flatMap(([key, name]) => {
      const value = metadata[key];
      if (value === undefined || value === null) return [];
      const text = {
        width: () => `${metadata.width} × ${metadata.height} pixels`,
        bytes: () => bytes(value),
        modified: () => new Date(value * 1000).toISOString().slice(0, 19).replace("T", " "),
        taken: () => String(value).replace("T", " "),
        gps: () => value.map((degrees) => degrees.toFixed(5)).join(", "),
      }[key];
      return [h("dt", {}, name), h("dd", {}, text ? text() : String(value))];
    });
    fill(
      this.aside,
      h("h2", {}, details.name),
      h("p", { class: "path" }, details.folder),
      h("dl", {}, facts),
      h(
        "p",
        { class: "actions" },
        h("a", { class: "button", href: `api/photos/${details.id}/original`, target: "_blank", rel: "noopener" }, "Original"),
        h("button", { onclick: () => copy(details.path) }, "Copy path"),
        h("button", { onclick: () => go("photos", { sort: "folder", folder_of: details.id }) }, "Its folder’s photos"),
        this.options.local && h("button", { onclick: () => attempt(() => post("reveal", { id: details.id })) }, "Open folder"),
      ),
      details.copies.length > 0 && h("section", {}, h("h3", {}, `${count(details.copies.length, "exact copy", "exact copies")}`), h("ul", { class: "paths" }, details.copies.slice(0, 50).map((one) => h("li", {}, `${one.folder}/${one.name}`)))),
      h("section", { class: "alike" }),
    );
  }

  async alike(photo) {
    const { matches } = await post("search", { like: [photo.id], k: 12 }, { signal: this.controller.signal });
    const place = this.aside.querySelector(".alike");
    place?.replaceChildren(
      h("h3", {}, "Most like it"),
      h("div", { class: "strip" }, matches.map((match) => h("button", { onclick: () => this.show(match), title: `${match.name}\ncloser than ${share(match.closer_than)}`, "aria-label": `${match.name}, closer than ${share(match.closer_than)}` }, picture(match, { alt: "" })))),
    );
  }

  async step(by) {
    const other = await attempt(() => this.options.at(by, this.photo));
    if (other) this.show(other);
  }

  similar() {
    this.dialog.close();
    go("search", { like: this.photo.id });
  }

  fit() {
    this.factor = 1;
    this.x = this.y = 0;
    this.draw();
  }

  /** Zoom by a factor around a pointer, or the middle. */
  zoom(by, at) {
    const box = this.stage.getBoundingClientRect();
    const factor = Math.min(20, Math.max(1, this.factor * by));
    const [x, y] = at ? [at.clientX - box.x - box.width / 2, at.clientY - box.y - box.height / 2] : [0, 0];
    this.x = x - ((x - this.x) * factor) / this.factor;
    this.y = y - ((y - this.y) * factor) / this.factor;
    this.factor = factor;
    if (factor === 1) this.x = this.y = 0;
    this.draw();
  }

  draw() {
    if (this.image) this.image.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.factor})`;
    this.stage.classList.toggle("zoomed", this.factor > 1);
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), event);
  }

  /** Drag with one pointer, pinch with two, swipe to the next photo where nothing is zoomed. */
  pointer(event) {
    const before = this.pointers.get(event.pointerId);
    if (event.type === "pointerdown") {
      this.stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
      this.start = event;
      return;
    }
    if (!before) return;
    if (event.type === "pointermove") {
      if (this.pointers.size === 2) {
        const [other] = [...this.pointers.values()].filter((one) => one.pointerId !== event.pointerId);
        const distance = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
        this.zoom(distance(event) / Math.max(1, distance(before)), event);
        this.start = null;
      } else if (this.factor > 1) {
        this.x += event.clientX - before.clientX;
        this.y += event.clientY - before.clientY;
        this.draw();
      }
      this.pointers.set(event.pointerId, event);
      return;
    }
    this.pointers.delete(event.pointerId);
    const moved = this.start ? event.clientX - this.start.clientX : 0;
    if (event.pointerType === "touch" && this.factor === 1 && Math.abs(moved) > 60) this.step(moved < 0 ? 1 : -1);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), 0: () => this.fit(), s: () => this.similar() };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }
}
