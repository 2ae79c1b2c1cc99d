// Images with the slots that each strategy matches to the objects, and what these slots predict.
const COLORS = ["#ffb000", "#35c9ff", "#ff5fa2", "#7ee36b", "#c39bff", "#ff7a3d", "#f4f06a", "#5fe0c5", "#d0d6dc"];
const LAYERS = [["truth", "t", "objects (white)"], ["cells", "c", "cells of the matched slots"],
                ["boxes", "b", "their predicted boxes"], ["detections", "d", "detections (dotted)"]];
const HEAD_KEYS = "qwerzuio";
// Positions in the list of a slot; see browser_data in analysis/matching/browser.py.
const TARGET = 0, HEAD = 1, ANCHOR = 2, ROW = 3, COL = 4, CELL = 5, BOX = 6, Q = 7, OBJECTNESS = 8, BASE = 9, EXTRA = 10;

function startMatches(data) {
  const stage = new Stage(document.querySelector("#browser .picture"));
  const state = { image: 0, object: -1, match: new Set(), head: new Set(), show: new Set() };

  function startState() {
    state.match = new Set([0]);
    state.head = new Set(data.heads.keys());
    state.show = new Set(["truth", "cells", "boxes"]);
    const text = location.hash.startsWith("#browser?") ? location.hash.slice(9) : "";
    const given = new URLSearchParams(text);
    const numbers = (key, count) => new Set(given.get(key).split(",").filter((part) => part !== "").map(Number)
      .filter((number) => number >= 0 && number < count));
    if (given.has("image")) state.image = Math.min(Math.max(Number(given.get("image")) || 0, 0), data.images.length - 1);
    if (given.has("object")) {
      const wanted = Number(given.get("object"));
      state.object = wanted >= 0 && wanted < data.images[state.image].objects.length ? wanted : -1;
    }
    if (given.has("match")) state.match = numbers("match", data.strategies.length);
    if (given.has("head")) state.head = numbers("head", data.heads.length);
    if (given.has("show")) state.show = new Set(given.get("show").split(",").filter((one) => LAYERS.some((l) => l[0] === one)));
  }

  function keepState() {
    const join = (set) => [...set].sort().join(",");
    const text = `#browser?image=${state.image}&object=${state.object}&match=${join(state.match)}` +
      `&head=${join(state.head)}&show=${join(state.show)}`;
    history.replaceState(null, "", text);
  }

  function slotTitle(slot, image) {
    const wh = data.heads[slot[HEAD]].anchors[slot[ANCHOR]];
    const by = data.strategies.filter((_, i) => (slot[BASE] | slot[EXTRA]) >> i & 1).join(", ");
    return `${image.objects[slot[TARGET]].name}: stride ${data.heads[slot[HEAD]].stride}, anchor ${slot[ANCHOR]} ` +
      `(${wh[0]} x ${wh[1]}), row ${slot[ROW]}, column ${slot[COL]}\n${data.kind} ${slot[Q]}` +
      `${slot[OBJECTNESS] === null ? "" : `, objectness ${slot[OBJECTNESS]}`}\nmatched by ${by}`;
  }

  // Of the strategies that are switched on, the first that matches a slot gives the colour.
  function colorOf(slot) {
    for (const strategy of [...state.match].sort((a, b) => a - b)) {
      if (slot[BASE] >> strategy & 1) return { strategy, stroke: COLORS[strategy % COLORS.length], dash: "none" };
      if (slot[EXTRA] >> strategy & 1) return { strategy, stroke: COLORS[strategy % COLORS.length], dash: "5 3" };
    }
    return null;
  }

  function shownSlots(image) {
    return image.slots.filter((slot) => state.head.has(slot[HEAD]) && (state.object < 0 || slot[TARGET] === state.object));
  }

  function draw() {
    const image = data.images[state.image];
    const slots = shownSlots(image);
    stage.boxes.replaceChildren();
    stage.labels = [];
    const layer = (id) => stage.boxes.appendChild(node("g", { id: `layer-${id}` }));
    if (state.show.has("truth")) {
      const group = layer("truth");
      image.objects.forEach((object, index) => {
        const chosen = state.object === index;
        if (state.object >= 0 && !chosen) return;
        const width = chosen ? 4 : 2.5;
        group.append(rectangle(object.box, { stroke: "#000", "stroke-width": width + 2, "stroke-opacity": 0.6 }));
        group.append(rectangle(object.box, { class: "truth", stroke: "#fff", "stroke-width": width },
          `${object.name}, annotation ${object.id}`));
        stage.labels.push({ box: object.box, text: object.name, color: "#ffffff" });
      });
    }
    for (const [id, part, width, opacity] of [["cells", CELL, 1, 0.25], ["boxes", BOX, 1.5, 0]]) {
      if (!state.show.has(id)) continue;
      const group = layer(id);
      for (const slot of slots) {
        const color = colorOf(slot);
        if (color === null) continue;
        group.append(rectangle(slot[part], { class: `slot-${id}`, stroke: color.stroke, "stroke-width": width,
          "stroke-dasharray": color.dash, fill: opacity ? color.stroke : "none", "fill-opacity": opacity,
          "pointer-events": id === "boxes" ? "stroke" : "all", "data-head": slot[HEAD], "data-strategy": color.strategy,
          "data-object": slot[TARGET] }, slotTitle(slot, image)));
      }
    }
    if (state.show.has("detections")) {
      const group = layer("detections");
      for (const found of image.detections) {
        group.append(rectangle(found.box, { class: "detection", stroke: found.color, "stroke-width": 2.5,
          "stroke-dasharray": "2 2" },
          `${found.name} ${found.score}`));
        stage.labels.push({ box: found.box, text: `${found.name} ${found.score}`, color: found.color });
      }
    }
    stage.show(image);
    fillPanel(image, slots);
    keepState();
  }

  function fillPanel(image, slots) {
    byId("image").value = state.image;
    const objects = byId("object");
    objects.replaceChildren(new Option(`all objects (${image.objects.length})`, -1),
      ...image.objects.map((object, index) => new Option(`${index + 1}: ${object.name} (${object.id})`, index)));
    objects.value = state.object;
    for (const box of document.querySelectorAll("#browser .panel input")) {
      const set = state[box.dataset.group];
      box.checked = set.has(box.dataset.group === "show" ? box.value : Number(box.value));
    }
    data.strategies.forEach((_, index) => {
      byId(`count-${index}`).textContent = slots.filter((slot) => (slot[BASE] | slot[EXTRA]) >> index & 1).length;
    });
    data.heads.forEach((_, index) => {
      byId(`head-count-${index}`).textContent = slots.filter((slot) => slot[HEAD] === index && colorOf(slot)).length;
    });
    byId("about").textContent = `Image ${state.image + 1} of ${data.images.length}: ${image.name}, ` +
      `objects: ${image.objects.length}, detections: ${image.detections.length}.`;
  }

  function toggle(group, value) {
    const set = state[group];
    if (!set.delete(value)) set.add(value);
    draw();
  }

  function choose(image) {
    const count = data.images.length;
    state.image = (image + count) % count;
    state.object = -1;
    draw();
  }

  function chooseObject(step) {
    const count = data.images[state.image].objects.length + 1;
    state.object = (state.object + 1 + step + count) % count - 1;
    draw();
  }

  function addSwitch(fieldset, group, value, key, text, swatch, countId) {
    const line = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value, id: `${group}-${value}` });
    box.dataset.group = group;
    box.addEventListener("change", () => toggle(group, value));
    line.append(box);
    if (swatch) {
      const plate = document.createElement("span");
      plate.className = "swatch";
      plate.style.background = swatch;
      line.append(plate);
    }
    line.append(text);
    if (countId) line.append(Object.assign(document.createElement("span"), { className: "count", id: countId }));
    if (key) line.append(Object.assign(document.createElement("kbd"), { textContent: key }));
    byId(fieldset).append(line);
  }

  function start() {
    data.images.forEach((image, index) => byId("image").append(new Option(`${index + 1}: ${image.name}`, index)));
    data.strategies.forEach((name, index) => addSwitch("strategies", "match", index, index < 9 ? String(index + 1) : "",
      name, COLORS[index % COLORS.length], `count-${index}`));
    data.heads.forEach((head, index) => addSwitch("heads", "head", index, HEAD_KEYS[index] || "",
      `stride ${head.stride}`, "", `head-count-${index}`));
    for (const [name, key, text] of LAYERS) addSwitch("layers", "show", name, key, text, "", "");
    byId("previous").addEventListener("click", () => choose(state.image - 1));
    byId("next").addEventListener("click", () => choose(state.image + 1));
    byId("image").addEventListener("change", (event) => choose(Number(event.target.value)));
    byId("object").addEventListener("change", (event) => { state.object = Number(event.target.value); draw(); });
    window.addEventListener("resize", () => stage.layout());
    window.addEventListener("hashchange", () => {
      if (location.hash.startsWith("#browser?")) { startState(); draw(); }
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
      if (byId("browser").getBoundingClientRect().bottom < 60) return; // scrolled out of sight
      const layer = LAYERS.find((one) => one[1] === event.key);
      const strategy = Number(event.key) - 1, head = HEAD_KEYS.indexOf(event.key);
      if (event.key === "ArrowLeft") choose(state.image - 1);
      else if (event.key === "ArrowRight") choose(state.image + 1);
      else if (event.key === "ArrowDown") chooseObject(1);
      else if (event.key === "ArrowUp") chooseObject(-1);
      else if (event.key === "Escape") { state.object = -1; draw(); }
      else if (layer) toggle("show", layer[0]);
      else if (event.key.length === 1 && strategy >= 0 && strategy < data.strategies.length) toggle("match", strategy);
      else if (event.key.length === 1 && head >= 0 && head < data.heads.length) toggle("head", head);
      else return;
      event.preventDefault();
    });
    const wanted = location.hash;
    startState();
    if (wanted && !wanted.startsWith("#browser")) { draw(); location.hash = wanted; } else draw();
  }

  start();
}
