// @ts-check
// PairStrip: two prompts token over token. A column is one position; the columns wrap together.

/** @param {Context<PairStripTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-pair");
  const list = element("div", "labkit-pair-columns", "", { role: "listbox", "aria-orientation": "horizontal" });
  el.append(list);
  let nodes = /** @type {HTMLElement[]} */ ([]);
  let current = 0; // the column that Tab reaches

  function chip(/** @type {string | null} */ text, /** @type {string[]} */ marks) {
    if (text === null) return element("span", "labkit-token labkit-is-gap");
    const node = element("span", ["labkit-token", ...marks.map(markClass)].join(" "));
    writeToken(node, text);
    return node;
  }

  function draw() {
    const [upper, lower] = model.get("names");
    const marks = marksByPlace(model.get("marks"));
    list.setAttribute("aria-label", `${upper} and ${lower} prompt, token by token`);
    nodes = model.get("columns").map(([above, below], at) => {
      const here = marks.get(at) ?? [];
      const label = model.get("labels")[at] ?? String(at);
      const pair = above === below ? (above ?? "nothing") : `${upper} ${above ?? "nothing"}, ${lower} ${below ?? "nothing"}`;
      const says = { role: "option", "aria-label": [`${label}: ${pair}`, ...here].join(", ") };
      const node = element("div", ["labkit-pair-column", ...here.map(markClass)].join(" "), "", says);
      node.append(element("span", "labkit-pair-label", label), chip(above, here), chip(below, here));
      return node;
    });
    current = Math.min(current, Math.max(nodes.length - 1, 0));
    list.replaceChildren(...nodes);
    el.hidden = !nodes.length;
    drawSelection();
  }

  function drawSelection() {
    const selection = model.get("selection");
    if (selection !== null && selection < nodes.length) current = selection;
    nodes.forEach((node, at) => {
      attribute(node, { "aria-selected": at === selection, tabindex: at === current ? 0 : -1 });
    });
  }

  /** The column that an event is in, null where it is in none. @param {Event} event */
  function indexOf(event) {
    const at = nodes.findIndex((node) => node.contains(targetOf(event)));
    return at < 0 ? null : at;
  }
  const choose = (/** @type {number} */ at) => tell(model, "selection", model.get("selection") === at ? null : at);

  function move(/** @type {number} */ at) {
    nodes[current].tabIndex = -1;
    current = Math.max(0, Math.min(nodes.length - 1, at));
    nodes[current].tabIndex = 0;
    nodes[current].focus();
  }

  list.addEventListener("pointerover", (event) => tell(model, "hovered", indexOf(event)));
  list.addEventListener("pointerleave", () => tell(model, "hovered", null));
  list.addEventListener("click", (event) => {
    const at = indexOf(event);
    if (at === null) return;
    move(at);
    choose(at);
  });
  list.addEventListener("keydown", (event) => {
    if (!nodes.length) return;
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to !== undefined) move(to);
    else if (event.key === "Enter" || event.key === " ") choose(current);
    else if (event.key === "Escape") tell(model, "selection", null);
    else return;
    taken(event);
  });

  draw();
  return follow({ model, el }, { "columns marks labels names": draw, selection: drawSelection });
}

export default { render };
