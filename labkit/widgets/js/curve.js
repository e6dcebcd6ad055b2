// @ts-check
// Curve: numbers as a line in SVG; a point under the pointer or the keyboard says what it is.

const EDGE = { left: 58, right: 14, top: 8, bottom: 36 };

/** @param {Context<CurveTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-curve");
  const title = element("div", "labkit-title");
  const says = { role: "application", "aria-roledescription": "line chart", tabindex: 0 };
  const stage = element("div", "labkit-stage", "", says);
  const live = spoken(el);
  el.append(title, stage);
  const note = floatingNote(el);
  const get = model.get.bind(model);
  /** @type {({ x: number, y: number } | null)[]} */
  let points = []; // {x, y} of each value, in CSS pixels; null where there is none
  let at = /** @type {number | null} */ (null); // the point that pointer or keyboard is on

  function draw() {
    write(title, get("title"));
    const cells = numbers(get("values"));
    stage.replaceChildren();
    stage.hidden = !cells;
    points = [];
    if (!cells || !el.clientWidth) return;
    const [wide, high] = [Math.min(el.clientWidth, 620), get("height")];
    const svg = shape("svg", { width: wide, height: high, "aria-hidden": "true" });
    const count = cells.shape[0];
    const step = (wide - EDGE.left - EDGE.right) / Math.max(1, count - 1);
    /** @param {number} value */
    const yOf = (value) => EDGE.top + (high - EDGE.top - EDGE.bottom) * (1 - (value - get("low")) / (get("high") - get("low") || 1));
    points = [...cells.data].map((value, i) => (Number.isFinite(value) ? { x: EDGE.left + i * step, y: yOf(value) } : null));
    for (const [value, label] of get("ticks")) {
      svg.append(
        shape("line", { x1: EDGE.left, x2: wide - EDGE.right, y1: yOf(value), y2: yOf(value), class: "labkit-curve-rule" }),
        shape("text", { x: EDGE.left - 8, y: yOf(value) + 4, "text-anchor": "end" }, label),
      );
    }
    const every = Math.ceil(26 / Math.max(step, 1));
    get("labels").forEach((label, i) => {
      if (i % every === 0) svg.append(shape("text", { x: EDGE.left + i * step, y: high - EDGE.bottom + 17, "text-anchor": "middle" }, label));
    });
    svg.append(shape("text", { x: EDGE.left + (wide - EDGE.left - EDGE.right) / 2, y: high - 3, "text-anchor": "middle" }, get("axis")));
    let path = "";
    points.forEach((point, i) => {
      if (point) path += `${points[i - 1] ? "L" : "M"}${point.x.toFixed(1)},${point.y.toFixed(1)}`;
    });
    svg.append(shape("path", { d: path, class: "labkit-curve-line" }));
    points.forEach((point, i) => {
      if (!point) return;
      const chosen = i === get("selection");
      const name = i === at ? "labkit-curve-now" : chosen ? "labkit-curve-chosen" : "labkit-curve-dot";
      svg.append(shape("circle", { cx: point.x, cy: point.y, r: chosen || i === at ? 5 : 2.5, class: name }));
    });
    stage.append(svg);
    stage.setAttribute("aria-label", `${get("title")}: ${count} points. Arrow keys move, Enter selects.`);
  }

  /** @param {number} i */
  const said = (i) => get("notes")[i] || `${say(numbers(get("values"))?.data[i] ?? NaN)} ${get("unit")}`.trim();

  function look(/** @type {number | null} */ i) {
    const point = i === null ? null : points[i];
    at = point ? i : null;
    draw();
    if (!point || at === null) return note.hide();
    const frame = stage.getBoundingClientRect();
    const name = `${get("axis").split(" (")[0]} ${get("labels")[at] ?? at}`.trim();
    note.show(
      { left: frame.left + point.x + 10, top: frame.top + point.y - 8, bottom: frame.top + point.y + 8 },
      [element("div", "labkit-note-value", said(at)), element("div", "labkit-muted", name)],
    );
    live.textContent = `${name}: ${said(at)}`;
  }

  /** The point that is nearest to an event. @param {MouseEvent} event */
  function nearest(event) {
    const x = event.clientX - stage.getBoundingClientRect().left;
    const apart = points.map((point) => (point ? Math.abs(point.x - x) : Infinity));
    const least = Math.min(...apart);
    return Number.isFinite(least) ? apart.indexOf(least) : null;
  }

  stage.addEventListener("pointermove", (event) => {
    const i = nearest(event);
    if (i !== at) look(i);
  });
  stage.addEventListener("pointerleave", () => look(null));
  stage.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i !== null) tell(model, "selection", i);
  });
  stage.addEventListener("focus", () => {
    if (stage.matches(":focus-visible")) look(get("selection") ?? 0);
  });
  stage.addEventListener("blur", () => look(null));
  stage.addEventListener("keydown", (event) => {
    const last = points.length - 1;
    const [on, back] = [(at ?? -1) + 1, (at ?? 1) - 1];
    const to = { ArrowRight: on, ArrowUp: on, ArrowLeft: back, ArrowDown: back, Home: 0, End: last }[event.key];
    if (to !== undefined) look(Math.max(0, Math.min(last, to)));
    else if ((event.key === "Enter" || event.key === " ") && at !== null) tell(model, "selection", at);
    else if (event.key === "Escape") look(null);
    else return;
    taken(event);
  });

  const whole = "values labels notes ticks axis title unit low high height selection";
  return follow({ model, el }, { [whole]: draw }, draw, true);
}

export default { render };
