// @ts-check
// Heatmap: a canvas of cells with readable labels, a colour bar, and the cell under the pointer or the keyboard.

const FONT = 12;
const BAR = { width: 12, gap: 18, label: 58 };

/** @param {Context<HeatmapTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-heatmap");
  const head = element("div", "labkit-heatmap-head");
  const title = element("div", "labkit-title");
  const legend = element("div", "labkit-heatmap-legend labkit-muted");
  const tools = element("div", "labkit-tool-buttons");
  head.append(title, tools);
  let table = new Uint8ClampedArray();
  /** @type {HeatmapPlan} */
  let plan; // where everything lies, in CSS pixels
  const get = model.get.bind(model);
  let held = /** @type {[Wire | null, Numbers | null]} */ ([null, null]); // values as they came, and unpacked
  const grid = () => {
    const wire = get("values");
    if (held[0] !== wire) held = [wire, unpacked(wire)];
    return /** @type {Numbers} */ (held[1]); // asked for only where there are values
  };

  /** A cell of the grid itself, from a source of numbers that may stand for several cells each. */
  function valueAt(/** @type {Source} */ source, /** @type {number} */ row, /** @type {number} */ column) {
    if (get("triangular") && column > row) return NaN;
    const [down, across] = [Math.floor((row - source.row) / source.step), Math.floor((column - source.column) / source.step)];
    const raw = source.data[down * source.shape[1] + across];
    return source.dtype === "uint8" ? get("low") + (raw / 255) * (get("high") - get("low")) : raw;
  }

  const labelOf = (/** @type {"row" | "column"} */ axis, /** @type {number} */ at) => get(`${axis}_labels`)[at] ?? String(at);
  const shorten = (/** @type {string} */ text) => (text.length > 14 ? `${text.slice(0, 13)}…` : text);

  /** The plot's own row of pixels for a row of the values, and back. @type {Flip} */
  const flip = (row) => (get("origin") === "bottom" ? plan.rows - 1 - row : row);
  /** @returns {Drawing} */
  const drawing = (/** @type {CanvasRenderingContext2D} */ context) => ({ context, model, plan, flip, colours });
  const sources = () => sourceOf(model, grid(), frame.now());

  /** @param {Numbers} values @returns {HeatmapPlan} */
  function measure(values) {
    const context = pen(base);
    const [firstRow, lastRow, firstColumn, lastColumn] = frame.now();
    const [rows, columns] = [lastRow - firstRow, lastColumn - firstColumn];
    context.font = `${FONT}px ${colours.mono}`;
    const widest = (/** @type {"row" | "column"} */ axis, /** @type {number} */ from, /** @type {number} */ to) => {
      let most = 0;
      for (let i = from; i < to; i++) most = Math.max(most, context.measureText(shorten(labelOf(axis, i))).width);
      return most;
    };
    const [from, to] = get("zoomable") ? [0, get("row_labels").length || lastRow] : [firstRow, lastRow];
    const left = Math.ceil(widest("row", from, to)) + 12 + (get("row_axis") ? 22 : 0);
    const top = 6;
    const right = BAR.gap + BAR.width + BAR.label;
    const room = Math.max(el.clientWidth - left - right, 60);
    const tall = get("max_height");
    let cellWidth = Math.min(room / columns, cellTexts(model, "texts", values) ? WORDS.widest : 48);
    let cellHeight = Math.min(tall / rows, 22);
    if (get("square")) cellWidth = cellHeight = Math.min(room / columns, tall / rows, 40);
    if (cellWidth >= 3) cellWidth = Math.floor(cellWidth);
    if (cellHeight >= 3) cellHeight = Math.floor(cellHeight);
    const labelWidth = widest("column", firstColumn, lastColumn);
    const turned = labelWidth > cellWidth - 6;
    const bottom = (turned ? Math.ceil(Math.min(labelWidth, 110) * 0.82) + 16 : FONT + 10) + (get("column_axis") ? 20 : 4);
    const width = Math.max(Math.round(cellWidth * columns), 1);
    const height = Math.max(Math.round(cellHeight * rows), 1);
    return {
      rows, columns, firstRow, firstColumn, left, top, right, bottom, cellWidth, cellHeight, width, height, turned,
      all: { width: left + width + right, height: Math.max(top + height + bottom, 96) },
    };
  }

  /** Cells that are not computed yet: quiet hatching, so that they are never taken for zero. */
  function hatching(/** @type {CanvasRenderingContext2D} */ context) {
    const tile = element("canvas");
    tile.width = tile.height = 6;
    const ink = pen(tile);
    ink.strokeStyle = colours.line;
    ink.beginPath();
    for (const shift of [-6, 0, 6]) {
      ink.moveTo(shift - 1, 7);
      ink.lineTo(shift + 7, -1);
    }
    ink.stroke();
    return /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
  }

  function draw() {
    if (!table || !el.clientWidth) return;
    const values = grid();
    write(title, get("title"));
    stage.setAttribute("aria-label", get("description"));
    stage.hidden = !values;
    frame.draw();
    head.hidden = title.hidden && tools.hidden;
    estimateLegend(model, legend);
    if (!values) return;
    plan = measure(values);
    const context = cells.resize(plan.all.width, plan.all.height);
    drawCells(context, values);
    drawAxes(context);
    drawBar(context);
    cells.drawOver();
  }

  function drawCells(/** @type {CanvasRenderingContext2D} */ context, /** @type {Numbers} */ values) {
    const { rows, columns, left, top, width, height } = plan;
    const ratio = devicePixelRatio || 1;
    const { firstRow: fromRow, firstColumn: fromColumn } = plan;
    const source = sources();
    context.fillStyle = get("triangular") ? colours.page : hatching(context);
    context.fillRect(left, top, width, height);
    // One dot per cell; where cells are smaller than a dot, the strongest of the cells in it.
    const wide = Math.min(columns, Math.round(width * ratio));
    const high = Math.min(rows, Math.round(height * ratio));
    const picture = new ImageData(wide, high);
    const [low, most, centre] = [get("low"), get("high"), get("centre")];
    const middle = centre ?? low;
    for (let y = 0; y < high; y++) {
      const firstRow = Math.floor((y * rows) / high);
      const lastRow = Math.max(firstRow + 1, Math.floor(((y + 1) * rows) / high));
      for (let x = 0; x < wide; x++) {
        const firstColumn = Math.floor((x * columns) / wide);
        const lastColumn = Math.max(firstColumn + 1, Math.floor(((x + 1) * columns) / wide));
        let best = NaN;
        // a pooled number is looked at once, where the grid's cells are more than the numbers
        for (let row = firstRow; row < lastRow; row += source.step) {
          for (let column = firstColumn; column < lastColumn; column += source.step) {
            const value = valueAt(source, fromRow + row, fromColumn + column);
            if (Number.isFinite(value) && !(Math.abs(value - middle) <= Math.abs(best - middle))) best = value;
          }
        }
        if (Number.isNaN(best)) continue;
        const at = 3 * shade(best, low, most, centre);
        const to = 4 * ((get("origin") === "bottom" ? high - 1 - y : y) * wide + x);
        picture.data.set([table[at], table[at + 1], table[at + 2], 255], to);
      }
    }
    const dots = element("canvas");
    dots.width = wide;
    dots.height = high;
    pen(dots).putImageData(picture, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(dots, left, top, width, height);
    drawEstimates(drawing(context));
    if (plan.cellWidth >= 9 && plan.cellHeight >= 9) {
      context.strokeStyle = colours.page;
      context.lineWidth = 1;
      context.beginPath();
      for (let i = 1; i < columns; i++) {
        context.moveTo(left + i * plan.cellWidth, top);
        context.lineTo(left + i * plan.cellWidth, top + height);
      }
      for (let i = 1; i < rows; i++) {
        context.moveTo(left, top + i * plan.cellHeight);
        context.lineTo(left + width, top + i * plan.cellHeight);
      }
      context.stroke();
    }
    context.strokeStyle = colours.line;
    context.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
    const inkAt = (/** @type {number} */ row, /** @type {number} */ column) => {
      const value = valueAt(source, fromRow + row, fromColumn + column);
      return Number.isFinite(value) ? inkOn(table, shade(value, low, most, centre)) : colours.ink;
    };
    const texts = cellTexts(model, "texts", values);
    if (texts) drawTexts(drawing(context), texts, inkAt);
  }

  function drawAxes(/** @type {CanvasRenderingContext2D} */ context) {
    const { rows, columns, left, top, width, height, cellWidth, cellHeight, turned } = plan;
    const marked = new Set(get("column_marks"));
    context.textBaseline = "middle";
    context.font = `${FONT}px ${colours.mono}`;
    context.fillStyle = colours.ink;
    context.textAlign = "right";
    const everyRow = Math.ceil((FONT + 2) / cellHeight);
    for (let row = 0; row < rows; row += everyRow) {
      context.fillText(shorten(labelOf("row", plan.firstRow + row)), left - 7, top + (flip(row) + 0.5) * cellHeight);
    }
    const everyColumn = Math.ceil((FONT + 2) / cellWidth);
    for (let column = 0; column < columns; column += everyColumn) {
      context.save();
      const stands = marked.has(plan.firstColumn + column);
      context.fillStyle = stands ? colours.accent : colours.ink;
      context.font = `${stands ? "bold " : ""}${FONT}px ${colours.mono}`;
      context.translate(left + (column + 0.5) * cellWidth, top + height + (turned ? 7 : 12));
      if (turned) context.rotate(-Math.PI / 3.2);
      context.textAlign = turned ? "right" : "center";
      context.fillText(shorten(labelOf("column", plan.firstColumn + column)), 0, 0);
      context.restore();
    }
    context.font = `${FONT}px ${colours.sans}`;
    context.fillStyle = colours.muted;
    context.textAlign = "center";
    if (get("column_axis")) context.fillText(get("column_axis"), left + width / 2, plan.all.height - 9);
    if (get("row_axis")) {
      context.save();
      context.translate(9, top + height / 2);
      context.rotate(-Math.PI / 2);
      context.fillText(get("row_axis"), 0, 0);
      context.restore();
    }
  }

  function drawBar(/** @type {CanvasRenderingContext2D} */ context) {
    const { left, top, width, height } = plan;
    const x = left + width + BAR.gap;
    const long = Math.min(height, 180);
    const centre = get("centre");
    const [low, high] = ends(get("low"), get("high"), centre);
    const shades = context.createLinearGradient(0, top + long, 0, top);
    for (let i = 0; i <= 16; i++) shades.addColorStop(i / 16, css(table, Math.round((i / 16) * 255)));
    context.fillStyle = shades;
    context.fillRect(x, top, BAR.width, long);
    context.strokeStyle = colours.line;
    context.strokeRect(x - 0.5, top - 0.5, BAR.width + 1, long + 1);
    context.font = `${FONT - 1}px ${colours.sans}`;
    context.fillStyle = colours.muted;
    context.textAlign = "left";
    context.textBaseline = "middle";
    const plain = [low, centre ?? (low + high) / 2, high].map((at) => /** @type {const} */ ([at, tick(at)]));
    const ticks = get("ticks").length ? get("ticks") : plain;
    for (const [at, label] of ticks) {
      const y = top + long * (1 - (at - low) / (high - low || 1));
      context.fillText(label, x + BAR.width + 6, Math.min(Math.max(y, top + 5), top + long - 5));
    }
    if (get("unit")) {
      context.save();
      context.translate(x + BAR.width + BAR.label - 10, top + long / 2);
      context.rotate(Math.PI / 2);
      context.textAlign = "center";
      context.fillText(get("unit"), 0, 0);
      context.restore();
    }
  }

  /** @type {Geometry} */
  const geometry = {
    ready: () => plan !== undefined,
    first: () => [plan.firstRow + flip(0), plan.firstColumn],
    steps: () => {
      const up = get("origin") === "bottom" ? 1 : -1;
      return { ArrowUp: [up, 0], ArrowDown: [-up, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    },
    clamp([row, column]) {
      const [rows, columns] = get("extent") ?? grid().shape;
      return [Math.max(0, Math.min(rows - 1, row)), Math.max(0, Math.min(columns - 1, column))];
    },
    key: (event, cursor) =>
      /** @type {Record<string, Cell>} */ ({
        Home: [cursor[0], plan.firstColumn],
        End: [cursor[0], plan.firstColumn + plan.columns - 1],
      })[event.key] ??
      frame.key(event, cursor),
    follow: (cell) => frame.follow(cell),
    dragged: () => frame.dragged(),
    at(x, y) {
      const column = Math.floor((x - plan.left) / plan.cellWidth);
      const row = Math.floor((y - plan.top) / plan.cellHeight);
      if (row < 0 || column < 0 || row >= plan.rows || column >= plan.columns) return null;
      return [plan.firstRow + flip(row), plan.firstColumn + column];
    },
    box: ([row, column]) => ({
      x: plan.left + (column - plan.firstColumn) * plan.cellWidth,
      y: plan.top + flip(row - plan.firstRow) * plan.cellHeight,
      width: plan.cellWidth,
      height: plan.cellHeight,
    }),
    outline(context, cell, colour, thickness) {
      if (!shownBy(plan, cell)) return;
      const { x, y, width, height } = geometry.box(cell);
      for (const [style, more] of /** @type {const} */ ([[colours.page, 2], [colour, 0]])) {
        context.lineWidth = thickness + more;
        context.strokeStyle = style;
        context.strokeRect(x, y, Math.max(width, 4), Math.max(height, 4));
      }
    },
    under(context) {
      drawCone(drawing(context));
      drawGestures(drawing(context), gestures);
    },
    say([row, column]) {
      const nameOf = (/** @type {"row" | "column"} */ axis) => get(`${axis}_axis`).split(" (")[0] || axis;
      const places = [[nameOf("row"), labelOf("row", row)], [nameOf("column"), labelOf("column", column)]];
      const ahead = get("triangular") && column > row;
      const at = row * grid().shape[1] + column;
      const told = cellTexts(model, "notes", grid())?.[at];
      const text = cellTexts(model, "texts", grid())?.[at];
      const number = told ?? (ahead ? "it cannot look ahead" : say(valueAt(sources(), row, column)));
      const lines = places.map(([axis, label]) => {
        const line = element("div");
        line.append(element("span", "labkit-muted", `${axis} `), element("span", "labkit-mono", label));
        return line;
      });
      const guessed = told === undefined && estimateMask(model)(row, column) ? " (estimate)" : "";
      const value = element("div", "labkit-note-value", number + guessed);
      if (get("unit") && !ahead && told === undefined && number !== "not computed yet") value.append(element("span", "labkit-muted", ` ${get("unit")}`));
      const spoken = `${places.map((place) => place.join(" ")).join(", ")}: ${text ? `${text}, ` : ""}${number}${guessed}`;
      const word = text ? [element("div", "labkit-mono labkit-note-text", text)] : [];
      return { spoken, content: [...word, value, ...lines] };
    },
  };
  const cells = cellGrid({ model, el, role: "heatmap", geometry });
  const { stage, base, colours } = cells;
  el.append(head, legend, stage);
  const gestures = watchGestures(model, stage, cells);
  const frame = heatmapWindow({ model, stage, tools, plan: () => plan, changed: () => redraw() });

  function dress() {
    cells.palette();
    table = tableOf(model, el);
    draw();
  }
  // Everything but what the pointer and the keyboard change is drawn anew as a whole, once a frame at most.
  const redraw = onceAFrame(() => {
    dress();
    if (get("values")) cells.refresh();
  });
  const numbersOf = "values low high centre stops window detail detail_at extent triangular estimated";
  const words = "title unit row_labels column_labels row_axis column_axis column_marks description texts notes ticks";
  return follow({ model, el }, {
    [`${numbersOf} ${words} square origin max_height zoomable`]: redraw,
    "selection cone chosen arrow": cells.drawOver,
  }, dress, true);
}

export default { render };
