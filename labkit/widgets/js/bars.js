// @ts-check
// Probabilities as bars, wherever tokens are listed with them.

/** A bar as long as a probability, of `wide` pixels for a certain one. @param {number} probability */
function barOf(probability, wide = 100) {
  const bar = element("span", "labkit-bar");
  bar.style.width = `${Math.max(1, Math.round(wide * probability))}px`;
  return bar;
}

/**
 * Rows of [text, probability] as a table of bars; those of the `chosen` texts stand out.
 * @param {Alternative[]} rows @param {string[]} chosen @param {number} [wide]
 */
function barsOf(rows, chosen, wide) {
  const table = element("table", "labkit-bars");
  for (const [text, probability] of rows) {
    const row = table.insertRow();
    if (chosen.includes(text)) row.className = "labkit-chosen";
    const cell = element("td", "labkit-bar-cell");
    cell.append(barOf(probability, wide));
    row.append(element("td", "labkit-mono", text), cell, element("td", "labkit-number", percent(probability)));
  }
  return table;
}
