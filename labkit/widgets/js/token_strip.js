// @ts-check
// TokenStrip: a row of token chips that wraps; colour says a value, marks say what a token is.
// Chips stand in paragraphs of a few hundred, which the browser lays out one by one: a long text grows at constant cost.

const NAMED = ["prompt", "template", "system", "user", "assistant", "thinking", "special", "branched", "surprise"];
const PARAGRAPH = 256; // chips; a paragraph also ends with a line, once it has a quarter of them

/** @param {Context<TokenStripTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-strip");
  const head = element("div", "labkit-strip-head");
  const title = element("span", "labkit-title");
  const legend = element("span", "labkit-legend");
  head.append(title, legend);
  const list = element("div", "labkit-tokens", "", { role: "grid" }); // a fold is a button, which a list of options may not have
  el.append(head, list);
  const note = floatingNote(el);
  const menu = choiceMenu(el, model);
  let chips = /** @type {{ text: string, node: HTMLElement, break: HTMLElement | null }[]} */ ([]);
  let paragraph = /** @type {{ node: HTMLElement, size: number, ended: boolean } | null} */ (null);
  let table = new Uint8ClampedArray();
  let current = 0; // the chip that Tab reaches
  let selected = /** @type {number | null} */ (null);
  let outlined = /** @type {number[]} */ ([]);
  let marks = marksByPlace(model.get("marks"));
  let folds = /** @type {(Required<Fold> & { button: HTMLElement | null })[]} */ ([]);

  const marksOf = (/** @type {number} */ index) => marks.get(index) ?? [];

  function chip(/** @type {string} */ text, /** @type {number} */ index) {
    const says = { role: "gridcell", "aria-selected": false, tabindex: -1, "data-index": index };
    const node = element("span", "labkit-token", "", says);
    writeToken(node, text);
    return node;
  }

  function add(/** @type {number} */ from) {
    const tokens = model.get("tokens");
    const aligned = model.get("widths").length > 0;
    for (let i = from; i < tokens.length; i++) {
      if (!paragraph || paragraph.size >= PARAGRAPH || (paragraph.ended && paragraph.size >= PARAGRAPH / 4)) {
        paragraph = { node: element("div", "labkit-paragraph", "", { role: "row" }), size: 0, ended: false };
        list.append(paragraph.node);
      }
      /** @type {typeof chips[0]} */
      const made = { text: tokens[i], node: chip(tokens[i], i), break: null };
      paragraph.node.append(made.node);
      paragraph.size++;
      paragraph.ended = tokens[i].endsWith("⏎") && !aligned;
      if (paragraph.ended) {
        made.break = element("span", "labkit-break");
        paragraph.node.append(made.break);
      }
      chips.push(made);
      shadeChip(i);
      markChip(i);
    }
    if (chips.length && from === 0) chips[current].node.tabIndex = 0;
    drawWidths(from);
    foldChips(from);
    list.classList.toggle("labkit-scrolled", chips.length > 2 * PARAGRAPH);
  }

  function drawTokens() {
    const tokens = model.get("tokens");
    let same = 0;
    while (same < chips.length && same < tokens.length && chips[same].text === tokens[same]) same++;
    if (same === chips.length && same === tokens.length) return;
    menu.close(false);
    list.replaceChildren();
    chips = [];
    paragraph = null;
    folds.forEach((fold) => (fold.button = null));
    selected = null;
    outlined = [];
    current = Math.min(current, Math.max(tokens.length - 1, 0));
    add(0);
    drawSelection();
    drawPointed();
  }

  /** New tokens came; if the end was in view, it stays in view. @param {number} at */
  function grow(at) {
    if (at !== chips.length) return drawTokens();
    const followed = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    add(at);
    if (followed) list.scrollTop = list.scrollHeight;
  }

  function drawWidths(from = 0) {
    const widths = model.get("widths");
    for (let i = from; i < chips.length && (widths.length || from === 0); i++) {
      chips[i].node.style.minWidth = widths[i] ? `calc(${widths[i]}ch + 8px)` : "";
    }
  }

  function shadeChip(/** @type {number} */ i) {
    const { node, text } = chips[i];
    const row = rowOf(model, "values", i);
    const value = row ? row[0] : NaN;
    const known = Number.isFinite(value);
    if (known) {
      const at = shade(value, model.get("low"), model.get("high"), model.get("centre"));
      node.style.background = css(table, at);
      node.style.color = inkOn(table, at);
    } else if (node.style.background) {
      node.style.background = "";
      node.style.color = "";
    }
    const said = known ? `, ${model.get("unit") || "value"} ${say(value)}` : "";
    const marked = marksOf(i).map((name) => `, ${name}`).join("");
    node.setAttribute("aria-label", `${i}: ${text}${said}${marked}`);
  }

  function markChip(/** @type {number} */ i) {
    const { classList } = chips[i].node;
    classList.remove(...[...classList].filter((name) => name.startsWith("labkit-is-")));
    classList.add(...marksOf(i).map(markClass));
  }

  const drawShades = () => chips.forEach((_, i) => shadeChip(i));

  // -- folds ---------------------------------------------------------------------------------------------------------

  function drawFolds() {
    folds.forEach(({ button }) => button?.parentElement?.remove());
    folds = model.get("folds").map((fold) => ({ stop: null, label: "folded", ...fold, button: null }));
    chips.forEach(({ node }) => node.classList.remove("labkit-folded"));
    foldChips(0);
  }

  /** Fold away the chips from an index on that are in a fold, and say how many there are. @param {number} from */
  function foldChips(from) {
    for (const fold of folds) {
      const { start, stop, label } = fold;
      const end = stop === null ? chips.length : Math.min(stop, chips.length);
      if (start >= chips.length || end <= from) continue;
      const open = model.get("opened").includes(start);
      if (!fold.button) {
        fold.button = element("button", "labkit-fold", "", { type: "button" });
        fold.button.addEventListener("click", () => {
          const opened = model.get("opened");
          tell(model, "opened", opened.includes(start) ? opened.filter((n) => n !== start) : [...opened, start]);
        });
        const cell = element("span", "", "", { role: "gridcell" });
        cell.append(fold.button);
        chips[start].node.before(cell);
      }
      fold.button.textContent = `${open ? "▾" : "▸"} ${label} · ${end - start} tokens${stop === null ? "…" : ""}`;
      fold.button.setAttribute("aria-expanded", String(open));
      for (let i = Math.max(start, from); i < end; i++) {
        chips[i].node.classList.toggle("labkit-folded", !open);
        const line = chips[i].break;
        if (line) line.hidden = !open;
      }
    }
  }

  // -- selection -----------------------------------------------------------------------------------------------------

  function drawSelection() {
    const selection = model.get("selection");
    if (selected !== null && chips[selected]) chips[selected].node.setAttribute("aria-selected", "false");
    selected = selection;
    if (selection === null || !chips[selection]) return;
    reach(selection);
    chips[selection].node.setAttribute("aria-selected", "true");
  }

  function drawPointed() {
    outlined.forEach((i) => chips[i] && chips[i].node.classList.remove("labkit-pointed"));
    outlined = model.get("pointed");
    outlined.forEach((i) => chips[i] && chips[i].node.classList.add("labkit-pointed"));
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
      legend.append(element("span", "", model.get("unit")), tick(model.get("low")), bar, tick(model.get("high")));
    }
    head.hidden = !title.textContent && !shown;
  }

  function drawTheme() {
    table = tableOf(model, el);
    drawShades();
    drawHead();
  }

  function look(/** @type {number | null} */ index) {
    tell(model, "hovered", index);
    if (index === null || !chips[index] || menu.isOpen()) return note.hide();
    const { head: heading, words: numbers, rows } = about(model, index, chips[index].text);
    const named = [model.get("notes")[index], ...marksOf(index).filter((name) => NAMED.includes(name))];
    const words = [...named, numbers].filter(Boolean).join(" · ");
    if (!words && !rows.length) return note.hide();
    const content = [heading];
    if (words) content.push(element("div", "labkit-muted", words));
    if (rows.length) content.push(barsOf(rows, [chips[index].text]));
    note.show(chips[index].node.getBoundingClientRect(), content);
  }

  /** The token that an event is in, null where it is in none. @param {Event} event */
  function indexOf(event) {
    const node = /** @type {HTMLElement | null} */ (targetOf(event).closest(".labkit-token"));
    return node && list.contains(node) ? Number(node.dataset.index) : null;
  }

  function reach(/** @type {number} */ index) {
    chips[current].node.tabIndex = -1;
    current = index;
    chips[current].node.tabIndex = 0;
  }
  function move(/** @type {number} */ index) {
    reach(index);
    chips[current].node.focus();
  }

  /** The next chip in a direction that is not folded away. @param {number} direction */
  function step(direction) {
    let next = current + direction;
    while (chips[next] && chips[next].node.classList.contains("labkit-folded")) next += direction;
    return chips[next] ? next : current;
  }

  /** The chip nearest to this one in the line above (-1) or below (+1). @param {number} direction */
  function vertical(direction) {
    const here = chips[current].node.getBoundingClientRect();
    let best = current;
    let distance = Infinity;
    for (let i = current; chips[i]; i += direction) {
      const box = chips[i].node.getBoundingClientRect();
      if (!box.width) continue;
      const rows = (box.top - here.top) * direction;
      if (rows < here.height / 2) continue;
      const apart = rows * 1000 + Math.abs(box.left - here.left);
      if (apart < distance) [best, distance] = [i, apart];
      else if (rows > here.height * 4) break;
    }
    return best;
  }

  function select(/** @type {number} */ index) {
    const again = model.get("selection") === index;
    const opened = !again && model.get("choosable") && menu.open(index, chips[index].node, chips[index].text);
    if (opened) note.hide();
    tell(model, "selection", again ? null : index);
  }

  list.addEventListener("pointerover", (event) => {
    const index = indexOf(event);
    if (index !== null) look(index);
  });
  list.addEventListener("pointerleave", () => look(null));
  list.addEventListener("focusin", (event) => {
    const index = indexOf(event);
    if (index === null) return;
    reach(index);
    look(index);
  });
  list.addEventListener("focusout", () => look(null));
  list.addEventListener("click", (event) => {
    const index = indexOf(event);
    if (index === null) return;
    move(index);
    select(index);
  });
  list.addEventListener("keydown", (event) => {
    if (!chips.length || targetOf(event).classList.contains("labkit-fold")) return event.stopPropagation();
    let next = null;
    if (event.key === "ArrowRight") next = step(1);
    else if (event.key === "ArrowLeft") next = step(-1);
    else if (event.key === "ArrowUp") next = vertical(-1);
    else if (event.key === "ArrowDown") next = vertical(1);
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = chips.length - 1;
    if (next !== null) move(next);
    else if (event.key === "Enter" || event.key === " ") select(current);
    else if (event.key === "Escape") {
      tell(model, "selection", null);
      note.hide();
    } else return;
    taken(event);
  });

  const stop = follow({ model, el }, {
    tokens: drawTokens,
    widths: () => drawWidths(),
    "values low high centre": drawShades,
    marks() {
      marks = marksByPlace(model.get("marks"));
      chips.forEach((_, i) => markChip(i));
      drawShades();
    },
    folds: drawFolds,
    opened: () => foldChips(0),
    selection: drawSelection,
    pointed: drawPointed,
    "title legend unit low high": drawHead,
    stops: drawTheme,
    "msg:custom": (message) => message.kind === "append" && grow(message.at),
  }, drawTheme);
  drawFolds();
  drawTokens();
  drawSelection();
  drawPointed();
  return () => {
    stop();
    menu.close(false);
  };
}

export default { initialize, render };
