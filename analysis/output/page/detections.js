// Images with objects and detections, each with what is right or wrong with it: filters, an image, a list of its boxes.
// Positions in the list of a box; see images_data in analysis/output/pictures.py.
const CLASS = 4, STATE = 5, SCORE = 6, DETECTOR = 7, REMARK = 8;

class DetectionViewer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.detector = 0;
    this.label = -1; // all classes
    this.states = new Set(Object.keys(data.states));
    this.current = null; // an image, the first of those listed at the start
    this.chosen = null; // the box that was clicked
    this.build();
    this.refresh();
  }

  build() {
    const { data, root } = this;
    const filters = make("div", { className: "filters", role: "group", ariaLabel: "what is shown" });
    if (data.detectors.length > 1) {
      filters.append(this.choice("detections of", data.detectors.map((name, index) => [name, index]), (value) => {
        this.detector = value;
      }));
    }
    const classes = data.classes.map((name, index) => [name, index]).sort((a, b) => a[0].localeCompare(b[0]));
    filters.append(this.choice("class", [["all", -1], ...classes], (value) => { this.label = value; }));
    this.counts = {};
    for (const [name, state] of Object.entries(data.states)) {
      const box = make("input", { type: "checkbox", checked: true, value: name });
      box.addEventListener("change", () => {
        if (box.checked) this.states.add(name); else this.states.delete(name);
        this.refresh();
      });
      this.counts[name] = make("span", { className: "count" });
      filters.append(make("label", { title: state.text }, box, this.swatch(name), state.title, this.counts[name]));
    }
    for (const [text, wanted] of [["all kinds", true], ["no kind", false]]) {
      const button = make("button", { type: "button", textContent: text });
      button.addEventListener("click", () => {
        filters.querySelectorAll("input").forEach((box) => { box.checked = wanted; });
        this.states = new Set(wanted ? Object.keys(data.states) : []);
        this.refresh();
      });
      filters.append(button);
    }
    const meanings = make("dl");
    for (const state of Object.values(data.states)) {
      meanings.append(make("div", {}, make("dt", { textContent: state.title }), make("dd", { textContent: state.text })));
    }
    const legend = make("details", { className: "legend" }, make("summary", { textContent: "What the colours mean" }),
      meanings);
    this.strip = make("div", { className: "strip", role: "group", ariaLabel: "images" });
    const picture = make("div", { className: "picture" });
    this.previous = make("button", { type: "button", textContent: "\u25c0", title: "previous image (left arrow)",
      ariaLabel: "previous image" });
    this.next = make("button", { type: "button", textContent: "\u25b6", title: "next image (right arrow)",
      ariaLabel: "next image" });
    this.previous.addEventListener("click", () => this.step(-1));
    this.next.addEventListener("click", () => this.step(1));
    this.about = make("p", { ariaLive: "polite" });
    this.list = make("ul", { className: "boxes" });
    const panel = make("div", { className: "panel" }, make("div", { className: "row" }, this.previous, this.next), this.about,
      make("p", { className: "help", textContent: "Choose a box to zoom in on it." }), this.list);
    root.append(filters, legend, this.strip, make("div", { className: "stage" }, picture, panel));
    this.stage = new Stage(picture);
    root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input")) return;
      if (event.key === "ArrowLeft") this.step(-1);
      else if (event.key === "ArrowRight") this.step(1);
      else if (event.key === "Escape") { this.chosen = null; this.stage.fit(); this.draw(); }
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    window.addEventListener("resize", () => this.stage.layout());
  }

  choice(text, options, set) {
    const select = make("select", {}, ...options.map(([name, value]) => new Option(name, value)));
    select.addEventListener("change", () => { set(Number(select.value)); this.refresh(); });
    return make("label", { className: "choice" }, text, select);
  }

  swatch(name) {
    const state = this.data.states[name];
    const made = make("span", { className: state.is_object ? "swatch is-object" : "swatch" });
    made.style.background = made.style.borderColor = state.color;
    return made;
  }

  // The boxes of an image that the filters leave, errors first, strong ones before weak ones.
  boxesOf(image, states = this.states) {
    const isError = (box) => this.data.states[box[STATE]].is_error;
    return image.boxes.filter((box) => box[DETECTOR] === this.detector && states.has(box[STATE]) &&
      (this.label < 0 || box[CLASS] === this.label))
      .sort((a, b) => isError(b) - isError(a) || (b[SCORE] ?? 2) - (a[SCORE] ?? 2));
  }

  // All images are in the order given. With a filter, an image is listed for the errors that are shown or, where no
  // kind of error is, for the other boxes.
  refresh() {
    const { data } = this;
    const errors = new Set([...this.states].filter((name) => data.states[name].is_error));
    const listed = data.images.map((image) => [image, this.boxesOf(image, errors.size ? errors : this.states).length]);
    const isFiltered = this.label >= 0 || this.states.size < Object.keys(data.states).length;
    this.listed = isFiltered ? listed.filter(([, count]) => count).sort((a, b) => b[1] - a[1]) : listed;
    const all = data.images.flatMap((image) => this.boxesOf(image, new Set(Object.keys(data.states))));
    for (const name of Object.keys(data.states)) {
      this.counts[name].textContent = all.filter((box) => box[STATE] === name).length;
    }
    const noun = errors.size ? "error" : "box";
    this.strip.replaceChildren(...this.listed.map(([image, count]) => {
      const button = make("button", { type: "button", title: image.name },
        make("img", { src: image.jpeg, alt: image.name }), `${count} ${noun}${count === 1 ? "" : noun === "box" ? "es" : "s"}`);
      button.addEventListener("click", () => this.open(image));
      return button;
    }));
    if (!this.listed.some(([image]) => image === this.current) && this.listed.length) [[this.current]] = this.listed;
    this.draw();
  }

  open(image) {
    this.current = image;
    this.chosen = null;
    this.draw();
  }

  step(by) {
    const place = this.listed.findIndex(([image]) => image === this.current);
    const count = this.listed.length;
    if (count) this.open(this.listed[(place + by + count) % count][0]);
  }

  words(box) {
    const score = box[SCORE] === null ? "" : ` ${box[SCORE].toFixed(2)}`;
    return this.data.classes[box[CLASS]] + score;
  }

  draw() {
    const { data, current, stage } = this;
    stage.host.parentElement.hidden = !this.listed.length;
    this.strip.querySelectorAll("button").forEach((button, index) => {
      const isCurrent = this.listed[index][0] === current;
      button.setAttribute("aria-current", isCurrent);
      if (isCurrent) this.strip.scrollLeft = button.offsetLeft - this.strip.offsetLeft - this.strip.clientWidth / 2;
    });
    const boxes = this.boxesOf(current);
    stage.boxes.replaceChildren(...[...boxes].reverse().map((box) => this.rectangle(box)));
    stage.labels = boxes.filter((box) => data.states[box[STATE]].is_error || boxes.length <= 25 || box === this.chosen)
      .map((box) => ({ box, text: this.words(box), color: data.states[box[STATE]].color }));
    if (this.chosen) stage.labels.unshift(...stage.labels.splice(stage.labels.findIndex((one) => one.box === this.chosen), 1));
    stage.show(current);
    const place = this.listed.findIndex(([image]) => image === current) + 1;
    this.about.textContent = this.listed.length ?
      `Image ${place} of ${this.listed.length}: ${current.name}${current.remark ? `, ${current.remark}` : ""}` :
      "No image has such a box.";
    this.list.replaceChildren(...boxes.map((box) => {
      const button = make("button", { type: "button", title: this.titleOf(box) }, this.swatch(box[STATE]),
        make("span", { className: "name", textContent: this.words(box) }),
        make("span", { className: "count", textContent: data.states[box[STATE]].title }));
      button.setAttribute("aria-pressed", box === this.chosen);
      button.addEventListener("click", () => {
        this.chosen = this.chosen === box ? null : box;
        this.draw();
        if (this.chosen) stage.zoomTo(box); else stage.fit();
        [...this.list.querySelectorAll("button")][boxes.indexOf(box)].focus();
      });
      return make("li", {}, button);
    }));
  }

  titleOf(box) {
    return `${this.words(box)}: ${this.data.states[box[STATE]].text}${box[REMARK] ? `; ${box[REMARK]}` : ""}`;
  }

  rectangle(box) {
    const state = this.data.states[box[STATE]];
    const width = box === this.chosen ? 4 : state.is_error ? 2.5 : 1.5;
    const group = node("g", this.chosen && box !== this.chosen ? { class: "is-pale" } : {});
    group.append(rectangle(box, { stroke: "#000", "stroke-width": width + 1.5, "stroke-opacity": 0.5 }),
      rectangle(box, { class: `box ${box[STATE]}`, stroke: state.color, "stroke-width": width,
        "stroke-dasharray": state.is_object ? "6 4" : "none", "pointer-events": "stroke" }, this.titleOf(box)));
    return group;
  }
}
