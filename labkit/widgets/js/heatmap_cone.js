// Heatmap, the cone of a cell: what lies outside it is hatched, so that its colours can still be read.

function drawCone(context, model, plan, flip, colours) {
  const cone = numbers(model.get("cone"));
  if (!cone || cone.shape[0] !== plan.rows || cone.shape[1] !== plan.columns) return;
  const { left, top, cellWidth, cellHeight } = plan;
  const inside = (row, column) =>
    row >= 0 && column >= 0 && row < plan.rows && column < plan.columns && cone.data[row * plan.columns + column] > 0;
  context.save();
  const outside = new Path2D();
  const border = new Path2D();
  for (let row = 0; row < plan.rows; row++) {
    for (let column = 0; column < plan.columns; column++) {
      const [x, y] = [left + column * cellWidth, top + flip(row) * cellHeight];
      if (!inside(row, column)) {
        outside.rect(x, y, cellWidth, cellHeight);
        continue;
      }
      const above = flip(row + 1) < flip(row) ? row + 1 : row - 1; // the row that is drawn above this one
      const below = 2 * row - above;
      const edges = [
        [inside(above, column), x, y, x + cellWidth, y],
        [inside(below, column), x, y + cellHeight, x + cellWidth, y + cellHeight],
        [inside(row, column - 1), x, y, x, y + cellHeight],
        [inside(row, column + 1), x + cellWidth, y, x + cellWidth, y + cellHeight],
      ];
      for (const [joined, x1, y1, x2, y2] of edges) {
        if (joined) continue;
        border.moveTo(x1, y1);
        border.lineTo(x2, y2);
      }
    }
  }
  context.lineWidth = 1.5;
  context.strokeStyle = colours.muted;
  context.stroke(border);
  context.clip(outside);
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
