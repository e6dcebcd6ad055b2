// PairStrip: two prompts token over token. A column is one position; the columns wrap together.

function render({ model, el }) {
  blockRoot(el, "labkit-pair");
  const list = element("div", "labkit-pair-columns");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-orientation", "horizontal");
  el.append(list);
  let nodes = [];
  let current = 0; // the column that Tab reaches
  const get = (name) => model.get(name);

  function chip(text) {
    if (text === null) return element("span", "labkit-token labkit-is-gap");
    const node = element("span", "labkit-token");
    // Spaces that are made visible are there to be seen, not to be read: paler than the word.
    const [, lead, word, tail] = /^(·*)([^]*?)(·*)$/.exec(text);
    if (lead) node.append(element("span", "labkit-space", lead));
    node.append(word);
    if (tail) node.append(element("span", "labkit-space", tail));
    return node;
  }

  function draw() {
    const [upper, lower] = get("names");
    const labels = get("labels");
    const marks = new Map();
    for (const [name, places] of Object.entries(get("marks"))) {
      for (const at of places) marks.set(at, [...(marks.get(at) || []), name]);
    }
    list.setAttribute("aria-label", `${upper} and ${lower} prompt, token by token`);
    nodes = get("columns").map(([above, below], at) => {
      const node = element("div", "labkit-pair-column");
      const here = marks.get(at) || [];
      for (const name of here) node.classList.add(`labkit-is-${name.replace(/[^a-z0-9-]/gi, "-")}`);
      node.append(element("span", "labkit-pair-label", labels[at] ?? String(at)), chip(above), chip(below));
      node.setAttribute("role", "option");
      const said = (text) => (text === null ? "nothing" : text);
      const pair = above === below ? said(above) : `${upper} ${said(above)}, ${lower} ${said(below)}`;
      node.setAttribute("aria-label", [`${labels[at] ?? at}: ${pair}`, ...here].join(", "));
      node.dataset.index = at;
      node.tabIndex = -1;
      return node;
    });
    current = Math.min(current, Math.max(nodes.length - 1, 0));
    list.replaceChildren(...nodes);
    el.hidden = !nodes.length;
    drawSelection();
  }

  function drawSelection() {
    const selection = get("selection");
    if (selection !== null && selection < nodes.length) current = selection;
    nodes.forEach((node, at) => {
      node.setAttribute("aria-selected", String(at === selection));
      node.tabIndex = at === current ? 0 : -1;
    });
  }

  const indexOf = (event) => {
    const node = event.target.closest(".labkit-pair-column");
    return node && list.contains(node) ? Number(node.dataset.index) : null;
  };
  const choose = (at) => tell(model, "selection", get("selection") === at ? null : at);

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
    event.preventDefault();
    event.stopPropagation();
  });

  const stopTheme = followTheme(el, () => {});
  draw();
  const whole = "change:columns change:marks change:labels change:names";
  model.on(whole, draw);
  model.on("change:selection", drawSelection);
  return () => {
    stopTheme();
    model.off(whole, draw);
    model.off("change:selection", drawSelection);
  };
}

export default { render };
