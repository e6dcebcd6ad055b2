// @ts-check
// CheckList: checks that were made, with their verdicts, one line each.

const VERDICTS = { true: ["✓", "passed"], false: ["!", "check this"], null: ["–", "not done"] };

/** @param {Context<CheckListTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-checks");
  const title = element("div", "labkit-title", "", { role: "status" });
  const list = element("dl");
  el.append(title, list);

  function draw() {
    write(title, model.get("title"));
    const rows = model.get("checks").map(([name, ok, says]) => {
      const [sign, verdict] = VERDICTS[/** @type {"true"} */ (String(ok))];
      const row = element("div", "labkit-check", "", { "data-ok": ok });
      const mark = element("span", "labkit-check-mark", sign, { role: "img", "aria-label": verdict });
      const term = element("dt");
      term.append(mark, name);
      row.append(term, element("dd", "", says));
      return row;
    });
    list.replaceChildren(...rows);
    list.hidden = !rows.length;
  }

  draw();
  return follow({ model, el }, { "checks title": draw });
}

export default { render };
