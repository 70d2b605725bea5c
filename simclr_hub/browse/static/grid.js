// A grid of any number of photos, of which only what is in sight exists.

import { attempt, h, picture } from "./page.js";

const CHUNK = 200; // photos that are fetched at once
const KEPT = 60; // chunks
const TALLEST = 8_000_000; // pixels: browsers end between 17 and 33 million

/**
 * Show photos that `load(offset, limit, signal)` gives as { total, photos }.
 *
 * options:
 *   onopen(index, photo): Enter or a click.
 *   caption(photo): text below; buttons(photo, index): elements over it; marked(photo): whether it is shown as chosen.
 *   onselect(photo): Space, if given.
 */
export class Grid {
  constructor(element, load, options = {}) {
    this.load = load;
    this.options = options;
    this.total = 0;
    this.focused = 0;
    this.top = 0; // in real pixels, which the scroll bar only approximates in a very tall grid
    this.chunks = new Map();
    this.waiting = new Map();
    this.tiles = new Map();
    this.stage = h("div", { class: "stage", role: "list", "aria-label": options.label ?? "Photos", onkeydown: (event) => this.key(event) });
    this.space = h("div", { class: "space" });
    this.element = element;
    this.element.classList.add("grid");
    this.element.append(this.space, this.stage);
    this.element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(element);
  }

  /** Forget everything and load anew; stay where we are if `keep`. */
  async reload({ keep = false } = {}) {
    for (const controller of this.waiting.values()) controller.abort();
    this.waiting.clear();
    this.chunks.clear();
    if (!keep) this.top = this.focused = 0;
    this.fresh = this.untold = true;
    await this.fetch(keep ? Math.floor(this.firstRow() * this.columns / CHUNK) || 0 : 0);
    this.measure();
  }

  close() {
    this.observer.disconnect();
    for (const controller of this.waiting.values()) controller.abort();
  }

  measure() {
    const width = this.element.clientWidth;
    if (!width) return;
    const least = width < 600 ? 104 : width < 1800 ? 150 : 190;
    this.columns = Math.max(2, Math.floor((width + 6) / (least + 6)));
    this.cell = (width + 6) / this.columns;
    const caption = this.cell < 215 ? 38 : 20; // two lines, or one
    this.element.style.setProperty("--caption", `${caption}px`);
    this.rowHeight = this.cell + (this.options.caption ? caption + 6 : 0);
    this.rows = Math.ceil(this.total / this.columns);
    this.height = this.rows * this.rowHeight;
    this.scale = Math.max(1, this.height / TALLEST);
    this.space.style.height = `${this.height / this.scale}px`;
    this.moveTo(this.top);
    this.draw();
  }

  firstRow() {
    return Math.max(0, Math.floor(this.top / this.rowHeight)) || 0;
  }

  get furthest() {
    return Math.max(0, this.height - this.element.clientHeight);
  }

  moveTo(top) {
    this.top = Math.min(Math.max(0, top), this.furthest);
    const most = this.element.scrollHeight - this.element.clientHeight;
    this.expected = this.scale > 1 ? Math.round((this.top / this.furthest) * most) : this.top;
    this.element.scrollTop = this.expected;
  }

  scrolled() {
    const now = this.element.scrollTop;
    if (Math.abs(now - this.expected) > 1) {
      const most = this.element.scrollHeight - this.element.clientHeight;
      this.top = this.scale > 1 ? (now / most) * this.furthest : now;
      this.expected = now;
    }
    if (!this.asked) this.asked = requestAnimationFrame(() => this.draw());
  }

  wheel(event) {
    if (this.scale === 1 || event.ctrlKey) return;
    event.preventDefault(); // the scroll bar's steps are many rows
    this.moveTo(this.top + event.deltaY * (event.deltaMode ? 40 : 1));
    this.scrolled();
  }

  photo(index) {
    return this.chunks.get(Math.floor(index / CHUNK))?.[index % CHUNK];
  }

  async fetch(chunk) {
    if (this.chunks.has(chunk) || this.waiting.has(chunk)) return;
    const controller = new AbortController();
    this.waiting.set(chunk, controller);
    await attempt(async () => {
      const { total, photos, reasons } = await this.load(chunk * CHUNK, CHUNK, controller.signal);
      if (controller.signal.aborted) return;
      this.chunks.set(chunk, photos);
      if (this.chunks.size > KEPT) this.chunks.delete(this.chunks.keys().next().value);
      if (total !== this.total || this.untold) {
        this.untold = false;
        this.total = total;
        this.options.ontotal?.(total, reasons);
        this.waiting.delete(chunk);
        this.measure();
      } else this.draw();
    });
    this.waiting.delete(chunk);
  }

