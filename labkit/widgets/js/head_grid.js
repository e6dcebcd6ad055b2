// HeadGrid: one thumbnail for each head of each layer; layer 0 is at the bottom, where the text goes in.

function render({ model, el }) {
  blockRoot(el, "labkit-heads");
  const title = element("div", "labkit-title");
  const scroller = element("div", "labkit-heads-scroll");
  const stage = element("div", "labkit-stage");
  const base = element("canvas");
  const over = element("canvas");
  stage.append(base, over);
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-roledescription", "grid of attention heads");
  scroller.append(stage);
  const live = spoken(el);
  el.append(title, scroller);
  const note = floatingNote(el);
  let plan = null;
  let colours = {};
  let cursor = null;
  let pointed = null;

  const get = (name) => model.get(name);

  function fit(canvas) {
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(plan.wide * ratio);
    canvas.height = Math.round(plan.high * ratio);
    canvas.style.width = `${plan.wide}px`;
    canvas.style.height = `${plan.high}px`;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  function draw() {
    const style = getComputedStyle(el);
    const of = (name) => style.getPropertyValue(name).trim();
    colours = {
      page: of("--lk-page"), ink: of("--lk-ink"), muted: of("--lk-muted"), line: of("--lk-line"),
      accent: of("--lk-accent"), sans: of("--lk-sans"), mono: of("--lk-mono"),
    };
    title.textContent = get("title");
    title.hidden = !get("title");
    const cells = numbers(get("thumbnails"));
    stage.hidden = !cells;
    if (!cells || !el.clientWidth) return;
    const [layers, heads, size] = cells.shape;
    stage.setAttribute("aria-label", `${get("title") || "attention heads"}: ${layers} layers by ${heads} heads, layer 0 at the bottom. Arrow keys move, Enter selects.`);
    scroller.style.maxHeight = `${get("max_height")}px`;
    const [left, bottom] = [40, 38];
    const room = Math.floor(Math.min((el.clientWidth - left - 18) / heads, (get("max_height") - bottom - 6) / layers));
    const cell = get("side") || Math.max(12, Math.min(28, room));
    plan = { layers, heads, cell, left, top: 2, wide: left + heads * cell + 2, high: 2 + layers * cell + bottom };
    stage.style.width = `${plan.wide}px`;
    stage.style.height = `${plan.high}px`;
    const context = fit(base);
    context.clearRect(0, 0, plan.wide, plan.high);
    const table = colourTable(get("stops")[el.dataset.theme]);
    const sheet = document.createElement("canvas"); // all thumbnails side by side, a dot a number
    sheet.width = heads * size;
    sheet.height = layers * size;
    const picture = new ImageData(sheet.width, sheet.height);
    for (let i = 0, from = 0; i < layers * heads; i++) {
      const [x, y] = [(i % heads) * size, Math.floor(i / heads) * size];
      for (let row = 0; row < size; row++) {
        for (let column = 0; column < size; column++, from++) {
          const at = 3 * cells.data[from];
          picture.data.set([table[at], table[at + 1], table[at + 2], 255], 4 * ((y + row) * sheet.width + x + column));
        }
      }
    }
    sheet.getContext("2d").putImageData(picture, 0, 0);
    context.imageSmoothingEnabled = size > cell * (devicePixelRatio || 1);
    context.imageSmoothingQuality = "high";
    const inner = cell - 3;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const [x, y] = corner([layer, head]);
        context.drawImage(sheet, head * size, layer * size, size, size, x + 1.5, y + 1.5, inner, inner);
        context.strokeStyle = colours.line;
        context.lineWidth = 1;
        context.strokeRect(x + 1, y + 1, cell - 2, cell - 2);
      }
    }
    context.fillStyle = colours.muted;
    context.font = `11px ${colours.mono}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil(14 / cell);
    for (let layer = 0; layer < layers; layer += every) context.fillText(layer, left - 5, corner([layer, 0])[1] + cell / 2);
    context.textAlign = "center";
    const between = Math.ceil((heads > 10 ? 18 : 10) / cell);
    for (let head = 0; head < heads; head += between) {
      context.fillText(head, corner([0, head])[0] + cell / 2, plan.top + layers * cell + 9);
    }
    context.font = `12px ${colours.sans}`;
    context.fillText("head", left + (heads * cell) / 2, plan.high - 9);
    context.translate(9, plan.top + (layers * cell) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("layer", 0, 0);
    fit(over);
    drawOver();
  }

  const corner = ([layer, head]) => [plan.left + head * plan.cell, plan.top + (plan.layers - 1 - layer) * plan.cell];

  function outline(context, cell, colour, width) {
    if (!cell || cell[0] >= plan.layers || cell[1] >= plan.heads) return;
    const [x, y] = corner(cell);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(x + 1, y + 1, plan.cell - 2, plan.cell - 2);
  }

  function drawOver() {
    if (!plan) return;
    const context = over.getContext("2d");
    context.clearRect(0, 0, plan.wide, plan.high);
    outline(context, get("selection"), colours.accent, 2.5);
    outline(context, pointed || (document.activeElement === stage ? cursor : null), colours.ink, 1.5);
  }

  function look(cell) {
    tell(model, "hovered", cell);
    if (cell) {
      const [x, y] = corner(cell);
      const frame = stage.getBoundingClientRect();
      const text = `layer ${cell[0]}, head ${cell[1]}`;
      live.textContent = text;
      const box = { left: frame.left + x + plan.cell + 6, top: frame.top + y, bottom: frame.top + y + plan.cell };
      note.show(box, [element("div", "", text)]);
    } else note.hide();
    drawOver();
  }

  function under(event) {
    if (!plan) return null;
    const frame = stage.getBoundingClientRect();
    const head = Math.floor((event.clientX - frame.left - plan.left) / plan.cell);
    const layer = plan.layers - 1 - Math.floor((event.clientY - frame.top - plan.top) / plan.cell);
    return head < 0 || layer < 0 || head >= plan.heads || layer >= plan.layers ? null : [layer, head];
  }

  stage.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (JSON.stringify(cell) === JSON.stringify(pointed)) return;
    pointed = cell;
    look(cell);
  });
  stage.addEventListener("pointerleave", () => {
    pointed = null;
    look(null);
  });
  stage.addEventListener("click", (event) => {
    const cell = under(event);
    if (!cell) return;
    cursor = cell;
    tell(model, "selection", cell);
    drawOver();
  });
  stage.addEventListener("focus", () => {
    if (!plan || !stage.matches(":focus-visible")) return;
    cursor = get("selection") || cursor || [0, 0];
    look(cursor);
  });
  stage.addEventListener("blur", () => look(null));
  stage.addEventListener("keydown", (event) => {
    if (!plan) return;
    const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const at = cursor || [0, 0];
    if (event.key in moves) {
      const [layer, head] = [at[0] + moves[event.key][0], at[1] + moves[event.key][1]];
      cursor = [Math.max(0, Math.min(plan.layers - 1, layer)), Math.max(0, Math.min(plan.heads - 1, head))];
      pointed = null;
      look(cursor);
    } else if (event.key === "Enter" || event.key === " ") tell(model, "selection", at);
    else if (event.key === "Escape") note.hide();
    else return;
    event.preventDefault();
    event.stopPropagation();
    drawOver();
  });

  const stopTheme = followTheme(el, draw);
  const observer = new ResizeObserver(draw);
  observer.observe(el);
  const whole = "change:thumbnails change:title change:stops change:side change:max_height";
  model.on(whole, draw);
  model.on("change:selection", drawOver);
  return () => {
    stopTheme();
    observer.disconnect();
    model.off(whole, draw);
    model.off("change:selection", drawOver);
  };
}

export default { render };
