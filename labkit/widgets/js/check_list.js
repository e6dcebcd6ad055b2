// CheckList: checks that were made, with their verdicts, one line each.

const VERDICTS = { true: ["✓", "passed"], false: ["!", "check this"], null: ["–", "not done"] };

function render({ model, el }) {
  blockRoot(el, "labkit-checks");
  const title = element("div", "labkit-title");
  title.setAttribute("role", "status");
  const list = element("dl");
  el.append(title, list);

  function draw() {
    title.textContent = model.get("title");
    title.hidden = !model.get("title");
    list.replaceChildren(
      ...model.get("checks").map(([name, ok, says]) => {
        const [sign, verdict] = VERDICTS[ok];
        const row = element("div", "labkit-check");
        row.dataset.ok = String(ok);
        const mark = element("span", "labkit-check-mark", sign);
        mark.setAttribute("role", "img");
        mark.setAttribute("aria-label", verdict);
        row.append(mark, element("dt", "", name), element("dd", "", says));
        return row;
      }),
    );
    list.hidden = !model.get("checks").length;
  }

  const stopTheme = followTheme(el, () => {});
  draw();
  model.on("change:checks change:title", draw);
  return () => {
    stopTheme();
    model.off("change:checks change:title", draw);
  };
}

export default { render };
