// TokenBars: columns of tokens with their probabilities as bars.

function render({ model, el }) {
  blockRoot(el, "labkit-token-bars");
  const title = element("div", "labkit-title");
  const body = element("div", "labkit-columns");
  el.append(title, body);

  function draw() {
    title.textContent = model.get("title");
    title.hidden = !model.get("title");
    const marked = model.get("marked");
    body.replaceChildren(
      ...model.get("columns").map(([name, rows]) => {
        const column = element("div", "labkit-bars-column");
        const table = element("table", "labkit-bars");
        table.createCaption().textContent = name;
        for (const [text, probability] of rows) {
          const row = table.insertRow();
          if (marked.includes(text)) row.className = "labkit-chosen";
          const bar = element("span", "labkit-bar");
          bar.style.width = `${Math.max(1, Math.round(90 * probability))}px`;
          const cell = element("td", "labkit-bar-cell");
          cell.append(bar);
          row.append(element("td", "labkit-mono", text), cell, element("td", "labkit-number", percent(probability)));
        }
        column.append(table);
        return column;
      }),
    );
    const note = model.get("note");
    if (note) body.append(element("div", "labkit-muted labkit-bars-note", note));
  }

  const stopTheme = followTheme(el, () => {});
  draw();
  model.on("change:columns change:title change:note change:marked", draw);
  return () => {
    stopTheme();
    model.off("change:columns change:title change:note change:marked", draw);
  };
}

export default { render };
