// @ts-check
// Words in the cells of a heatmap: drawn on its canvas where a cell is large enough to read them, cut with an ellipsis.
// The whole word is in the note beside the cell.

const WORDS = { font: 11, pad: 4, widest: 92, least: 24, lowest: 12 };

/**
 * One text per cell, row by row; null where the heatmap has none.
 * @param {Model<HeatmapTraits>} model @param {"texts" | "notes"} name @param {Numbers | null} cells
 */
function cellTexts(model, name, cells) {
  const all = model.get(name);
  return cells && all.length === cells.shape[0] * cells.shape[1] ? all : null;
}

/**
 * As much of a text as fits, measured, with an ellipsis where something is left out.
 * @param {Pick<CanvasRenderingContext2D, "measureText">} context @param {string} text @param {number} room
 * @param {Map<string, string>} kept what was found before
 */
function clipped(context, text, room, kept) {
  const key = `${room}|${text}`;
  const before = kept.get(key);
  if (before !== undefined) return before;
  let shown = text;
  if (context.measureText(text).width > room) {
    const letters = [...text]; // by character, so that none is cut in half
    let [some, none] = [0, letters.length];
    while (some < none) {
      const middle = Math.ceil((some + none) / 2);
      if (context.measureText(`${letters.slice(0, middle).join("")}…`).width <= room) some = middle;
      else none = middle - 1;
    }
    shown = some ? `${letters.slice(0, some).join("")}…` : "";
  }
  kept.set(key, shown);
  return shown;
}

/**
 * Write the texts; `inkAt` is the colour that can be read on a cell.
 * @param {Drawing} drawing @param {string[]} texts @param {(row: number, column: number) => string} inkAt
 */
function drawTexts({ context, plan, flip, colours }, texts, inkAt) {
  const { rows, columns, left, top, cellWidth, cellHeight } = plan;
  if (cellWidth < WORDS.least || cellHeight < WORDS.lowest) return;
  context.save();
  context.font = `${Math.min(WORDS.font, cellHeight - 2)}px ${colours.mono}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.direction = "ltr";
  const kept = new Map();
  for (let row = 0; row < rows; row++) {
    const y = top + (flip(row) + 0.5) * cellHeight + 0.5;
    for (let column = 0; column < columns; column++) {
      const shown = clipped(context, texts[row * columns + column], cellWidth - WORDS.pad, kept);
      if (!shown) continue;
      context.fillStyle = inkAt(row, column);
      context.fillText(shown, left + (column + 0.5) * cellWidth, y);
    }
  }
  context.restore();
}
