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
    if (waiting !== null) clearTimeout(waiting);
    waiting = setTimeout(tellNow, model.get("delay"));
    if (!model.get("delay")) tellNow();
  });
  box.addEventListener("blur", tellNow);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has its own meaning for Enter
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    tellNow();
    model.send({ kind: "submit" });
  });

  draw();
  const stop = follow({ model, el }, { "value label placeholder rows": draw }, grow, true);
  return () => {
    tellNow();
    stop();
  };
}

export default { render };