  /** Make the tiles in sight, and some rows around, and no others. */
  draw() {
    this.asked = 0;
    if (!this.columns || (!this.total && this.waiting.size)) return;
    const first = Math.max(0, this.firstRow() - 2);
    const last = Math.min(this.rows, Math.ceil((this.top + this.element.clientHeight) / this.rowHeight) + 2);
    const from = first * this.columns;
    const to = Math.min(this.total, last * this.columns);
    const needed = new Set();
    for (let chunk = Math.floor(from / CHUNK); chunk <= Math.floor(Math.max(from, to - 1) / CHUNK) && to; chunk++) needed.add(chunk);
    for (const [chunk, controller] of this.waiting) {
      if (!needed.has(chunk)) {
        controller.abort(); // scrolled past
        this.waiting.delete(chunk);
      }
    }
    for (const chunk of needed) this.fetch(chunk);
    for (const [index, tile] of this.tiles) {
      if (this.fresh || index < from || index >= to) {
        tile.remove();
        this.tiles.delete(index);
      }
    }
    this.fresh = false;
    for (let index = from; index < to; index++) {
      const photo = this.photo(index);
      let tile = this.tiles.get(index);
      if (tile && tile.photo !== photo) {
        const fresh = this.tile(index, photo);
        tile.replaceWith(fresh);
        this.tiles.set(index, (tile = fresh));
      } else if (!tile) {
        tile = this.tile(index, photo);
        this.tiles.set(index, tile);
        this.stage.append(tile);
      }
      this.place(tile, index);
    }
    // In a very tall grid the stage lies at the top of what is in sight: there a row's own place is out of reach.
    this.stage.style.transform = this.scale > 1 ? `translateY(${this.element.scrollTop}px)` : "";
    this.options.onmove?.(Math.min(this.total - 1, this.firstRow() * this.columns), this.photo(this.firstRow() * this.columns));
    if (this.wantsFocus) {
      const tile = this.tiles.get(this.focused);
      if (tile) {
        this.wantsFocus = false;
        tile.firstChild.focus({ preventScroll: true });
      }
    }
  }

  place(tile, index) {
    const row = Math.floor(index / this.columns);
    const where = `translate(${(index % this.columns) * this.cell}px, ${row * this.rowHeight - (this.scale > 1 ? this.top : 0)}px)`;
    if (tile.style.transform !== where) tile.style.transform = where;
    if (tile.width !== this.cell) {
      tile.width = this.cell;
      tile.style.width = `${this.cell - 6}px`;
      tile.style.height = `${this.rowHeight - 6}px`;
    }
    tile.firstChild.tabIndex = index === this.focused ? 0 : -1;
  }

  tile(index, photo) {
    const caption = photo && this.options.caption?.(photo);
    const marked = photo && this.options.marked?.(photo);
    const open = h(
      "button",
      {
        class: "open",
        "aria-label": photo ? [photo.name, photo.date, caption].filter(Boolean).join(", ") : "loading",
        title: photo && `${photo.name}\n${photo.folder}`,
        onclick: () => {
          this.focused = index;
          if (photo) this.options.onopen?.(index, photo);
        },
        onfocus: () => (this.focused = index),
      },
      photo ? picture(photo, { alt: "" }) : h("span", { class: "waiting" }),
    );
    const tile = h("div", { class: marked ? "tile marked" : "tile", role: "listitem", "aria-posinset": String(index + 1), "aria-setsize": String(this.total) }, open);
    tile.photo = photo;
    if (photo) {
      const buttons = this.options.buttons?.(photo, index);
      if (buttons) tile.append(h("span", { class: "over" }, buttons));
      if (caption !== undefined) tile.append(h("span", { class: "caption" }, caption));
    }
    return tile;
  }

  /** Draw the tiles again whose mark may have changed. */
  remark() {
    this.fresh = true;
    this.draw();
  }

  focus(index) {
    this.focused = Math.min(Math.max(0, index), this.total - 1);
    const row = Math.floor(this.focused / this.columns);
    const seen = this.element.clientHeight;
    if (row * this.rowHeight < this.top) this.moveTo(row * this.rowHeight);
    else if ((row + 1) * this.rowHeight > this.top + seen) this.moveTo((row + 1) * this.rowHeight - seen);
    this.wantsFocus = true;
    this.draw();
  }

  jump(index) {
    this.focused = index;
    this.moveTo(Math.floor(index / this.columns) * this.rowHeight);
    this.draw();
  }

  key(event) {
    if (!event.target.classList.contains("open")) return; // a button over a photo
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight)) * this.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    const photo = this.photo(this.focused);
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in steps) this.focus(this.focused + steps[event.key]);
    else if (event.key === "Enter" && photo) this.options.onopen?.(this.focused, photo);
    else if (event.key === " " && photo && this.options.onselect) this.options.onselect(photo);
    else return;
    event.preventDefault();
  }
}

/** A `load` for photos that are all there already. */
export const loaded = (photos) => async (offset, limit) => ({ total: photos.length, photos: photos.slice(offset, offset + limit) });
