// What Heatmap and HeadGrid share: a stage of two canvases, and the cell that the pointer or the keyboard is on.
//
// `geometry` is the block's own: `ready()`, `at(x, y)` the cell under a point of the stage or null, `box(cell)` where a
// cell lies as {x, y, width, height}, `clamp(cell)`, `steps()` what each arrow key adds, `first()` where the keyboard
// begins, `say(cell)` what is read out and shown as {spoken, content}, `outline(context, cell, colour, width)`. It may
// have `pick(cell, event)`, told of a click or Enter before the cell becomes the selection (true: it took care of it),
// `key(event, cursor)` for keys of its own (a cell to go to, or true when done), `follow(cell)`, told where the keyboard
// goes, `dragged()`, whether a click was the end of a drag, and `under(context)`, drawn beneath
// the outlines. Shift with an arrow key is the block's own.

function cellGrid({ model, el, role, geometry }) {
  const stage = element("div", "labkit-stage");
  const base = element("canvas");
  const over = element("canvas");
  stage.append(base, over);
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-roledescription", role);
  const live = spoken(el);
  const note = floatingNote(el);
  let cursor = null; // the cell that the keyboard is on
  let pointed = null; // the cell that the pointer is on
  const colours = {};
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  function palette() {
    const style = getComputedStyle(el);
    const names = ["page", "ink", "muted", "line", "accent", "sans", "mono"];
    for (const name of names) colours[name] = style.getPropertyValue(`--lk-${name}`).trim();
    return colours;
  }

  /** Give a canvas this size in CSS pixels, sharp on any screen. */
  function fit(canvas, width, height) {
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  /** Size the stage and both canvases; the context to draw the cells with. */
  function resize(width, height) {
    stage.style.width = `${width}px`;
    stage.style.height = `${height}px`;
    fit(over, width, height);
    const context = fit(base, width, height);
    context.clearRect(0, 0, width, height);
    return context;
  }

  function drawOver() {
    if (!geometry.ready()) return;
    const context = over.getContext("2d");
    context.clearRect(0, 0, over.width, over.height);
    geometry.under?.(context);
    const selected = model.get("selection");
    if (selected) geometry.outline(context, selected, colours.accent, 2.5);
    const now = pointed || (document.activeElement === stage ? cursor : null);
    if (now) geometry.outline(context, now, colours.ink, 1.5);
  }

  function show(cell) {
    const { spoken: text, content } = geometry.say(cell);
    const { x, y, width, height } = geometry.box(cell);
    const frame = stage.getBoundingClientRect();
    note.show({ left: frame.left + x + width + 6, top: frame.top + y, bottom: frame.top + y + height }, content);
    live.textContent = text;
  }

  function look(cell) {
    tell(model, "hovered", cell);
    if (cell) show(cell);
    else note.hide();
    drawOver();
  }

  function select(cell, event) {
    if (!geometry.pick?.(cell, event)) tell(model, "selection", cell);
    drawOver();
  }

  function under(event) {
    if (!geometry.ready()) return null;
    const frame = stage.getBoundingClientRect();
    return geometry.at(event.clientX - frame.left, event.clientY - frame.top);
  }

  stage.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (same(cell, pointed)) return;
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
    let next = step ? [at[0] + step[0], at[1] + step[1]] : null;
    if (!next) {
      const own = geometry.key?.(event, at);
      if (Array.isArray(own)) next = own;
      else if (own) event.preventDefault();
      else if (event.key === "Enter" || event.key === " ") select(at, event);
      else if (event.key === "Escape") {
        tell(model, "selection", null);
        note.hide();
      } else return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (!next) return drawOver();
    cursor = geometry.clamp(next);
    pointed = null;
    geometry.follow?.(cursor);
    look(cursor);
  });

  return {
    stage, base, colours, palette, resize, drawOver, under,
    cursor: () => cursor,
    announce: (words) => (live.textContent = words),
    /** Say again what is under the pointer, when the numbers have changed. */
    refresh: () => pointed && show(pointed),
    /** Forget where the pointer was: what lies under it has moved. */
    let_go: () => {
      pointed = null;
      note.hide();
    },
  };
}
