// Heatmap: a canvas of cells with readable labels, a colour bar, and the cell under the pointer or the keyboard.

const FONT = 12;
const BAR = { width: 12, gap: 18, label: 58 };

function render({ model, el }) {
  blockRoot(el, "labkit-heatmap");
  const title = element("div", "labkit-title");
  const stage = element("div", "labkit-stage");
  const base = element("canvas");
  const over = element("canvas");
  stage.append(base, over);
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-roledescription", "heatmap");
  const live = spoken(el);
  el.append(title, stage);
  const note = floatingNote(el);
  let table = null;
  let colours = {};
  let plan = null; // where everything lies, in CSS pixels
  let cursor = null; // the cell that the keyboard is on
  let pointed = null; // the cell that the pointer is on

  const get = (name) => model.get(name);
  const grid = () => numbers(get("values"));

  function valueAt(cells, row, column) {
    const raw = cells.data[row * cells.shape[1] + column];
    return cells.dtype === "uint8" ? get("low") + (raw / 255) * (get("high") - get("low")) : raw;
  }

  const labelOf = (axis, at) => get(`${axis}_labels`)[at] ?? String(at);
  const shorten = (text) => (text.length > 14 ? `${text.slice(0, 13)}…` : text);

  /** The plot's own row of pixels for a row of the values, and back. */
  const flip = (row) => (get("origin") === "bottom" ? plan.rows - 1 - row : row);

  function measure(cells) {
    const context = base.getContext("2d");
    const [rows, columns] = cells.shape;
    context.font = `${FONT}px ${colours.mono}`;
    const widest = (axis, count) => {
      let most = 0;
      for (let i = 0; i < count; i++) most = Math.max(most, context.measureText(shorten(labelOf(axis, i))).width);
      return most;
    };
    const left = Math.ceil(widest("row", rows)) + 12 + (get("row_axis") ? 22 : 0);
    const top = 6;
    const right = BAR.gap + BAR.width + BAR.label;
    const room = Math.max(el.clientWidth - left - right, 60);
    const tall = get("max_height");
    let cellWidth = Math.min(room / columns, cellTexts(model, "texts", cells) ? WORDS.widest : 48);
    let cellHeight = Math.min(tall / rows, 22);
    if (get("square")) cellWidth = cellHeight = Math.min(room / columns, tall / rows, 40);
    if (cellWidth >= 3) cellWidth = Math.floor(cellWidth);
    if (cellHeight >= 3) cellHeight = Math.floor(cellHeight);
    const labelWidth = widest("column", columns);
    const turned = labelWidth > cellWidth - 6;
    const bottom = (turned ? Math.ceil(Math.min(labelWidth, 110) * 0.82) + 16 : FONT + 10) + (get("column_axis") ? 20 : 4);
    const width = Math.max(Math.round(cellWidth * columns), 1);
    const height = Math.max(Math.round(cellHeight * rows), 1);
    return {
      rows, columns, left, top, right, bottom, cellWidth, cellHeight, width, height, turned,
      all: { width: left + width + right, height: Math.max(top + height + bottom, 96) },
    };
  }

  function fit(canvas) {
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(plan.all.width * ratio);
    canvas.height = Math.round(plan.all.height * ratio);
    canvas.style.width = `${plan.all.width}px`;
    canvas.style.height = `${plan.all.height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  /** Cells that are not computed yet: quiet hatching, so that they are never taken for zero. */
  function hatching(context) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const ink = tile.getContext("2d");
    ink.strokeStyle = colours.line;
    ink.beginPath();
    for (const shift of [-6, 0, 6]) {
      ink.moveTo(shift - 1, 7);
      ink.lineTo(shift + 7, -1);
    }
    ink.stroke();
    return context.createPattern(tile, "repeat");
  }

  function draw() {
    if (!table || !el.clientWidth) return;
    const cells = grid();
    title.textContent = get("title");
    title.hidden = !get("title");
    stage.setAttribute("aria-label", get("description"));
    stage.hidden = !cells;
    if (!cells) return;
    plan = measure(cells);
    stage.style.width = `${plan.all.width}px`;
    stage.style.height = `${plan.all.height}px`;
    const context = fit(base);
    context.clearRect(0, 0, plan.all.width, plan.all.height);
    drawCells(context, cells);
    drawAxes(context);
    drawBar(context);
    fit(over);
    drawOver();
  }

  function drawCells(context, cells) {
    const { rows, columns, left, top, width, height } = plan;
    const ratio = devicePixelRatio || 1;
    context.fillStyle = hatching(context);
    context.fillRect(left, top, width, height);
    // One dot a cell; where cells are smaller than a dot, the strongest of the cells in it.
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
        for (let row = firstRow; row < lastRow; row++) {
          for (let column = firstColumn; column < lastColumn; column++) {
            const value = valueAt(cells, row, column);
            if (Number.isFinite(value) && !(Math.abs(value - middle) <= Math.abs(best - middle))) best = value;
          }
        }
        if (Number.isNaN(best)) continue;
        const at = 3 * shade(best, low, most, centre);
        const to = 4 * (flipDot(y, high) * wide + x);
        picture.data.set([table[at], table[at + 1], table[at + 2], 255], to);
      }
    }
    const dots = document.createElement("canvas");
    dots.width = wide;
    dots.height = high;
    dots.getContext("2d").putImageData(picture, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(dots, left, top, width, height);
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
    const inkAt = (row, column) => {
      const value = valueAt(cells, row, column);
      return Number.isFinite(value) ? inkOn(table, shade(value, low, most, centre)) : colours.ink;
    };
    const texts = cellTexts(model, "texts", cells);
    if (texts) drawTexts(context, texts, plan, flip, inkAt, colours.mono);
  }

  const flipDot = (y, high) => (get("origin") === "bottom" ? high - 1 - y : y);

  function drawAxes(context) {
    const { rows, columns, left, top, width, height, cellWidth, cellHeight, turned } = plan;
    const marked = new Set(get("column_marks"));
    context.textBaseline = "middle";
    context.font = `${FONT}px ${colours.mono}`;
    context.fillStyle = colours.ink;
    context.textAlign = "right";
    const everyRow = Math.ceil((FONT + 2) / cellHeight);
    for (let row = 0; row < rows; row += everyRow) {
      context.fillText(shorten(labelOf("row", row)), left - 7, top + (flip(row) + 0.5) * cellHeight);
    }
    const everyColumn = Math.ceil((FONT + 2) / cellWidth);
    for (let column = 0; column < columns; column += everyColumn) {
      context.save();
      context.fillStyle = marked.has(column) ? colours.accent : colours.ink;
      context.font = `${marked.has(column) ? "bold " : ""}${FONT}px ${colours.mono}`;
      context.translate(left + (column + 0.5) * cellWidth, top + height + (turned ? 7 : 12));
      if (turned) context.rotate(-Math.PI / 3.2);
      context.textAlign = turned ? "right" : "center";
      context.fillText(shorten(labelOf("column", column)), 0, 0);
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

  function drawBar(context) {
    const { left, top, width, height } = plan;
    const x = left + width + BAR.gap;
    const long = Math.min(height, 180);
    const [centre, most] = [get("centre"), get("high")];
    let low = get("low");
    let high = most;
    if (centre !== null) {
      const reach = Math.max(high - centre, centre - low) || 1;
      low = centre - reach;
      high = centre + reach;
    }
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
    const plain = centre === null ? [low, (low + high) / 2, high] : [low, centre, high];
    const ticks = get("ticks").length ? get("ticks") : plain.map((at) => [at, tick(at)]);
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

  function outline(context, cell, colour, width) {
    const x = plan.left + cell[1] * plan.cellWidth;
    const y = plan.top + flip(cell[0]) * plan.cellHeight;
    const [wide, high] = [Math.max(plan.cellWidth, 4), Math.max(plan.cellHeight, 4)];
    context.lineWidth = width + 2;
    context.strokeStyle = colours.page;
    context.strokeRect(x, y, wide, high);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.strokeRect(x, y, wide, high);
  }

  function drawOver() {
    if (!plan) return;
    const context = over.getContext("2d");
    context.clearRect(0, 0, plan.all.width, plan.all.height);
    const inside = (cell) => cell && cell[0] < plan.rows && cell[1] < plan.columns;
    if (inside(get("selection"))) outline(context, get("selection"), colours.accent, 2.5);
    const now = pointed || (document.activeElement === stage ? cursor : null);
    if (inside(now)) outline(context, now, colours.ink, 1.5);
  }

  function sentence([row, column]) {
    const name = (axis, at) => [get(`${axis}_axis`).split(" (")[0] || axis, labelOf(axis, at)];
    const at = row * plan.columns + column;
    const told = cellTexts(model, "notes", grid());
    const text = cellTexts(model, "texts", grid());
    return {
      row: name("row", row),
      column: name("column", column),
      value: told ? told[at] : say(valueAt(grid(), row, column)),
      unit: told ? "" : get("unit"),
      text: text ? text[at] : "",
    };
  }

  function showCell(cell) {
    const said = sentence(cell);
    const x = plan.left + cell[1] * plan.cellWidth;
    const y = plan.top + flip(cell[0]) * plan.cellHeight;
    const frame = stage.getBoundingClientRect();
    const lines = [said.row, said.column].map(([axis, label]) => {
      const line = element("div");
      line.append(element("span", "labkit-muted", `${axis} `), element("span", "labkit-mono", label));
      return line;
    });
    const value = element("div", "labkit-note-value", said.value);
    if (said.unit && said.value !== "not computed yet") value.append(element("span", "labkit-muted", ` ${said.unit}`));
    note.show(
      { left: frame.left + x + plan.cellWidth + 8, top: frame.top + y, bottom: frame.top + y + plan.cellHeight },
      said.text ? [element("div", "labkit-mono labkit-note-text", said.text), value, ...lines] : [value, ...lines],
    );
    const word = said.text ? `${said.text}, ` : "";
    live.textContent = `${said.row.join(" ")}, ${said.column.join(" ")}: ${word}${said.value}`;
  }

  function look(cell) {
    tell(model, "hovered", cell);
    if (cell) showCell(cell);
    else note.hide();
    drawOver();
  }

  function cellUnder(event) {
    if (!plan) return null;
    const frame = stage.getBoundingClientRect();
    const column = Math.floor((event.clientX - frame.left - plan.left) / plan.cellWidth);
    const row = Math.floor((event.clientY - frame.top - plan.top) / plan.cellHeight);
    if (row < 0 || column < 0 || row >= plan.rows || column >= plan.columns) return null;
    return [flip(row), column];
  }

  stage.addEventListener("pointermove", (event) => {
    const cell = cellUnder(event);
    if (JSON.stringify(cell) === JSON.stringify(pointed)) return;
    pointed = cell;
    look(cell);
  });
  stage.addEventListener("pointerleave", () => {
    pointed = null;
    look(null);
  });
  stage.addEventListener("click", (event) => {
    const cell = cellUnder(event);
    if (!cell) return;
    cursor = cell;
    tell(model, "selection", cell);
    drawOver();
  });
  stage.addEventListener("focus", () => {
    if (!plan || !stage.matches(":focus-visible")) return;
    cursor = get("selection") || cursor || [get("origin") === "bottom" ? plan.rows - 1 : 0, 0];
    look(cursor);
  });
  stage.addEventListener("blur", () => look(null));
  stage.addEventListener("keydown", (event) => {
    if (!plan) return;
    const up = get("origin") === "bottom" ? 1 : -1;
    const moves = { ArrowUp: [up, 0], ArrowDown: [-up, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const at = cursor || [0, 0];
    if (event.key in moves) cursor = [at[0] + moves[event.key][0], at[1] + moves[event.key][1]];
    else if (event.key === "Home") cursor = [at[0], 0];
    else if (event.key === "End") cursor = [at[0], plan.columns - 1];
    else if (event.key === "Enter" || event.key === " ") tell(model, "selection", at);
    else if (event.key === "Escape") {
      tell(model, "selection", null);
      note.hide();
    } else return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") return drawOver();
    cursor = [Math.max(0, Math.min(plan.rows - 1, cursor[0])), Math.max(0, Math.min(plan.columns - 1, cursor[1]))];
    pointed = null;
    look(cursor);
  });

  function dress() {
    const style = getComputedStyle(el);
    const of = (name) => style.getPropertyValue(name).trim();
    colours = {
      page: of("--lk-page"), ink: of("--lk-ink"), muted: of("--lk-muted"), line: of("--lk-line"),
      accent: of("--lk-accent"), mono: of("--lk-mono"), sans: of("--lk-sans"),
    };
    table = colourTable(get("stops")[el.dataset.theme]);
    draw();
  }
  const stopTheme = followTheme(el, dress);
  const observer = new ResizeObserver(dress);
  observer.observe(el);
  // Everything but what the pointer and the keyboard change is drawn anew as a whole, once a frame at most.
  let asked = false;
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      dress();
      if (pointed && get("values")) showCell(pointed);
    });
  }
  const whole = ["values", "low", "high", "centre", "stops", "title", "unit", "square", "origin", "max_height"]
    .concat(["row", "column"].flatMap((axis) => [`${axis}_labels`, `${axis}_axis`]), ["column_marks", "description", "texts", "notes", "ticks"])
    .map((name) => `change:${name}`)
    .join(" ");
  model.on(whole, redraw);
  model.on("change:selection", drawOver);
  return () => {
    stopTheme();
    observer.disconnect();
    model.off(whole, redraw);
    model.off("change:selection", drawOver);
  };
}

export default { render };
