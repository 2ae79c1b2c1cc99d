// An image with boxes that can be zoomed and moved; its element has the shape of the image, so that nothing is black.
const SVG = "http://www.w3.org/2000/svg";
const LABEL_HEIGHT = 16, LABEL_FONT = '600 12px system-ui, "DejaVu Sans", sans-serif'; // as in report.css
const MOST_LABELS = 80;
const NARROWEST_VIEW = 8; // image pixels

function node(name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function rectangle(box, attributes, title) {
  const made = node("rect", { x: box[0], y: box[1], width: Math.max(0, box[2] - box[0]),
    height: Math.max(0, box[3] - box[1]), fill: "none", "vector-effect": "non-scaling-stroke", ...attributes });
  if (title) made.append(node("title", {}, title));
  return made;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

class Stage {
  constructor(host) {
    this.host = host;
    this.svg = node("svg", { role: "img", tabindex: "0", preserveAspectRatio: "none" });
    this.back = this.svg.appendChild(node("g"));
    this.boxes = this.svg.appendChild(node("g"));
    this.texts = this.svg.appendChild(node("g"));
    this.labels = [];
    this.pointers = new Map();
    this.hidden = make("span", { className: "hidden-labels" });
    const button = (text, title, action) => {
      const made = make("button", { type: "button", title, textContent: text });
      made.setAttribute("aria-label", title);
      made.addEventListener("click", action);
      return made;
    };
    this.showsLabels = make("input", { type: "checkbox", checked: true });
    this.showsLabels.addEventListener("change", () => this.placeLabels());
    const help = "drag to move; Ctrl + wheel, two fingers or a double click zoom";
    const tools = make("div", { className: "tools" }, button("+", "zoom in", () => this.zoom(2)),
      button("\u2212", "zoom out", () => this.zoom(0.5)), button("whole image", "show the whole image", () => this.fit()),
      make("label", {}, this.showsLabels, "labels"), make("span", { textContent: help }), this.hidden);
    host.append(this.svg, tools);
    this.listen();
  }

  show(image) {
    if (this.image !== image) {
      this.image = image;
      this.back.replaceChildren(node("image", { href: image.jpeg, width: image.width, height: image.height,
        preserveAspectRatio: "none" }));
      this.svg.setAttribute("aria-label", image.name);
      this.view = { x: 0, y: 0, width: image.width, height: image.height };
    }
    this.layout();
  }

  layout() {
    const narrow = window.innerWidth <= 900;
    const most = Math.max(260, window.innerHeight * (narrow ? 0.62 : 0.82));
    this.scale = Math.min(this.host.clientWidth / this.image.width, most / this.image.height) || 1;
    this.svg.style.width = `${this.image.width * this.scale}px`;
    this.svg.style.height = `${this.image.height * this.scale}px`;
    this.update();
  }

  update() {
    const { image, view } = this;
    view.x = clamp(view.x, 0, image.width - view.width);
    view.y = clamp(view.y, 0, image.height - view.height);
    this.svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
    this.host.classList.toggle("is-zoomed", this.isZoomed());
    this.placeLabels();
  }

  isZoomed() { return this.view.width < this.image.width * 0.999; }

  fit() {
    this.view = { x: 0, y: 0, width: this.image.width, height: this.image.height };
    this.update();
  }

  // Zoom by a factor about a point, which is given in image pixels; without one, about the middle.
  zoom(factor, point) {
    const { image, view } = this;
    const width = clamp(view.width / factor, Math.min(NARROWEST_VIEW, image.width), image.width);
    const change = width / view.width;
    const at = point || { x: view.x + view.width / 2, y: view.y + view.height / 2 };
    this.view = { x: at.x - (at.x - view.x) * change, y: at.y - (at.y - view.y) * change, width,
      height: width * image.height / image.width };
    this.update();
  }

  // Show a box with as much around it again on each side.
  zoomTo(box) {
    const { image } = this;
    const side = Math.max((box[2] - box[0]) / image.width, (box[3] - box[1]) / image.height, 0.01);
    const width = clamp(image.width * side * 3, Math.min(NARROWEST_VIEW, image.width), image.width);
    const height = width * image.height / image.width;
    this.view = { x: (box[0] + box[2] - width) / 2, y: (box[1] + box[3] - height) / 2, width, height };
    this.update();
  }

  pixelAt(event) {
    const frame = this.svg.getBoundingClientRect();
    return { x: this.view.x + (event.clientX - frame.left) / frame.width * this.view.width,
      y: this.view.y + (event.clientY - frame.top) / frame.height * this.view.height };
  }

  listen() {
    const { svg, pointers } = this;
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && !this.isZoomed()) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), this.pixelAt(event));
    }, { passive: false });
    svg.addEventListener("dblclick", (event) => this.zoom(event.shiftKey ? 0.5 : 2, this.pixelAt(event)));
    svg.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, event);
      if (this.isZoomed() || pointers.size > 1) svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
      svg.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    svg.addEventListener("touchmove", (event) => {
      if (event.touches.length > 1) event.preventDefault(); // the page must not zoom as well
    }, { passive: false });
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (before === undefined) return;
    const others = [...this.pointers.values()].filter((one) => one.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (others.length === 1) {
      const distance = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY) || 1;
      const middle = { clientX: (event.clientX + others[0].clientX) / 2, clientY: (event.clientY + others[0].clientY) / 2 };
      this.zoom(distance(event) / distance(before), this.pixelAt(middle));
    } else if (this.isZoomed()) {
      const [from, to] = [this.pixelAt(before), this.pixelAt(event)];
      this.view.x += from.x - to.x;
      this.view.y += from.y - to.y;
      this.update();
    }
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.fit();
    else if (event.key in steps && this.isZoomed()) {
      this.view.x += steps[event.key][0] * this.view.width / 8;
      this.view.y += steps[event.key][1] * this.view.height / 8;
      this.update();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // Labels are { box, text, color }, the most important first. Each takes the first free place at its box, in the
  // picture and over no other label; one that has no place is left out, and counted.
  placeLabels() {
    const { view } = this;
    const perPixel = view.width / (this.image.width * this.scale); // image pixels per pixel of the screen
    const width = view.width / perPixel, height = view.height / perPixel;
    Stage.ruler ??= document.createElement("canvas").getContext("2d");
    Stage.ruler.font = LABEL_FONT;
    const taken = [], drawn = [];
    let hidden = 0;
    for (const label of this.showsLabels.checked ? this.labels : []) {
      const [left, top, right, bottom] = [label.box[0] - view.x, label.box[1] - view.y, label.box[2] - view.x,
        label.box[3] - view.y].map((value) => value / perPixel);
      if (right < 0 || bottom < 0 || left > width || top > height) continue;
      const wide = Stage.ruler.measureText(label.text).width + 6;
      const inside = { left: clamp(left, 0, width - wide), top: clamp(top, 0, height - LABEL_HEIGHT) };
      const places = [[left, top - LABEL_HEIGHT], [left, bottom], [right - wide, top - LABEL_HEIGHT], [right - wide, bottom],
        [right, top], [left - wide, top], [right, bottom - LABEL_HEIGHT], [left - wide, bottom - LABEL_HEIGHT],
        [inside.left, inside.top], [inside.left, clamp(bottom - LABEL_HEIGHT, 0, height - LABEL_HEIGHT)]];
      const place = drawn.length < MOST_LABELS && places.find(([x, y]) => x >= -1 && y >= -1 && x + wide <= width + 1 &&
        y + LABEL_HEIGHT <= height + 1 && !taken.some(([a, b, c]) => x < a + c && a < x + wide &&
          y < b + LABEL_HEIGHT && b < y + LABEL_HEIGHT));
      if (!place) { hidden += 1; continue; }
      taken.push([...place, wide]);
      drawn.push(this.label(place, wide, label, perPixel));
    }
    this.texts.replaceChildren(...drawn);
    this.hidden.textContent = hidden ? `(no room for ${hidden} ${hidden === 1 ? "label" : "labels"}: zoom in)` : "";
  }

  label([x, y], wide, label, perPixel) {
    const group = node("g", { class: "label", "pointer-events": "none",
      transform: `translate(${this.view.x + x * perPixel} ${this.view.y + y * perPixel}) scale(${perPixel})` });
    group.append(node("rect", { width: wide, height: LABEL_HEIGHT, rx: 2, fill: label.color, "fill-opacity": 0.92 }),
      node("text", { x: 3, y: 12, fill: inkOn(label.color) }, label.text));
    return group;
  }
}

// Black or white, whichever can be read on a colour.
function inkOn(color) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
}
