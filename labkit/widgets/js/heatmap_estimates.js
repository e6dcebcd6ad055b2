// @ts-check
// Heatmap, estimated cells: dotted over their colour, so that nobody takes an estimate for a computed number.

/** Where the values are estimates. @returns {(row: number, column: number) => boolean} */
function estimateMask(/** @type {Model<HeatmapTraits>} */ model) {
  const mask = numbers(model.get("estimated"));
  return (row, column) => Boolean(mask && mask.data[row * mask.shape[1] + column]);
}

/** A light and a dark dot in each tile: one of the two shows on every colour. */
function dots(/** @type {CanvasRenderingContext2D} */ context, /** @type {Colours} */ colours) {
  const tile = element("canvas");
  const ratio = devicePixelRatio || 1;
  tile.width = tile.height = 6 * ratio;
  const ink = pen(tile);
  ink.scale(ratio, ratio);
  for (const [at, colour, alpha] of /** @type {const} */ ([[1.5, colours.page, 1], [4.5, colours.ink, 0.7]])) {
    ink.fillStyle = colour;
    ink.globalAlpha = alpha;
    ink.beginPath();
    ink.arc(at, at, 1, 0, 2 * Math.PI);
    ink.fill();
  }
  const pattern = /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
  pattern.setTransform(new DOMMatrix().scale(1 / ratio));
  return pattern;
}

/** @param {Drawing} drawing */
function drawEstimates({ context, model, plan, flip, colours }) {
  if (!model.get("estimated")) return;
  const estimated = estimateMask(model);
  context.fillStyle = dots(context, colours);
  for (let row = 0; row < plan.rows; row++) {
    for (let column = 0; column < plan.columns; column++) {
      if (!estimated(row, column)) continue;
      const from = column;
      while (column + 1 < plan.columns && estimated(row, column + 1)) column++;
      const width = (column + 1 - from) * plan.cellWidth;
      context.fillRect(plan.left + from * plan.cellWidth, plan.top + flip(row) * plan.cellHeight, width, plan.cellHeight);
    }
  }
}

/** The line that says what dots mean, as long as there are any. @param {Model<HeatmapTraits>} model @param {HTMLElement} legend */
function estimateLegend(model, legend) {
  const mask = numbers(model.get("estimated"));
  legend.hidden = !mask || !mask.data.some(Boolean);
  if (legend.hidden || legend.childElementCount) return;
  legend.append(element("span", "labkit-dotted"), "estimate", element("span", "labkit-plain"), "exact");
}
