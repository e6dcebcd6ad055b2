// TokenStrip: a row of token chips that wraps; colour says a value, marks say what a token is.

const KEYS = { ArrowRight: 1, ArrowLeft: -1 };

/** Streaming adds to the end: the kernel sends only the new tokens, once for all views of the model. */
function initialize({ model }) {
  model.on("msg:custom", (message, buffers) => {
    if (message.kind !== "append") return;
    const old = numbers(model.get("values"));
    const before = model.get("tokens").length;
    const values = new Float32Array(before + message.tokens.length).fill(NaN);
    if (old) values.set(old.data.subarray(0, before));
    if (buffers.length) values.set(new Float32Array(numbers({ ...message.values, data: buffers[0] }).data), before);
    const alternatives = [...model.get("alternatives")];
    while (alternatives.length < before) alternatives.push(null);
    model.set("alternatives", [...alternatives, ...message.alternatives]);
    model.set("values", { shape: [values.length], dtype: "float32", data: new DataView(values.buffer) });
    model.set("tokens", [...model.get("tokens"), ...message.tokens]);
  });
}

function render({ model, el }) {
  blockRoot(el, "labkit-strip");
  const head = element("div", "labkit-strip-head");
  const title = element("span", "labkit-title");
  const legend = element("span", "labkit-legend");
  head.append(title, legend);
  const list = element("div", "labkit-tokens");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-orientation", "horizontal");
  el.append(head, list);
  const note = floatingNote(el);
  let chips = [];
  let table = null;
  let current = 0; // the chip that Tab reaches

  let marks = new Map(); // token index -> names of its marks

  const numberOf = (name) => model.get(name);
  const marksOf = (index) => marks.get(index) || [];

  function readMarks() {
    marks = new Map();
    for (const [name, places] of Object.entries(model.get("marks"))) {
      for (const index of places) marks.set(index, [...marksOf(index), name]);
    }
  }

  function chip(text, index) {
    const node = element("span", "labkit-token");
    // Spaces that are made visible are there to be seen, not to be read: paler than the word.
    const [, lead, word, tail] = /^(·*)([^]*?)(·*)$/.exec(text);
    if (lead) node.append(element("span", "labkit-space", lead));
    node.append(word);
    if (tail) node.append(element("span", "labkit-space", tail));
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", "false");
    node.tabIndex = -1;
    node.dataset.index = index;
    return node;
  }

  function drawTokens() {
    const tokens = model.get("tokens");
    const widths = model.get("widths");
    // Keep what is there: only chips from the first change on are made anew.
    let same = 0;
    while (same < chips.length && same < tokens.length && chips[same].text === tokens[same]) same++;
    while (chips.length > same) {
      const gone = chips.pop();
      if (gone.break) gone.break.remove();
      gone.node.remove();
    }
    const fresh = document.createDocumentFragment();
    for (let i = same; i < tokens.length; i++) {
      const made = { text: tokens[i], node: chip(tokens[i], i), break: null };
      fresh.append(made.node);
      if (tokens[i].endsWith("⏎") && !widths.length) {
        made.break = element("span", "labkit-break");
        fresh.append(made.break);
      }
      chips.push(made);
    }
    list.append(fresh);
    current = Math.min(current, Math.max(chips.length - 1, 0));
    drawShades(same);
    drawMarks(same);
    drawWidths();
    drawSelection();
  }

  function drawWidths() {
    const widths = model.get("widths");
    chips.forEach(({ node }, i) => (node.style.minWidth = widths[i] ? `calc(${widths[i]}ch + 8px)` : ""));
  }

  function drawShades(from = 0) {
    const values = numbers(model.get("values"));
    for (let i = from; i < chips.length; i++) {
      const { node, text } = chips[i];
      const value = values && i < values.data.length ? values.data[i] : NaN;
      const known = Number.isFinite(value);
      if (known) {
        const at = shade(value, numberOf("low"), numberOf("high"), numberOf("centre"));
        node.style.background = css(table, at);
        node.style.color = inkOn(table, at);
      } else {
        node.style.background = "";
        node.style.color = "";
      }
      const said = known ? `, ${model.get("unit") || "value"} ${say(value)}` : "";
      const marked = marksOf(i).map((name) => `, ${name}`).join("");
      node.setAttribute("aria-label", `${i}: ${text}${said}${marked}`);
    }
  }

  function drawMarks(from = 0) {
    for (let i = from; i < chips.length; i++) {
      const { node } = chips[i];
      [...node.classList].filter((name) => name.startsWith("labkit-is-")).forEach((name) => node.classList.remove(name));
      for (const name of marksOf(i)) node.classList.add(`labkit-is-${name.replace(/[^a-z0-9-]/gi, "-")}`);
    }
  }

  function drawSelection() {
    const selection = model.get("selection");
    if (selection !== null && selection < chips.length) current = selection;
    chips.forEach(({ node }, i) => {
      node.setAttribute("aria-selected", String(i === selection));
      node.tabIndex = i === current ? 0 : -1;
    });
  }

  function drawHead() {
    title.textContent = model.get("title");
    list.setAttribute("aria-label", model.get("title") || "tokens");
    const shown = model.get("legend");
    legend.replaceChildren();
    if (shown) {
      const bar = element("span", "labkit-legend-bar");
      const stops = Array.from({ length: 9 }, (_, i) => css(table, Math.round((i / 8) * 255)));
      bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      legend.append(element("span", "", model.get("unit")), tick(numberOf("low")), bar, tick(numberOf("high")));
    }
    head.hidden = !title.textContent && !shown;
  }

  function drawTheme() {
    table = colourTable(model.get("stops")[el.dataset.theme]);
    drawShades();
    drawHead();
  }

  function describe(index) {
    const content = [];
    const first = element("div", "labkit-note-head");
    first.append(element("span", "labkit-mono", chips[index].text), element("span", "labkit-muted", `position ${index}`));
    const values = numbers(model.get("values"));
    content.push(first);
    if (values && Number.isFinite(values.data[index])) {
      content.push(element("div", "labkit-muted", `${model.get("unit") || "value"} ${say(values.data[index])}`));
    }
    const alternatives = model.get("alternatives")[index];
    if (alternatives && alternatives.length) {
      const rows = element("table", "labkit-bars");
      for (const [text, probability] of alternatives) {
        const row = rows.insertRow();
        if (text === chips[index].text) row.className = "labkit-chosen";
        row.append(element("td", "labkit-mono", text));
        const bar = element("span", "labkit-bar");
        bar.style.width = `${Math.max(1, Math.round(100 * probability))}px`;
        const cell = element("td", "labkit-bar-cell");
        cell.append(bar);
        row.append(cell, element("td", "labkit-number", percent(probability)));
      }
      content.push(rows);
    }
    return content;
  }

  function look(index) {
    tell(model, "hovered", index);
    if (index === null || !chips[index]) return note.hide();
    const detailed = model.get("alternatives")[index] || model.get("values");
    if (detailed) note.show(chips[index].node.getBoundingClientRect(), describe(index));
  }

  const indexOf = (event) => {
    const node = event.target.closest(".labkit-token");
    return node && list.contains(node) ? Number(node.dataset.index) : null;
  };

  function move(index) {
    chips[current].node.tabIndex = -1;
    current = index;
    chips[current].node.tabIndex = 0;
    chips[current].node.focus();
  }

  /** The chip nearest to this one in the line above (-1) or below (+1). */
  function vertical(direction) {
    const here = chips[current].node.getBoundingClientRect();
    let best = current;
    let distance = Infinity;
    chips.forEach(({ node }, i) => {
      const box = node.getBoundingClientRect();
      const rows = (box.top - here.top) * direction;
      if (rows < here.height / 2) return;
      const apart = rows * 1000 + Math.abs(box.left - here.left);
      if (apart < distance) [best, distance] = [i, apart];
    });
    return best;
  }

  list.addEventListener("pointerover", (event) => {
    const index = indexOf(event);
    if (index !== null) look(index);
  });
  list.addEventListener("pointerleave", () => look(null));
  list.addEventListener("focusin", (event) => look(indexOf(event)));
  list.addEventListener("focusout", () => look(null));
  list.addEventListener("click", (event) => {
    const index = indexOf(event);
    if (index === null) return;
    move(index);
    tell(model, "selection", model.get("selection") === index ? null : index);
  });
  list.addEventListener("keydown", (event) => {
    if (!chips.length) return;
    const last = chips.length - 1;
    let next = null;
    if (event.key in KEYS) next = current + KEYS[event.key];
    else if (event.key === "ArrowUp") next = vertical(-1);
    else if (event.key === "ArrowDown") next = vertical(1);
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = last;
    if (next !== null) move(Math.max(0, Math.min(last, next)));
    else if (event.key === "Enter" || event.key === " ") {
      tell(model, "selection", model.get("selection") === current ? null : current);
    } else if (event.key === "Escape") {
      tell(model, "selection", null);
      note.hide();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  readMarks();
  const stopTheme = followTheme(el, drawTheme);
  drawTokens();
  const listeners = {
    "change:tokens": drawTokens,
    "change:widths": drawWidths,
    "change:values change:low change:high change:centre": () => drawShades(),
    "change:marks": () => {
      readMarks();
      drawMarks();
      drawShades();
    },
    "change:selection": drawSelection,
    "change:title change:legend change:unit change:low change:high": drawHead,
    "change:stops": drawTheme,
  };
  for (const [names, listener] of Object.entries(listeners)) model.on(names, listener);
  return () => {
    stopTheme();
    for (const [names, listener] of Object.entries(listeners)) model.off(names, listener);
  };
}

export default { initialize, render };
