// @ts-check
// Heatmap, the cone of a cell: what lies outside it is hatched, so that its colours can still be read.

/**
 * The cells outside a cone, as [row, column], and its outline, as [x1, y1, x2, y2] in cells from the top left corner.
 * @param {Numbers} cone @param {Flip} flip where a row is drawn
 */
function coneShape({ data, shape: [rows, columns] }, flip) {
  const inside = (/** @type {number} */ row, /** @type {number} */ column) =>
    row >= 0 && column >= 0 && row < rows && column < columns && data[row * columns + column] > 0;
  const outside = /** @type {Cell[]} */ ([]);
  const border = /** @type {[number, number, number, number][]} */ ([]);
  for (let row = 0; row < rows; row++) {
    const above = flip(row + 1) < flip(row) ? row + 1 : row - 1; // the row that is drawn above this one
    for (let x = 0, y = flip(row); x < columns; x++) {
      if (!inside(row, x)) {
        outside.push([row, x]);
        continue;
      }
      if (!inside(above, x)) border.push([x, y, x + 1, y]);
      if (!inside(2 * row - above, x)) border.push([x, y + 1, x + 1, y + 1]);
      if (!inside(row, x - 1)) border.push([x, y, x, y + 1]);
      if (!inside(row, x + 1)) border.push([x + 1, y, x + 1, y + 1]);
    }
  }
  return { outside, border };
}

/** @param {Drawing} drawing */
function drawCone({ context, model, plan, flip, colours }) {
  const cone = numbers(model.get("cone"));
  if (!cone || cone.shape[0] !== plan.rows || cone.shape[1] !== plan.columns) return;
  const { left, top, cellWidth, cellHeight } = plan;
  const { outside, border } = coneShape(cone, flip);
  context.save();
  context.lineWidth = 1.5;
  context.strokeStyle = colours.muted;
  context.beginPath();
  for (const [x1, y1, x2, y2] of border) {
    context.moveTo(left + x1 * cellWidth, top + y1 * cellHeight);
    context.lineTo(left + x2 * cellWidth, top + y2 * cellHeight);
  }
  context.stroke();
  context.beginPath();
  for (const [row, x] of outside) context.rect(left + x * cellWidth, top + flip(row) * cellHeight, cellWidth, cellHeight);
  context.clip();
  context.lineWidth = 1;
  context.globalAlpha = 0.35;
  context.beginPath();
  for (let x = left - plan.height; x < left + plan.width; x += 8) {
    context.moveTo(x, top);
    context.lineTo(x + plan.height, top + plan.height);
  }
  context.stroke();
  context.restore();
}
