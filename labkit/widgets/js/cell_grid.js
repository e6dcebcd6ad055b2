// @ts-check
// What Heatmap and HeadGrid share: a stage of two canvases, and the cell that the pointer or the keyboard is on.
//
// `geometry` is the block's own: `Geometry` in tests/js/widgets.d.ts says what it has. Shift with an arrow key is its own, too.

/** @param {Cell | null} a @param {Cell | null} b */
const sameCell = (a, b) => Boolean(a && b && a[0] === b[0] && a[1] === b[1]);

/** @param {Context<CellTraits> & { role: string, geometry: Geometry }} context */
function cellGrid({ model, el, role, geometry }) {
  const says = { role: "application", "aria-roledescription": role, tabindex: 0 };
  const stage = element("div", "labkit-stage", "", says);
  const base = element("canvas");
  const over = element("canvas");
  stage.append(base, over);
  const live = spoken(el);
  const note = floatingNote(el);
  let cursor = /** @type {Cell | null} */ (null); // the cell that the keyboard is on
  let pointed = /** @type {Cell | null} */ (null); // the cell that the pointer is on
  /** @type {Colours} */
  const colours = { page: "", ink: "", muted: "", line: "", accent: "", sans: "", mono: "" };

  function palette() {
    const style = getComputedStyle(el);
    const names = /** @type {(keyof Colours)[]} */ (Object.keys(colours));
    for (const name of names) colours[name] = style.getPropertyValue(`--lk-${name}`).trim();
  }

  /** Give a canvas this size in CSS pixels, sharp on any screen. */
  function fit(/** @type {HTMLCanvasElement} */ canvas, /** @type {number} */ width, /** @type {number} */ height) {
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = pen(canvas);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  /** Size the stage and both canvases; the context to draw the cells with. @param {number} width @param {number} height */
  function resize(width, height) {
    Object.assign(stage.style, { width: `${width}px`, height: `${height}px` });
    fit(over, width, height);
    const context = fit(base, width, height);
    context.clearRect(0, 0, width, height);
    return context;
  }

  function drawOver() {
    if (!geometry.ready()) return;
    const context = pen(over);
    context.clearRect(0, 0, over.width, over.height);
    geometry.under?.(context);
    const selected = model.get("selection");
    if (selected) geometry.outline(context, selected, colours.accent, 2.5);
    const now = pointed || (document.activeElement === stage ? cursor : null);
    if (now) geometry.outline(context, now, colours.ink, 1.5);
  }

  function show(/** @type {Cell} */ cell) {
    const { spoken: text, content } = geometry.say(cell);
    const { x, y, width, height } = geometry.box(cell);
    const frame = stage.getBoundingClientRect();
    note.show({ left: frame.left + x + width + 6, top: frame.top + y, bottom: frame.top + y + height }, content);
    live.textContent = text;
  }

  function look(/** @type {Cell | null} */ cell) {
    tell(model, "hovered", cell);
    if (cell) show(cell);
    else note.hide();
    drawOver();
  }

  function select(/** @type {Cell} */ cell, /** @type {MouseEvent | KeyboardEvent} */ event) {
    if (!geometry.pick?.(cell, event)) tell(model, "selection", cell);
    drawOver();
  }

  /** The cell under an event. @param {MouseEvent} event */
  function under(event) {
    if (!geometry.ready()) return null;
    const frame = stage.getBoundingClientRect();
    return geometry.at(event.clientX - frame.left, event.clientY - frame.top);
  }

  stage.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (cell === pointed || sameCell(cell, pointed)) return;
    pointed = cell;
    look(cell);
  });
  stage.addEventListener("pointerleave", () => {
    pointed = null;
    look(null);
  });
  stage.addEventListener("click", (event) => {
    const cell = geometry.dragged?.() ? null : under(event);
    if (!cell) return;
    cursor = cell;
    select(cell, event);
  });
  stage.addEventListener("focus", () => {
    if (!geometry.ready() || !stage.matches(":focus-visible")) return;
    cursor = geometry.clamp(model.get("selection") || cursor || geometry.first());
    look(cursor);
  });
  stage.addEventListener("blur", () => look(null));
  stage.addEventListener("keydown", (event) => {
    if (!geometry.ready()) return;
    const at = geometry.clamp(cursor || [0, 0]);
    const step = event.shiftKey ? null : geometry.steps()[event.key];
    /** @type {Cell | null} */
    let next = step ? [at[0] + step[0], at[1] + step[1]] : null;
    if (!next) {
      const own = geometry.key?.(event, at);
      if (Array.isArray(own)) next = own;
      else if (!own && (event.key === "Enter" || event.key === " ")) select(at, event);
      else if (!own && event.key === "Escape") {
        tell(model, "selection", null);
        note.hide();
      } else if (!own) return;
    }
    taken(event);
    if (!next) return drawOver();
    cursor = geometry.clamp(next);
    pointed = null;
    geometry.follow?.(cursor);
    look(cursor);
  });

  return {
    stage, base, colours, palette, resize, drawOver, under,
    cursor: () => cursor,
    /** @param {string} words */
    announce: (words) => (live.textContent = words),
    /** Say again what is under the pointer, when the numbers have changed. */
    refresh: () => pointed && show(pointed),
  };
}
