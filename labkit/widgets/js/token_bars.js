// @ts-check
// TokenBars: columns of tokens with their probabilities as bars.

/** @param {Context<TokenBarsTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-token-bars");
  const title = element("div", "labkit-title");
  const body = element("div", "labkit-columns");
  el.append(title, body);

  function draw() {
    write(title, model.get("title"));
    const columns = model.get("columns").map(([name, rows]) => {
      const table = barsOf(rows, model.get("marked"), 90);
      table.createCaption().textContent = name;
      const column = element("div", "labkit-bars-column");
      column.append(table);
      return column;
    });
    body.replaceChildren(...columns);
    const note = model.get("note");
    if (note) body.append(element("div", "labkit-muted labkit-bars-note", note));
  }

  draw();
  return follow({ model, el }, { "columns title note marked": draw });
}

export default { render };
