// @ts-check
// BranchTree: the ways a text went, each below the one it left. What a person asks for goes to the kernel as a message.

/** @type {Record<string, string>} */
const WORDS = { continue: "Continue", compare: "Compare", rename: "Rename", prune: "Prune" };
/** @type {Record<string, string>} */
const SHORTCUTS = { F2: "rename", Delete: "prune", c: "compare", "+": "continue" };

/** @param {Context<BranchTreeTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-branches");
  const title = element("div", "labkit-title");
  const list = element("div", "labkit-tree", "", { role: "treegrid" }); // its rows have buttons
  el.append(title, list);
  /** @typedef {{ node: HTMLElement, branch: Branch, index: number, depth: number }} Row */
  let rows = /** @type {Row[]} */ ([]);
  let current = 0; // the row that Tab reaches

  const order = () => {
    // parents first, each followed by all that grew from it
    const branches = model.get("branches");
    const found = /** @type {Omit<Row, "node">[]} */ ([]);
    const visit = (/** @type {number | null} */ parent, /** @type {number} */ depth) =>
      branches.forEach((branch, index) => {
        if ((branch.parent ?? null) !== parent) return;
        found.push({ branch, index, depth });
        visit(index, depth + 1);
      });
    visit(null, 0);
    return found;
  };

  /** @type {(kind: string, index: number, text?: string) => void} */
  const ask = (kind, index, text) => model.send({ kind, index, text });

  function rename(/** @type {Row} */ row) {
    const name = /** @type {HTMLElement} */ (row.node.querySelector(".labkit-branch-name"));
    const label = `New name of branch ${row.branch.name}`;
    const box = element("input", "labkit-branch-input", undefined, { "aria-label": label });
    box.value = row.branch.name;
    let done = false;
    const finish = (/** @type {boolean} */ keep) => {
      if (done) return;
      done = true;
      const text = box.value.trim();
      box.remove();
      name.hidden = false;
      if (keep && text && text !== row.branch.name) ask("rename", row.index, text);
      row.node.focus();
    };
    box.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") finish(true);
      else if (event.key === "Escape") finish(false);
    });
    box.addEventListener("click", (event) => event.stopPropagation());
    box.addEventListener("blur", () => finish(true));
    name.hidden = true;
    name.before(box);
    box.focus();
    box.select();
  }

  function act(/** @type {string} */ kind, /** @type {Row} */ row) {
    if (!model.get("actions").includes(kind)) return;
    if (kind === "prune" && row.depth === 0) return;
    if (kind === "rename") rename(row);
    else ask(kind, row.index);
  }

  /** @param {Omit<Row, "node">} from @returns {Row} */
  function rowOfBranch({ branch, index, depth }) {
    const place = depth ? `, at ${branch.at} ${branch.taken}` : "";
    const label = `branch ${branch.name}${place}, ${branch.tokens} tokens: ${branch.text || ""}`;
    const node = element("div", "labkit-branch", "", { role: "row", "aria-level": depth + 1, "aria-label": label });
    node.style.paddingLeft = `${6 + 20 * depth}px`;
    const [head, text, size, buttons] = ["head", "text", "size", "actions"].map((part) =>
      element("span", `labkit-branch-${part}`, "", { role: "gridcell" }),
    );
    if (depth) head.append(element("span", "labkit-branch-joint", "└"));
    head.append(element("span", "labkit-branch-name", branch.name));
    if (depth) {
      text.append(element("span", "labkit-muted", `at ${branch.at} `), element("b", "labkit-mono", branch.taken));
      if (branch.instead) text.append(element("span", "labkit-muted", ` not ${branch.instead} `));
    }
    text.append(element("bdi", "", branch.text || ""));
    const bits = Number.isFinite(branch.bits) ? ` · ${Number(branch.bits).toFixed(2)} bits per token` : "";
    size.textContent = `${branch.tokens} tokens${bits}`;
    const row = { node, branch, index, depth };
    for (const kind of model.get("actions")) {
      if (kind === "prune" && !depth) continue;
      if (kind === "continue" && branch.finish === "eos") continue;
      const says = { type: "button", tabindex: -1, "aria-label": `${WORDS[kind]}: branch ${branch.name}` };
      const button = element("button", "", WORDS[kind], says);
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        act(kind, row);
      });
      buttons.append(button);
    }
    node.append(head, text, size, buttons);
    node.addEventListener("click", () => {
      move(rows.indexOf(row));
      tell(model, "selection", index);
    });
    return row;
  }

  function move(/** @type {number} */ place) {
    if (!rows[place]) return;
    current = place;
    rows.forEach(({ node }, at) => (node.tabIndex = at === current ? 0 : -1));
    rows[current].node.focus();
  }

  function draw() {
    const focused = list.contains(document.activeElement);
    const held = rows[current] ? rows[current].index : null;
    write(title, model.get("title"));
    list.setAttribute("aria-label", model.get("title") || "branches");
    rows = order().map(rowOfBranch);
    list.replaceChildren(...rows.map(({ node }) => node));
    current = Math.min(current, Math.max(0, rows.length - 1));
    drawSelection();
    const place = rows.findIndex(({ index }) => index === held);
    if (focused && rows.length) move(place >= 0 ? place : current); // the focus stays on its branch
  }

  function drawSelection() {
    rows.forEach(({ node, index }, place) => {
      attribute(node, { "aria-selected": index === model.get("selection") });
      node.classList.toggle("labkit-compared", index === model.get("compared"));
      if (index === model.get("selection")) current = place;
    });
    rows.forEach(({ node }, place) => (node.tabIndex = place === current ? 0 : -1));
  }

  list.addEventListener("focusin", (event) => {
    const place = rows.findIndex(({ node }) => node.contains(targetOf(event)));
    if (place >= 0) current = place;
  });
  list.addEventListener("keydown", (event) => {
    const row = rows[current];
    if (!row || targetOf(event).tagName === "INPUT") return;
    if (event.key === "ArrowDown") move(current + 1);
    else if (event.key === "ArrowUp") move(current - 1);
    else if (event.key === "ArrowLeft") move(rows.findIndex(({ index }) => index === row.branch.parent));
    else if (event.key === "ArrowRight") move(rows.findIndex(({ branch }) => branch.parent === row.index));
    else if (event.key === "Home") move(0);
    else if (event.key === "End") move(rows.length - 1);
    else if (event.key === "Enter" || event.key === " ") tell(model, "selection", row.index);
    else if (event.key in SHORTCUTS && !event.ctrlKey && !event.metaKey) act(SHORTCUTS[event.key], row);
    else return;
    taken(event);
  });

  draw();
  return follow({ model, el }, { "branches title actions": draw, "selection compared": drawSelection });
}

export default { render };
