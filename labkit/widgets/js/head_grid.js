// HeadGrid: one thumbnail for each head of each layer; layer 0 is at the bottom, where the text goes in.

function render({ model, el }) {
  blockRoot(el, "labkit-heads");
  const title = element("div", "labkit-title");
  const scroller = element("div", "labkit-heads-scroll");
  let plan = null;

  const get = (name) => model.get(name);

  function draw() {
    cells.palette();
    title.textContent = get("title");
    title.hidden = !get("title");
    const pictures = numbers(get("thumbnails"));
    stage.hidden = !pictures;
    if (!pictures || !el.clientWidth) return;
    const [layers, heads, size] = pictures.shape;
    stage.setAttribute("aria-label", `${get("title") || "attention heads"}: ${layers} layers by ${heads} heads, layer 0 at the bottom. Arrow keys move, Enter selects.`);
    scroller.style.maxHeight = `${get("max_height")}px`;
    const [left, bottom] = [40, 38];
    const room = Math.floor(Math.min((el.clientWidth - left - 18) / heads, (get("max_height") - bottom - 6) / layers));
    const cell = get("side") || Math.max(12, Math.min(28, room));
    plan = { layers, heads, cell, left, top: 2, wide: left + heads * cell + 2, high: 2 + layers * cell + bottom };
    const context = cells.resize(plan.wide, plan.high);
    const table = colourTable(get("stops")[el.dataset.theme]);
    const sheet = document.createElement("canvas"); // all thumbnails side by side, a dot a number
    sheet.width = heads * size;
    sheet.height = layers * size;
    const picture = new ImageData(sheet.width, sheet.height);
    for (let i = 0, from = 0; i < layers * heads; i++) {
      const [x, y] = [(i % heads) * size, Math.floor(i / heads) * size];
      for (let row = 0; row < size; row++) {
        for (let column = 0; column < size; column++, from++) {
          const at = 3 * pictures.data[from];
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
    cells.drawOver();
  }

  const corner = ([layer, head]) => [plan.left + head * plan.cell, plan.top + (plan.layers - 1 - layer) * plan.cell];

  const geometry = {
    ready: () => plan !== null,
    first: () => [0, 0],
    steps: () => ({ ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }),
    clamp: ([layer, head]) => [
      Math.max(0, Math.min(plan.layers - 1, layer)),
      Math.max(0, Math.min(plan.heads - 1, head)),
    ],
    at(x, y) {
      const head = Math.floor((x - plan.left) / plan.cell);
      const layer = plan.layers - 1 - Math.floor((y - plan.top) / plan.cell);
      return head < 0 || layer < 0 || head >= plan.heads || layer >= plan.layers ? null : [layer, head];
    },
    box(cell) {
      const [x, y] = corner(cell);
      return { x, y, width: plan.cell, height: plan.cell };
    },
    outline(context, cell, colour, thickness) {
      if (cell[0] >= plan.layers || cell[1] >= plan.heads) return;
      const [x, y] = corner(cell);
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.strokeRect(x + 1, y + 1, plan.cell - 2, plan.cell - 2);
    },
    say([layer, head]) {
      const text = `layer ${layer}, head ${head}`;
      return { spoken: text, content: [element("div", "", text)] };
    },
  };
  const cells = cellGrid({ model, el, role: "grid of attention heads", geometry });
  const { stage, colours } = cells;
  scroller.append(stage);
  el.append(title, scroller);

  const stopTheme = followTheme(el, draw);
  const observer = new ResizeObserver(draw);
  observer.observe(el);
  const whole = "change:thumbnails change:title change:stops change:side change:max_height";
  model.on(whole, draw);
  model.on("change:selection", cells.drawOver);
  return () => {
    stopTheme();
    observer.disconnect();
    model.off(whole, draw);
    model.off("change:selection", cells.drawOver);
  };
}

export default { render };
