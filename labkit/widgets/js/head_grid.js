// @ts-check
// HeadGrid: one thumbnail for each head of each layer; layer 0 is at the bottom, where the text goes in. Given an
// order, the heads stand one after the other instead, each with its name and score.

/** @param {Context<HeadGridTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-heads");
  const title = element("div", "labkit-title");
  const scroller = element("div", "labkit-heads-scroll");
  /** @type {HeadPlan} */
  let plan;

  const get = model.get.bind(model);
  const key = (/** @type {Cell} */ [layer, head]) => `${layer}.${head}`;
  const headOf = (/** @type {string} */ name) => /** @type {Cell} */ (name.split(".").map(Number));
  const scoreOf = (/** @type {Cell} */ [layer, head]) => {
    const scores = numbers(get("scores"));
    return scores ? scores.data[layer * scores.shape[1] + head] : NaN;
  };

  /** Layers up, heads across. @param {number} layers @param {number} heads @returns {HeadPlan} */
  function asGrid(layers, heads) {
    const [left, bottom] = [40, 38];
    const room = Math.floor(Math.min((el.clientWidth - left - 18) / heads, (get("max_height") - bottom - 6) / layers));
    const cell = get("side") || Math.max(12, Math.min(28, room));
    const places = new Map();
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        places.set(key([layer, head]), { x: left + head * cell, y: 2 + (layers - 1 - layer) * cell });
      }
    }
    return { layers, heads, cell, left, places, wide: left + heads * cell + 2, high: 2 + layers * cell + bottom };
  }

  /** In their order, line by line. @returns {HeadPlan} */
  function asRanks(/** @type {number} */ layers, /** @type {number} */ heads, /** @type {Cell[]} */ order) {
    const [cell, across, down] = [34, 52, 66];
    const columns = Math.max(1, Math.floor((el.clientWidth - 22) / across));
    const places = new Map();
    order.forEach((head, n) => {
      places.set(key(head), { x: (n % columns) * across + (across - cell) / 2, y: 2 + Math.floor(n / columns) * down });
    });
    const lines = Math.max(1, Math.ceil(order.length / columns));
    return { layers, heads, cell, columns, places, order, wide: columns * across, high: lines * down + 2 };
  }

  /** All thumbnails side by side, one dot per number. @param {Numbers} pictures */
  function sheetOf({ data, shape: [layers, heads, size] }) {
    const table = tableOf(model, el);
    const sheet = element("canvas");
    sheet.width = heads * size;
    sheet.height = layers * size;
    const picture = new ImageData(sheet.width, sheet.height);
    for (let i = 0, from = 0; i < layers * heads; i++) {
      const [x, y] = [(i % heads) * size, Math.floor(i / heads) * size];
      for (let row = 0; row < size; row++) {
        for (let column = 0; column < size; column++, from++) {
          const at = 3 * data[from];
          picture.data.set([table[at], table[at + 1], table[at + 2], 255], 4 * ((y + row) * sheet.width + x + column));
        }
      }
    }
    pen(sheet).putImageData(picture, 0, 0);
    return sheet;
  }

  function draw() {
    cells.palette();
    write(title, get("title"));
    const pictures = numbers(get("thumbnails"));
    stage.hidden = !pictures;
    if (!pictures || !el.clientWidth) return;
    const [layers, heads, size] = pictures.shape;
    const order = get("order");
    plan = order ? asRanks(layers, heads, order) : asGrid(layers, heads);
    const about = order
      ? `${plan.places.size} heads in order of ${get("score") || "their score"}`
      : `${layers} layers by ${heads} heads, layer 0 at the bottom`;
    stage.setAttribute("aria-label", `${get("title") || "attention heads"}: ${about}. Arrow keys move, Enter selects, X chooses several.`);
    scroller.style.maxHeight = `${get("max_height")}px`;
    const context = cells.resize(plan.wide, plan.high);
    const sheet = sheetOf(pictures);
    context.imageSmoothingEnabled = size > plan.cell * (devicePixelRatio || 1);
    context.imageSmoothingQuality = "high";
    const faint = new Set(get("faint").map(key));
    const inner = plan.cell - 3;
    for (const [name, { x, y }] of plan.places) {
      const [layer, head] = headOf(name);
      context.globalAlpha = faint.has(name) ? 0.16 : 1;
      context.drawImage(sheet, head * size, layer * size, size, size, x + 1.5, y + 1.5, inner, inner);
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      context.strokeRect(x + 1, y + 1, plan.cell - 2, plan.cell - 2);
    }
    context.globalAlpha = 1;
    if (order) nameRanks(context);
    else nameAxes(context);
    cells.drawOver();
  }

  function nameRanks(/** @type {CanvasRenderingContext2D} */ context) {
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [name, { x, y }] of plan.places) {
      context.fillStyle = colours.ink;
      context.font = `11px ${colours.mono}`;
      context.fillText(name, x + plan.cell / 2, y + plan.cell + 8);
      const score = scoreOf(headOf(name));
      context.fillStyle = colours.muted;
      if (Number.isFinite(score)) context.fillText(tick(Number(score.toFixed(2))), x + plan.cell / 2, y + plan.cell + 20);
    }
  }

  function nameAxes(/** @type {CanvasRenderingContext2D} */ context) {
    const { layers, heads, cell, left = 0 } = plan;
    context.fillStyle = colours.muted;
    context.font = `11px ${colours.mono}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil(14 / cell);
    for (let layer = 0; layer < layers; layer += every) {
      context.fillText(String(layer), left - 5, corner([layer, 0]).y + cell / 2);
    }
    context.textAlign = "center";
    const between = Math.ceil((heads > 10 ? 18 : 10) / cell);
    for (let head = 0; head < heads; head += between) {
      context.fillText(String(head), corner([0, head]).x + cell / 2, 2 + layers * cell + 9);
    }
    context.font = `12px ${colours.sans}`;
    context.fillText("head", left + (heads * cell) / 2, plan.high - 9);
    context.translate(9, 2 + (layers * cell) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("layer", 0, 0);
  }

  const has = (/** @type {Cell} */ cell) => plan.places.has(key(cell));
  const corner = (/** @type {Cell} */ cell) => plan.places.get(key(cell)) ?? { x: 0, y: 0 };

  function toggle(/** @type {Cell} */ cell) {
    const others = get("chosen").filter((one) => !sameCell(one, cell));
    tell(model, "chosen", others.length < get("chosen").length ? others : [...others, cell]);
    cells.drawOver();
  }

  /**
   * In ranks the arrow keys go along the order.
   * @param {Cell[]} order @param {number} columns @param {string} pressed @param {Cell} cell
   */
  function alongRanks(order, columns, pressed, cell) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[pressed];
    if (!step || !order.length) return undefined;
    const at = order.findIndex((one) => sameCell(one, cell));
    return order[Math.max(0, Math.min(order.length - 1, at + step))];
  }

  /** @type {Geometry} */
  const geometry = {
    ready: () => plan !== undefined,
    first: () => plan.order?.[0] ?? [0, 0],
    steps: () => (plan.order ? /** @type {Record<string, Cell>} */ ({}) : { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }),
    clamp([layer, head]) {
      /** @type {Cell} */
      const cell = [Math.max(0, Math.min(plan.layers - 1, layer)), Math.max(0, Math.min(plan.heads - 1, head))];
      return has(cell) ? cell : geometry.first();
    },
    key(event, cell) {
      if (event.key.toLowerCase() === "x" && !event.ctrlKey && !event.metaKey) {
        toggle(cell);
        return true;
      }
      return plan.order ? alongRanks(plan.order, plan.columns ?? 1, event.key, cell) : undefined;
    },
    pick(cell, event) {
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return false;
      toggle(cell);
      return true;
    },
    at(x, y) {
      for (const [name, place] of plan.places) {
        const tall = plan.order ? plan.cell + 26 : plan.cell;
        if (x >= place.x && y >= place.y && x < place.x + plan.cell && y < place.y + tall) return headOf(name);
      }
      return null;
    },
    box: (cell) => ({ ...corner(cell), width: plan.cell, height: plan.cell }),
    under(context) {
      for (const cell of get("chosen").filter(has)) {
        const { x, y } = corner(cell);
        context.fillStyle = colours.accent;
        context.strokeStyle = colours.page;
        context.lineWidth = 1.5;
        context.beginPath();
        context.arc(x + plan.cell - 4.5, y + 4.5, 4.5, 0, 2 * Math.PI);
        context.fill();
        context.stroke();
      }
    },
    outline(context, cell, colour, thickness) {
      if (!has(cell)) return;
      const { x, y } = corner(cell);
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.strokeRect(x + 1, y + 1, plan.cell - 2, plan.cell - 2);
    },
    say(cell) {
      const score = scoreOf(cell);
      const chosen = get("chosen").some((one) => sameCell(one, cell));
      const name = `layer ${cell[0]}, head ${cell[1]}`;
      const scored = Number.isFinite(score) ? `${get("score") || "score"} ${say(score)}` : "";
      const content = [element("div", "", name + (chosen ? " · chosen" : ""))];
      if (scored) content.push(element("div", "labkit-muted", scored));
      return { spoken: [name, scored, chosen ? "chosen" : ""].filter(Boolean).join(", "), content };
    },
  };
  const cells = cellGrid({ model, el, role: "grid of attention heads", geometry });
  const { stage, colours } = cells;
  scroller.append(stage);
  el.append(title, scroller);

  const whole = "thumbnails title stops side max_height order faint scores score";
  return follow({ model, el }, { [whole]: onceAFrame(draw), "selection chosen": cells.drawOver }, draw, true);
}

export default { render };
