// @ts-check
// What is said about one token of a strip: a note on hover and focus, and a list of alternatives to choose from.

/** A number with its name as people say it. @param {string} name @param {number} value */
function factOf(name, value) {
  if (!Number.isFinite(value)) return null;
  if (name === "rank") return `rank ${Math.round(value)}`;
  if (name === "probability") return percent(value);
  return `${name} ${value.toFixed(value < 10 ? 2 : 1)} bits`;
}

/** Everything there is to say about a token: a heading, its numbers in words, and its alternatives as rows. */
function about(/** @type {Model<TokenStripTraits>} */ model, /** @type {number} */ index, /** @type {string} */ text) {
  const head = element("div", "labkit-note-head");
  head.append(element("span", "labkit-mono", text), element("span", "labkit-muted", `position ${index}`));
  const names = model.get("fact_names");
  const facts = rowOf(model, "facts", index);
  /** @type {(string | null)[]} */
  let words = (facts ?? []).map((value, n) => factOf(names[n], value)).filter(Boolean);
  if (!facts) {
    const value = rowOf(model, "values", index);
    if (value && Number.isFinite(value[0])) words = [`${model.get("unit") || "value"} ${say(value[0])}`];
  }
  return { head, words: words.join(" · "), rows: alternativesOf(model, index) };
}

/** A list beside a token from which one alternative is chosen, with the pointer or with arrows and Enter. */
function choiceMenu(/** @type {HTMLElement} */ root, /** @type {Model<TokenStripTraits>} */ model) {
  const { note: menu, show, hide } = floating(root, "labkit-note labkit-menu");
  let back = /** @type {HTMLElement | null} */ (null); // where the focus goes when the list is closed
  let position = /** @type {number | null} */ (null);

  function close(/** @type {boolean} */ refocus) {
    if (menu.hidden) return;
    hide();
    document.removeEventListener("pointerdown", outside, true);
    if (refocus && back) back.focus();
  }
  function outside(/** @type {Event} */ event) {
    if (!menu.contains(targetOf(event))) close(false);
  }
  function choose(/** @type {number} */ place) {
    close(true);
    model.send({ kind: "choose", position, place });
  }
  function open(/** @type {number} */ index, /** @type {HTMLElement} */ chip, /** @type {string} */ text) {
    const { head, words, rows } = about(model, index, text);
    if (!rows.length) return false;
    position = index;
    back = chip;
    const label = `What else could stand in place of ${text}`;
    const list = element("div", "labkit-choices", "", { role: "listbox", "aria-label": label });
    rows.forEach(([word, probability], place) => {
      const [now, likely] = [word === text, percent(probability)];
      const says = { "aria-selected": now, "aria-label": `${word}, ${likely}${now ? ", taken" : ""}`, tabindex: -1 };
      const option = element("div", `labkit-choice${now ? " labkit-chosen" : ""}`, "", { role: "option", ...says });
      const track = element("span", "labkit-choice-track");
      track.append(barOf(probability));
      option.append(element("span", "labkit-mono", word), track, element("span", "labkit-muted", likely));
      option.addEventListener("click", () => choose(place));
      list.append(option);
    });
    list.addEventListener("keydown", (event) => {
      const options = /** @type {HTMLElement[]} */ ([...list.children]);
      const at = options.findIndex((option) => option === document.activeElement);
      const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: options.length - 1 }[event.key];
      if (next !== undefined) options[Math.max(0, Math.min(options.length - 1, next))].focus();
      else if (event.key === "Enter" || event.key === " ") choose(at);
      else if (event.key === "Escape" || event.key === "Tab") close(true);
      else return;
      taken(event);
    });
    const hint = element("div", "labkit-muted labkit-menu-hint", "Choose one and the text branches here.");
    show(chip.getBoundingClientRect(), [head, element("div", "labkit-muted", words), list, hint]);
    const first = list.querySelector("[aria-selected=true]") ?? list.firstChild;
    /** @type {HTMLElement} */ (first).focus({ preventScroll: true });
    document.addEventListener("pointerdown", outside, true);
    return true;
  }
  return { open, close, isOpen: () => !menu.hidden };
}
