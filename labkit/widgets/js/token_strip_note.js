// What is said about one token of a strip: a note on hover and focus, and a list of alternatives to choose from.

/** Rows of [text, probability] as a table of bars; `chosen` stands out. */
function barsOf(rows, chosen) {
  const table = element("table", "labkit-bars");
  for (const [text, probability] of rows) {
    const row = table.insertRow();
    if (text === chosen) row.className = "labkit-chosen";
    const bar = element("span", "labkit-bar");
    bar.style.width = `${Math.max(1, Math.round(100 * probability))}px`;
    const cell = element("td", "labkit-bar-cell");
    cell.append(bar);
    row.append(element("td", "labkit-mono", text), cell, element("td", "labkit-number", percent(probability)));
  }
  return table;
}

/** A number with its name as people say it. */
function factOf(name, value) {
  if (!Number.isFinite(value)) return null;
  if (name === "rank") return `rank ${Math.round(value)}`;
  if (name === "probability") return percent(value);
  return `${name} ${value.toFixed(value < 10 ? 2 : 1)} bits`;
}

/** Everything there is to say about a token: a heading, its numbers in words, and its alternatives as rows. */
function about(model, index, text) {
  const head = element("div", "labkit-note-head");
  head.append(element("span", "labkit-mono", text), element("span", "labkit-muted", `position ${index}`));
  const names = model.get("fact_names");
  const facts = rowOf(model, "facts", index);
  let words = (facts || []).map((value, n) => factOf(names[n], value)).filter(Boolean);
  if (!facts) {
    const value = rowOf(model, "values", index);
    if (value && Number.isFinite(value[0])) words = [`${model.get("unit") || "value"} ${say(value[0])}`];
  }
  return { head, words: words.join(" · "), rows: alternativesOf(model, index) };
}

/** A list beside a token from which one alternative is chosen, with the pointer or with arrows and Enter. */
function choiceMenu(root, model) {
  const menu = element("div", "labkit-note labkit-menu");
  if (menu.showPopover) menu.popover = "manual";
  menu.hidden = true;
  root.append(menu);
  let back = null; // where the focus goes when the list is closed
  let position = null;

  function close(refocus) {
    if (menu.hidden) return;
    if (menu.hidePopover && menu.matches(":popover-open")) menu.hidePopover();
    menu.hidden = true;
    document.removeEventListener("pointerdown", outside, true);
    if (refocus && back) back.focus();
  }
  function outside(event) {
    if (!menu.contains(event.target)) close(false);
  }
  function choose(place) {
    close(true);
    model.send({ kind: "choose", position, place });
  }
  function open(index, chip, text) {
    const { head, words, rows } = about(model, index, text);
    if (!rows.length) return false;
    position = index;
    back = chip;
    const list = element("div", "labkit-choices");
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", `What else could stand in place of ${text}`);
    rows.forEach(([word, probability], place) => {
      const option = element("div", "labkit-choice");
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", String(word === text));
      option.setAttribute("aria-label", `${word}, ${percent(probability)}${word === text ? ", taken" : ""}`);
      option.tabIndex = -1;
      const bar = element("span", "labkit-bar");
      bar.style.width = `${Math.max(1, Math.round(100 * probability))}px`;
      const track = element("span", "labkit-choice-track");
      track.append(bar);
      option.append(element("span", "labkit-mono", word), track, element("span", "labkit-muted", percent(probability)));
      if (word === text) option.classList.add("labkit-chosen");
      option.addEventListener("click", () => choose(place));
      list.append(option);
    });
    list.addEventListener("keydown", (event) => {
      const options = [...list.children];
      const at = options.indexOf(document.activeElement);
      const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: options.length - 1 }[event.key];
      if (next !== undefined) options[Math.max(0, Math.min(options.length - 1, next))].focus();
      else if (event.key === "Enter" || event.key === " ") choose(at);
      else if (event.key === "Escape" || event.key === "Tab") close(true);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    menu.replaceChildren(head, element("div", "labkit-muted", words), list);
    menu.append(element("div", "labkit-muted labkit-menu-hint", "Choose one and the text branches here."));
    menu.hidden = false;
    if (menu.showPopover && !menu.matches(":popover-open")) menu.showPopover();
    placeBeside(menu, chip.getBoundingClientRect());
    (list.querySelector("[aria-selected=true]") || list.firstChild).focus({ preventScroll: true });
    document.addEventListener("pointerdown", outside, true);
    return true;
  }
  return { open, close, isOpen: () => !menu.hidden };
}
