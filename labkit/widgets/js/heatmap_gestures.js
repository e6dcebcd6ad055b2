// @ts-check
// Heatmap, gestures: several cells chosen together (Shift or Ctrl with a click, Shift+Enter), and a cell dragged onto
// another (or M on the one and Enter on the other). They are caught before the plain click and Enter are.

/**
 * Watch `stage`: `under` gives the cell under an event, `cursor` the keyboard's, `drawOver` draws the overlay anew.
 * @param {Model<HeatmapTraits>} model @param {HTMLElement} stage
 * @param {Pick<ReturnType<typeof cellGrid>, "under" | "cursor" | "drawOver" | "announce">} cells
 */
function watchGestures(model, stage, { under: place, cursor, drawOver: redraw, announce }) {
  let pressed = /** @type {Cell | null} */ (null); // where the pointer went down
  let swallow = false; // the click that ends a drag is no click
  /** @type {GestureState} */
  const state = { from: null, to: null, marked: null };

  function toggle(/** @type {Cell} */ cell) {
    if (model.get("arrow")) tell(model, "arrow", null);
    const chosen = model.get("chosen");
    const less = chosen.filter((one) => !sameCell(one, cell));
    tell(model, "chosen", less.length < chosen.length ? less : [...chosen, cell]);
    announce(less.length < chosen.length ? "no longer chosen" : `chosen, ${chosen.length + 1} in all`);
    redraw();
  }

  /** What is looked at closely is one cell again. */
  function letGo() {
    state.marked = null;
    if (model.get("arrow")) tell(model, "arrow", null);
    if (model.get("chosen").length) tell(model, "chosen", []);
    redraw();
  }

  function carry(/** @type {Cell} */ from, /** @type {Cell} */ to) {
    if (model.get("chosen").length) tell(model, "chosen", []);
    tell(model, "arrow", [from, to]);
    redraw();
  }

  /** @type {Record<string, (event: any) => void>} */
  const handlers = {
    pointerdown(event) {
      swallow = false;
      pressed = event.button === 0 && event.pointerType !== "touch" && !event.shiftKey ? place(event) : null;
    },
    pointermove(event) {
      if (!pressed) return;
      const here = place(event);
      state.from = here && !sameCell(here, pressed) ? pressed : null;
      state.to = here;
      redraw();
    },
    pointerup(event) {
      if (!pressed) return;
      const here = place(event);
      swallow = state.from !== null;
      if (swallow && here) carry(pressed, here);
      pressed = state.from = state.to = null;
      redraw();
    },
    pointerleave() {
      pressed = state.from = state.to = null;
      redraw();
    },
    click(event) {
      const many = event.shiftKey || event.ctrlKey || event.metaKey;
      if (!swallow && !many) return place(event) ? letGo() : undefined; // and it is selected
      event.stopImmediatePropagation();
      const cell = place(event);
      if (!swallow && cell) toggle(cell);
      swallow = false;
    },
    keydown(event) {
      const cell = cursor();
      if (!cell) return;
      if (event.key === "Enter" && event.shiftKey) toggle(cell);
      else if (event.key === "m" || event.key === "M") {
        state.marked = cell;
        announce("marked: move to another cell and press Enter to patch it there");
        redraw();
      } else if (event.key === "Enter" && state.marked && !sameCell(state.marked, cell)) {
        carry(state.marked, cell);
        state.marked = null;
        redraw();
      } else if (event.key === "Escape" && (state.marked || model.get("arrow") || model.get("chosen").length)) {
        letGo();
        return; // and the selection goes as well
      } else if (event.key === "Enter" || event.key === " ") return letGo(); // and it is selected
      else return;
      event.preventDefault();
      event.stopImmediatePropagation();
    },
  };
  for (const [name, handle] of Object.entries(handlers)) {
    stage.addEventListener(name, (event) => model.get("gestures") && handle(event), { capture: true });
  }
  return state;
}

/** The chosen cells with a corner each, and the arrow of a drag, the one that is being drawn or the last one. */
function drawGestures(/** @type {Drawing} */ { context, model, plan, flip, colours }, /** @type {GestureState} */ state) {
  const { firstRow, firstColumn, left, top } = plan; // of what is shown of the grid
  /** @returns {Cell} */
  const corner = (/** @type {Cell} */ [row, column]) =>
    [left + (column - firstColumn) * plan.cellWidth, top + flip(row - firstRow) * plan.cellHeight];
  /** @type {(cell: Cell | null) => cell is Cell} */
  const known = (cell) => cell !== null && shownBy(plan, cell);
  for (const cell of [...model.get("chosen"), state.marked].filter(known)) {
    const [x, y] = corner(cell);
    const [wide, high] = [Math.max(plan.cellWidth, 4), Math.max(plan.cellHeight, 4)];
    for (const [colour, width] of /** @type {const} */ ([[colours.page, 4], [colours.accent, 2]])) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.setLineDash(sameCell(cell, state.marked) ? [3, 3] : []);
      context.strokeRect(x + 1, y + 1, wide - 2, high - 2);
    }
    context.setLineDash([]);
    const size = Math.min(9, wide / 2, high * 0.8);
    context.fillStyle = colours.accent;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.fill();
  }
  const [from, to] = state.from ? [state.from, state.to] : (model.get("arrow") ?? [null, null]);
  if (known(from) && known(to)) drawArrow({ context, model, plan, flip, colours }, corner(from), corner(to));
}

/** @param {Drawing} drawing @param {Cell} from @param {Cell} to */
function drawArrow({ context, plan, colours }, from, to) {
  const middle = (/** @type {Cell} */ [x, y]) => [x + plan.cellWidth / 2, y + plan.cellHeight / 2];
  const [[x1, y1], [x2, y2]] = [middle(from), middle(to)];
  const turn = Math.atan2(y2 - y1, x2 - x1);
  const head = 10;
  /** @type {(angle: number, far: number) => Cell} */
  const point = (angle, far) => [x2 - far * Math.cos(turn + angle), y2 - far * Math.sin(turn + angle)];
  for (const [colour, width] of /** @type {const} */ ([[colours.page, 6], [colours.accent, 2.5]])) {
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = width;
    context.lineJoin = context.lineCap = "round";
    context.beginPath();
    context.arc(x1, y1, 3, 0, 2 * Math.PI);
    context.moveTo(x1, y1);
    context.lineTo(...point(0, head * 0.7));
    context.stroke();
    context.beginPath();
    context.moveTo(x2, y2);
    context.lineTo(...point(0.45, head));
    context.lineTo(...point(-0.45, head));
    context.closePath();
    context.stroke();
    context.fill();
  }
  context.lineJoin = "miter";
  context.lineCap = "butt";
}
