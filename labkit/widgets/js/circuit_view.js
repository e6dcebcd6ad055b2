// @ts-check
// CircuitView: parts of a model by layer, the text going in at the bottom; edges as curves and as a list.

const [ROW, TALL] = [26, 17]; // from layer to layer, and a node's height

/**
 * From the top of one node to the foot of another; around what lies straight between. As in circuit_view.py.
 * @param {number[]} start @param {number[]} end
 */
function curve([x, y], [toX, toY]) {
  if (Math.abs(y - toY) < 1) {
    const middle = (x + toX) / 2;
    return `M${x} ${y}C${middle} ${y - 12} ${middle} ${y - 12} ${toX} ${toY}`;
  }
  const [from, to] = [y - TALL / 2, toY + TALL / 2];
  const round = from - to > ROW ? Math.min(66, 34 + 0.14 * (from - to)) : 8; // labels in between would hide it
  const bow = Math.abs(x - toX) < 2 ? round : 0;
  const lift = Math.max(6, 0.42 * (from - to));
  return `M${x} ${from}C${x + bow} ${from - lift} ${toX + bow} ${to + lift} ${toX} ${to}`;
}

/** @param {Context<CircuitViewTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-circuit");
  const title = element("div", "labkit-title");
  const caption = element("div", "labkit-muted");
  const body = element("div", "labkit-circuit-body");
  const picture = shape("svg", { role: "group", class: "labkit-circuit-picture" });
  const side = element("div", "labkit-circuit-side");
  const heading = element("div", "labkit-circuit-heading");
  const words = element("span");
  const all = element("button", "labkit-circuit-all", "Show all");
  const list = element("div", "labkit-circuit-list", "", { role: "listbox", tabindex: 0 });
  heading.append(words, all);
  side.append(heading, list);
  body.append(picture, side);
  const live = spoken(el);
  const key = element("div", "labkit-circuit-key");
  const keys = [["pro", "toward the answer"], ["con", "against it"]].map(([name, text]) => {
    const line = element("span", `labkit-circuit-${name}`);
    key.append(line, element("span", "labkit-muted", text));
    return line;
  });
  key.append(element("span", "labkit-muted", "· width: how much"));
  el.append(title, caption, body, key);
  const note = floatingNote(el);
  const get = model.get.bind(model);
  let paths = /** @type {SVGGraphicsElement[][]} */ ([]); // of each edge: the curves that are drawn for it
  let options = /** @type {HTMLElement[]} */ ([]);
  let boxes = /** @type {Map<string, SVGElement>} */ (new Map());
  let cursor = /** @type {number | null} */ (null);

  const score = (/** @type {number} */ edge) => numbers(get("strengths"))?.data[edge] ?? NaN;
  const signed = (/** @type {number} */ value) => `${value < 0 ? "−" : "+"}${say(Math.abs(value))}`;
  const called = (/** @type {number} */ edge) => `${get("names")[edge][0]} → ${get("names")[edge][1]}`;

  function hue(/** @type {number} */ value, /** @type {number} */ most, /** @type {Uint8ClampedArray} */ table) {
    const share = Math.sqrt(Math.abs(value) / most);
    return css(table, Math.round(255 * (0.5 + (0.2 + 0.2 * share) * Math.sign(value))));
  }

  function draw() {
    write(title, get("title"));
    caption.textContent = get("caption");
    const strengths = numbers(get("strengths"));
    const lines = numbers(get("lines"));
    if (!strengths || !lines || !el.clientWidth) return;
    const table = tableOf(model, el);
    keys[0].style.background = css(table, 224);
    keys[1].style.background = css(table, 31);
    const wide = Math.min(680, Math.max(420, el.clientWidth - 290));
    const high = ROW * get("rows").length + 6;
    picture.replaceChildren();
    const says = `${get("title")}: ${get("caption")}. The edges are in the list beside it.`;
    attribute(picture, { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, "aria-label": says });
    list.style.maxHeight = `${Math.max(200, high - 30)}px`;
    get("rows").forEach((text, n) => {
      picture.append(shape("text", { x: 2, y: high - 12 - ROW * n, class: "labkit-circuit-row" }, text));
    });
    const places = get("nodes").map(([, , across, row]) => [56 + across * (wide - 110), high - 16 - ROW * row]);
    const most = Math.max(...strengths.data.map(Math.abs), 1e-9);
    const drawn = shape("g", { "aria-hidden": "true" });
    const touched = shape("g", { "aria-hidden": "true" }); // wide and unseen, for the pointer
    picture.append(drawn, touched);
    paths = get("names").map(() => []);
    for (let n = lines.shape[0] - 1; n >= 0; n--) {
      const [edge, from, to] = lines.data.slice(3 * n, 3 * n + 3);
      const share = Math.sqrt(Math.abs(strengths.data[edge]) / most);
      const d = curve(places[from], places[to]);
      const stroke = hue(strengths.data[edge], most, table);
      const line = { stroke, "stroke-width": 0.6 + 4.4 * share, "stroke-opacity": 0.35 + 0.6 * share, "data-edge": edge };
      const path = shape("path", { d, class: "labkit-circuit-edge", ...line });
      const touch = shape("path", { d, class: "labkit-circuit-touch" });
      paths[edge].push(path);
      drawn.append(path);
      touched.append(touch);
      touch.addEventListener("pointermove", (event) => look(edge, event.clientX, event.clientY));
      touch.addEventListener("pointerleave", () => look(null));
      touch.addEventListener("click", () => choose(edge));
    }
    boxes = new Map();
    get("nodes").forEach(([name, label], n) => {
      const [x, y] = places[n];
      const long = 12 + 6.2 * label.length;
      const says = { role: "button", tabindex: 0, "aria-label": `${name}: show its edges alone` };
      const group = shape("g", { class: "labkit-circuit-node", ...says });
      group.append(
        shape("rect", { x: x - long / 2, y: y - TALL / 2, width: long, height: TALL, rx: 5 }),
        shape("text", { x, y: y + 4, "text-anchor": "middle" }, label),
      );
      picture.append(group);
      const toggle = () => tell(model, "node", get("node") === name ? null : name);
      group.addEventListener("click", toggle);
      group.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        taken(event);
        toggle();
      });
      boxes.set(name, group);
    });
    drawList();
  }

  /** The edges that touch the chosen part; all where none is chosen. */
  function shown() {
    const chosen = get("node");
    const every = get("names").map((_, edge) => edge);
    if (!chosen) return every;
    const at = get("nodes").findIndex(([name]) => name === chosen);
    const lines = numbers(get("lines"));
    const mine = new Set();
    for (let n = 0; lines && n < lines.shape[0]; n++) {
      if (lines.data[3 * n + 1] === at || lines.data[3 * n + 2] === at) mine.add(lines.data[3 * n]);
    }
    return every.filter((edge) => mine.has(edge));
  }

  function drawList() {
    const edges = shown();
    const chosen = get("node");
    words.textContent = chosen ? `${edges.length} edges of ${chosen}` : `${edges.length} edges, the strongest first`;
    all.hidden = !chosen;
    list.setAttribute("aria-label", words.textContent);
    options = edges.map((edge, n) => {
      const option = element("div", "labkit-circuit-option", "", { role: "option", id: `${id}-${edge}`, "data-edge": edge });
      option.append(element("span", "labkit-mono", called(edge)), element("span", "labkit-number", signed(score(edge))));
      option.addEventListener("pointerenter", () => look(edge));
      option.addEventListener("pointerleave", () => look(null));
      option.addEventListener("click", () => {
        cursor = n;
        choose(edge);
      });
      return option;
    });
    list.replaceChildren(...options);
    const kept = new Set(edges);
    paths.forEach((curves, edge) => curves.forEach((path) => path.classList.toggle("labkit-circuit-quiet", !kept.has(edge))));
    for (const [name, group] of boxes) {
      group.classList.toggle("labkit-chosen", name === chosen);
      attribute(group, { "aria-pressed": name === chosen });
    }
    cursor = null;
    mark();
  }

  function mark() {
    const [chosen, under] = [get("selection"), get("hovered")];
    paths.forEach((curves, edge) => {
      for (const path of curves) {
        const on = edge === chosen || edge === under;
        path.classList.toggle("labkit-circuit-on", on);
        if (on) path.parentElement?.append(path);
      }
    });
    for (const option of options) {
      const edge = Number(option.dataset.edge);
      attribute(option, { "aria-selected": edge === chosen });
      option.classList.toggle("labkit-circuit-under", edge === under);
    }
  }

  function look(/** @type {number | null} */ edge, x = NaN, y = NaN) {
    tell(model, "hovered", edge);
    mark();
    if (edge === null || Number.isNaN(x)) return note.hide();
    const head = element("div", "labkit-note-head");
    head.append(element("span", "labkit-mono", called(edge)), element("span", "labkit-note-value", signed(score(edge))));
    note.show({ left: x + 12, top: y, bottom: y + 6 }, [head, element("div", "labkit-muted", `estimated cost of cutting it, ${get("unit") || "in the metric's unit"}`)]);
  }

  function choose(/** @type {number} */ edge) {
    tell(model, "selection", get("selection") === edge ? null : edge);
    mark();
  }

  function go(/** @type {number} */ to) {
    if (!options.length) return;
    cursor = Math.max(0, Math.min(options.length - 1, to));
    const option = options[cursor];
    list.setAttribute("aria-activedescendant", option.id);
    list.scrollTop = Math.max(Math.min(list.scrollTop, option.offsetTop), option.offsetTop + option.offsetHeight - list.clientHeight);
    live.textContent = `${called(Number(option.dataset.edge))}, ${signed(score(Number(option.dataset.edge)))} ${get("unit")}`;
    look(Number(option.dataset.edge));
  }

  const id = `labkit-circuit-${Math.random().toString(36).slice(2)}`;
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / 22) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page }[event.key];
    if (step) go(cursor === null ? 0 : cursor + step);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(options.length - 1);
    else if ((event.key === "Enter" || event.key === " ") && cursor !== null) choose(Number(options[cursor].dataset.edge));
    else if (event.key === "Escape") tell(model, "node", null);
    else return;
    taken(event);
  });
  list.addEventListener("blur", () => look(null));
  all.addEventListener("click", () => tell(model, "node", null));

  const whole = "nodes lines strengths names title caption stops";
  return follow({ model, el }, { [whole]: draw, node: drawList, "selection hovered": mark }, draw, true);
}

export default { render };
