// Two photos at the same zoom: side by side, in turn, or what differs.

import { h } from "./page.js";

const MODES = { beside: "Side by side", blink: "Blink", difference: "Difference" };

/** Compare a photo with the first of some, or with any other of them. */
export function compare(files, place = 1) {
  let left = 0;
  let right = Math.min(Math.max(place, 0), files.length - 1) || Math.min(1, files.length - 1);
  let mode = "beside";
  let zoom = { factor: 1, x: 0, y: 0 };
  let timer;
  const stage = h("div", { class: "pair", tabindex: "0", "aria-label": "Both photos; wheel to zoom, drag to move" });
  const bar = h("div", { class: "bar" });
  const dialog = h("dialog", { class: "comparison", "aria-label": "Compare" }, bar, stage);
  const image = (file) => h("img", { src: `api/photos/${file.id}/view?side=2048`, alt: file.name, draggable: false });

  const choose = (which, name) =>
    h("select", { "aria-label": name, onchange: (event) => { if (which === "left") left = Number(event.target.value); else right = Number(event.target.value); draw(); } }, files.map((file, at) => h("option", { value: String(at), selected: at === (which === "left" ? left : right) }, `${at + 1}. ${file.name} ${file.width ? `${file.width} × ${file.height}` : ""}`)));

  const draw = () => {
    clearInterval(timer);
    bar.replaceChildren(
      choose("left", "First photo"),
      choose("right", "Second photo"),
      ...Object.entries(MODES).map(([key, name]) => h("button", { "aria-pressed": String(key === mode), onclick: () => { mode = key; draw(); } }, name)),
      h("button", { onclick: () => { zoom = { factor: 1, x: 0, y: 0 }; move(); }, title: "Fit (0)" }, "Fit"),
      h("button", { class: "close", onclick: () => dialog.close(), "aria-label": "Close" }, "×"),
    );
    stage.className = `pair ${mode}`;
    stage.replaceChildren(h("div", {}, image(files[left])), h("div", {}, image(files[right])));
    if (mode === "blink") timer = setInterval(() => stage.classList.toggle("second"), 700);
    move();
  };
  const move = () => {
    for (const one of stage.querySelectorAll("img")) one.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.factor})`;
  };
  stage.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const box = (event.target.closest(".pair > div") ?? stage).getBoundingClientRect();
      const [x, y] = [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
      const factor = Math.min(30, Math.max(1, zoom.factor * Math.exp(-event.deltaY / 400)));
      zoom = factor === 1 ? { factor, x: 0, y: 0 } : { factor, x: x - ((x - zoom.x) * factor) / zoom.factor, y: y - ((y - zoom.y) * factor) / zoom.factor };
      move();
    },
    { passive: false },
  );
  stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    zoom.x += event.movementX;
    zoom.y += event.movementY;
    move();
  });
  dialog.addEventListener("keydown", (event) => {
    const steps = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 };
    if (event.key in steps) zoom.factor = Math.min(30, Math.max(1, zoom.factor * steps[event.key]));
    else if (event.key === "0") zoom = { factor: 1, x: 0, y: 0 };
    else if (event.key === "ArrowRight" && event.target === stage) right = (right + 1) % files.length;
    else if (event.key === "ArrowLeft" && event.target === stage) right = (right + files.length - 1) % files.length;
    else return;
    event.preventDefault();
    if (event.key.startsWith("Arrow")) draw();
    else move();
  });
  dialog.addEventListener("close", () => {
    clearInterval(timer);
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  draw();
  stage.focus();
}
