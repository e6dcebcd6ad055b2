// @ts-check
// PairStrip: two prompts token over token. A column is one position; the columns wrap together.

/** @param {Context<PairStripTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-pair");
  const list = element("div", "labkit-pair-columns");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-orientation", "horizontal");
  el.append(list);
  /** @type {HTMLElement[]} */
  let nodes = [];
  let current = 0; // the column that Tab reaches

  /** @param {string | null} text */
  function chip(text) {
    const node = element("span", `labkit-token${text === null ? " labkit-is-gap" : ""}`);
    if (text !== null) writeToken(node, text);
    return node;
  }

  function draw() {
    const [upper, lower] = model.get("names");
    const marks = marksByPlace(model.get("marks"));
    list.setAttribute("aria-label", `${upper} and ${lower} prompt, token by token`);
    nodes = model.get("columns").map(([above, below], at) => {
      const node = element("div", "labkit-pair-column");
      const here = marks.get(at) ?? [];
      node.classList.add(...here.map(markClass));
      const label = model.get("labels")[at] ?? String(at);
      node.append(element("span", "labkit-pair-label", label), chip(above), chip(below));
      node.setAttribute("role", "option");
      const pair = above === below ? (above ?? "nothing") : `${upper} ${above ?? "nothing"}, ${lower} ${below ?? "nothing"}`;
      node.setAttribute("aria-label", [`${label}: ${pair}`, ...here].join(", "));
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
      node.setAttribute("aria-selected", String(at === selection));
      node.tabIndex = at === current ? 0 : -1;
    });
  }

  /** The column that an event is in, null where it is in none. @param {Event} event */
  function indexOf(event) {
    const at = nodes.findIndex((node) => node.contains(targetOf(event)));
    return at < 0 ? null : at;
  }
  /** @param {number} at */
  const choose = (at) => tell(model, "selection", model.get("selection") === at ? null : at);

  /** @param {number} at */
  function move(at) {
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
