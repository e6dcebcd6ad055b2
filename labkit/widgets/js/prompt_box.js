// @ts-check
// PromptBox: a text box for a prompt that grows with its text; Ctrl+Enter (or Cmd+Enter) asks for a run.

/** @param {Context<PromptBoxTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-prompt");
  const label = element("label", "labkit-muted");
  const box = element("textarea");
  box.spellcheck = false;
  box.id = `labkit-${Math.random().toString(36).slice(2)}`;
  label.htmlFor = box.id;
  el.append(label, box);

  function grow() {
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 170)}px`;
  }
  function draw() {
    label.textContent = model.get("label");
    box.placeholder = model.get("placeholder");
    box.rows = model.get("rows");
    if (box.value !== model.get("value")) box.value = model.get("value");
    grow();
  }

  // Changes wait in the browser while the kernel works on the one before; a click on a button does not, nor does this.
  let told = model.get("edits");
  /** @param {"left" | "submit"} kind */
  function tellAtOnce(kind) {
    tellNow();
    if (kind === "submit" || told !== model.get("edits")) {
      model.send({ kind, value: box.value, edits: model.get("edits") });
      told = model.get("edits");
    }
  }

  let waiting = /** @type {number | null} */ (null); // what was typed and is not told yet
  function tellNow() {
    if (waiting === null) return;
    clearTimeout(waiting);
    waiting = null;
    model.set("value", box.value);
    model.save_changes();
  }
  box.addEventListener("input", () => {
    grow();
    model.set("edits", model.get("edits") + 1);
    if (waiting !== null) clearTimeout(waiting);
    waiting = setTimeout(tellNow, model.get("delay"));
    if (!model.get("delay")) tellNow();
  });
  box.addEventListener("blur", () => tellAtOnce("left"));
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has its own meaning for Enter
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    tellAtOnce("submit");
  });

  draw();
  const stop = follow({ model, el }, { "value label placeholder rows": draw }, grow, true);
  return () => {
    tellNow();
    stop();
  };
}

export default { render };
