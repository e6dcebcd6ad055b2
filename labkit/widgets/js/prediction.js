// @ts-check
// Prediction: a question, a guess that is committed, and only then what is true, with the guess beside it.

/** Where a value lies on a line, in percent. @param {string} value @param {[number, number]} line */
function along(value, [low, high]) {
  return `${Math.max(0, Math.min(100, (100 * (Number(value) - low)) / (high - low || 1)))}%`;
}

/** @param {Context<PredictionTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-prediction");
  const form = element("form");
  const fields = element("fieldset");
  const parts = element("div", "labkit-prediction-guess");
  const button = element("button", "", "Commit and see", { type: "submit" });
  const result = element("div", "labkit-prediction-result", "", { role: "status" });
  const [line, unit, options] = [model.get("between"), model.get("unit"), model.get("options")];
  const group = `labkit-prediction-${Math.random()}`;
  /** @type {HTMLInputElement[]} */
  let inputs;
  fields.append(element("legend", "labkit-title", model.get("question")), parts);
  form.append(fields, button);
  el.append(form, result);

  if (options.length) {
    inputs = options.map((value) => element("input", "", "", { type: "radio", name: group, value }));
    for (const input of inputs) {
      const label = element("label", "labkit-prediction-option");
      label.append(input, element("span", "", input.value), element("span", "labkit-prediction-mark"));
      parts.append(label);
    }
  } else if (line) {
    const [min, max] = line;
    const how = { min, max, step: "any", value: (min + max) / 2 };
    const slider = element("input", "", "", { ...how, type: "range", step: (max - min) / 100, "aria-label": "Your guess" });
    const exact = element("input", "", "", { ...how, type: "number", "aria-label": `Your guess, ${unit || "exactly"}` });
    slider.addEventListener("input", () => (exact.value = slider.value));
    exact.addEventListener("input", () => (slider.value = exact.value));
    inputs = [exact, slider];
    parts.append(slider, exact, element("span", "labkit-muted", unit));
  } else {
    inputs = [element("input", "", "", { type: "text", "aria-label": "Your guess" })];
    parts.append(inputs[0]);
  }

  const guess = () => (options.length ? inputs.find((one) => one.checked) : inputs[0])?.value.trim() ?? "";
  const ready = () => (button.disabled = !guess() || Boolean(model.get("says")));

  /** The guess and the truth on a line of numbers. */
  function marks() {
    const track = element("div", "labkit-prediction-line", "", { "aria-hidden": "true" });
    for (const [name, words] of /** @type {const} */ ([["guess", "you"], ["truth", "the answer"]])) {
      const value = model.get(name);
      if (!value) continue;
      const mark = element("span", "", words, { "data-of": name });
      mark.style.left = along(value, /** @type {[number, number]} */ (line));
      track.append(mark);
    }
    return track;
  }

  function draw() {
    const says = model.get("says");
    fields.disabled = Boolean(says);
    button.hidden = Boolean(says);
    ready();
    if (!says) return;
    for (const input of options.length ? inputs : []) {
      input.checked = input.value === model.get("guess");
      const words = [input.checked && "your guess", input.value === model.get("truth") && "✓ the answer"];
      const mark = /** @type {HTMLElement} */ (input.parentElement?.lastChild);
      mark.textContent = words.filter(Boolean).join(", ");
    }
    result.replaceChildren(element("p", "", says), ...(line && model.get("truth") ? [marks()] : []));
  }

  form.addEventListener("keydown", (event) => event.stopPropagation()); // arrows choose here, and move no cells
  form.addEventListener("input", ready);
  form.addEventListener("submit", (event) => {
    taken(event);
    if (guess() && !model.get("says")) tell(model, "guess", guess());
  });
  draw();
  return follow({ model, el }, { "guess truth says": draw });
}

export default { render };
