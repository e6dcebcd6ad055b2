// @ts-check
// The window of a heatmap: which of its rows and columns are looked at, and how to zoom and pan.
//
// A large grid reaches the browser pooled (`values`, the strongest of step x step cells); the window's own cells follow
// as `detail` once somebody looks closer. `extent` is the size of the grid itself.

/** Values as they are used: a lower triangle is made a square again. @param {Wire | null} wire @returns {Numbers | null} */
function unpacked(wire) {
  const packed = numbers(wire);
  if (!packed || !wire?.triangle) return packed;
  const size = wire.shape[0];
  const data = packed.dtype === "uint8" ? new Uint8Array(size * size) : new Float32Array(size * size);
  for (let row = 0, from = 0; row < size; from += ++row) data.set(packed.data.subarray(from, from + row + 1), row * size);
  return { ...packed, data };
}

/**
 * Where numbers come from for a window [row, row stop, column, column stop]: the detail if it covers it.
 * @param {Model<HeatmapTraits>} model @param {Numbers} values @param {Part} part @returns {Source}
 */
function sourceOf(model, values, [row, rowStop, column, columnStop]) {
  const at = model.get("detail_at");
  const detail = at && numbers(model.get("detail"));
  if (detail && at[0] <= row && at[1] >= rowStop && at[2] <= column && at[3] >= columnStop) {
    return { ...detail, row: at[0], column: at[2], step: Math.ceil((at[1] - at[0]) / detail.shape[0]) };
  }
  const rows = model.get("extent")?.[0] ?? values.shape[0];
  return { ...values, row: 0, column: 0, step: Math.ceil(rows / values.shape[0]) };
}

/** Is a cell in the window? @param {HeatmapPlan} plan @param {Cell} cell */
const shownBy = ({ firstRow, firstColumn, rows, columns }, [row, column]) =>
  row >= firstRow && column >= firstColumn && row < firstRow + rows && column < firstColumn + columns;

const LEAST = 6; // rows that can still be read as a picture

/**
 * A part as high and wide as asked, no further than the edges of a grid of this size.
 * @param {Cell} size @param {number} from @param {number} start @param {number} height @param {number} width @returns {Part}
 */
function placed([rows, columns], from, start, height, width) {
  const high = Math.round(Math.min(rows, Math.max(Math.min(LEAST, rows), height)));
  const wide = Math.round(Math.min(columns, Math.max(Math.min(LEAST, columns), width)));
  const top = Math.round(Math.max(0, Math.min(rows - high, from)));
  const left = Math.round(Math.max(0, Math.min(columns - wide, start)));
  return [top, top + high, left, left + wide];
}

/**
 * A part made larger or smaller by a factor about a cell, which stays where it is; about the middle without one.
 * @param {Cell} size @param {Part} part @param {number} factor @param {Cell | null} [about]
 */
function zoomed(size, [top, bottom, left, right], factor, about) {
  const [row, column] = about ?? [(top + bottom) / 2, (left + right) / 2];
  const [high, wide] = [(bottom - top) * factor, (right - left) * factor];
  return placed(size, row - (row - top) * factor, column - (column - left) * factor, high, wide);
}

/**
 * @param {{ model: Model<HeatmapTraits>, stage: HTMLElement, tools: HTMLElement, plan: () => HeatmapPlan | null,
 *   changed: () => void }} context
 */
function heatmapWindow({ model, stage, tools, plan, changed }) {
  /** @returns {Cell} */
  const size = () => model.get("extent") ?? /** @type {Cell} */ (model.get("values")?.shape ?? [0, 0]);
  /** @returns {Part} */
  const now = () => model.get("window") ?? [0, size()[0], 0, size()[1]];
  let drag = /** @type {{ window: Part, x: number, y: number } | null} */ (null);
  let moved = false;

  function go(/** @type {Part} */ window) {
    const [rows, columns] = size();
    const whole = window[1] - window[0] >= rows && window[3] - window[2] >= columns;
    tell(model, "window", whole ? null : window);
    less.disabled = all.disabled = whole;
    changed();
  }

  /** @type {(factor: number, about?: Cell | null) => void} */
  const zoom = (factor, about) => go(zoomed(size(), now(), factor, about));
  const pan = (/** @type {number} */ rows, /** @type {number} */ columns) => {
    const [top, bottom, left, right] = now();
    go(placed(size(), top + rows, left + columns, bottom - top, right - left));
  };

  function button(/** @type {string} */ text, /** @type {string} */ label, /** @type {() => void} */ act) {
    const says = { type: "button", "aria-label": label, title: label };
    const node = element("button", "labkit-tool-button", text, says);
    node.addEventListener("click", act);
    tools.append(node);
    return node;
  }
  button("+", "Zoom in (Ctrl + wheel, or +)", () => zoom(0.5, model.get("selection")));
  const less = button("−", "Zoom out (−)", () => zoom(2));
  const wholeAgain = () => go([0, size()[0], 0, size()[1]]);
  const all = button("whole", "Show the whole (0)", wholeAgain);

  /** @param {MouseEvent} event @param {HeatmapPlan} plan @returns {Cell} */
  const cellAt = (event, { left, top, cellWidth, cellHeight }) => {
    const frame = stage.getBoundingClientRect();
    const window = now();
    return [
      window[0] + (event.clientY - frame.top - top) / cellHeight,
      window[2] + (event.clientX - frame.left - left) / cellWidth,
    ];
  };
  stage.addEventListener("wheel", (event) => {
    const drawn = plan();
    if (!model.get("zoomable") || !drawn || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, cellAt(event, drawn));
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    moved = false;
    if (model.get("zoomable") && model.get("window") && event.button === 0) {
      drag = { window: now(), x: event.clientX, y: event.clientY };
    }
  });
  stage.addEventListener("pointermove", (event) => {
    const drawn = plan();
    if (!drag || !drawn) return;
    if (!moved && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 5) return;
    moved = true;
    stage.setPointerCapture?.(event.pointerId);
    const { cellWidth, cellHeight } = drawn;
    const [top, bottom, left, right] = drag.window;
    const [down, across] = [(event.clientY - drag.y) / cellHeight, (event.clientX - drag.x) / cellWidth];
    go(placed(size(), top - down, left - across, bottom - top, right - left));
  });
  const drop = () => (drag = null);
  stage.addEventListener("pointerup", drop);
  stage.addEventListener("pointercancel", drop);
  stage.addEventListener("dblclick", (event) => {
    const drawn = plan();
    if (model.get("zoomable") && drawn) zoom(0.5, cellAt(event, drawn));
  });

  return {
    now,
    /** Was this click the end of a drag? */
    dragged: () => moved,
    /** Keys of its own; a window that follows the cursor. @param {KeyboardEvent} event @param {Cell} cursor */
    key(event, cursor) {
      if (!model.get("zoomable")) return undefined;
      const [top, bottom, left, right] = now();
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.shiftKey && step) {
        const [down, across] = step;
        pan((down * (bottom - top)) / 4, (across * (right - left)) / 4);
      } else if (event.key === "+" || event.key === "=") zoom(0.5, cursor);
      else if (event.key === "-") zoom(2, cursor);
      else if (event.key === "0") wholeAgain();
      else return undefined;
      return true;
    },
    /** Bring a cell that the keyboard went to into the window. @param {Cell} cell */
    follow([row, column]) {
      const [top, bottom, left, right] = now();
      const down = row < top ? row - top : row >= bottom ? row - bottom + 1 : 0;
      const across = column < left ? column - left : column >= right ? column - right + 1 : 0;
      if (down || across) pan(down, across);
    },
    draw() {
      tools.hidden = !model.get("zoomable") || !model.get("values");
      const whole = !model.get("window");
      less.disabled = all.disabled = whole;
      stage.style.cursor = whole ? "" : "grab";
    },
  };
}
