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
  const list = element("div", "labkit-tree");
  list.setAttribute("role", "treegrid");
  el.append(title, list);
  /** @typedef {{ node: HTMLElement, branch: Branch, index: number, depth: number }} Row */
  /** @type {Row[]} */
  let rows = [];
  let current = 0; // the row that Tab reaches

  const order = () => {
    // parents first, each followed by all that grew from it
    const branches = model.get("branches");
    /** @type {Omit<Row, "node">[]} */
    const found = [];
    /** @type {(parent: number | null, depth: number) => void} */
    const visit = (parent, depth) =>
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

  /** @param {Row} row */
  function rename(row) {
    const name = /** @type {HTMLElement} */ (row.node.querySelector(".labkit-branch-name"));
    const box = element("input", "labkit-branch-input");
    box.value = row.branch.name;
    box.setAttribute("aria-label", `New name of branch ${row.branch.name}`);
    let done = false;
    /** @param {boolean} keep */
    const finish = (keep) => {
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

  /** @param {string} kind @param {Row} row */
  function act(kind, row) {
    if (!model.get("actions").includes(kind)) return;
    if (kind === "prune" && row.depth === 0) return;
    if (kind === "rename") rename(row);
    else ask(kind, row.index);
  }

  /** @param {Omit<Row, "node">} from @returns {Row} */
  function rowOfBranch({ branch, index, depth }) {
    const node = element("div", "labkit-branch");
    node.setAttribute("role", "row");
    node.setAttribute("aria-level", String(depth + 1));
    node.style.paddingLeft = `${6 + 20 * depth}px`;
    const [head, text, size, buttons] = ["head", "text", "size", "actions"].map((part) => {
      const cell = element("span", `labkit-branch-${part}`);
      cell.setAttribute("role", "gridcell");
      return cell;
    });
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
      const button = element("button", "", WORDS[kind]);
      button.type = "button";
      button.tabIndex = -1;
      button.setAttribute("aria-label", `${WORDS[kind]}: branch ${branch.name}`);
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        act(kind, row);
      });
      buttons.append(button);
    }
    node.append(head, text, size, buttons);
    const place = depth ? `, at ${branch.at} ${branch.taken}` : "";
    node.setAttribute("aria-label", `branch ${branch.name}${place}, ${branch.tokens} tokens: ${branch.text || ""}`);
    node.addEventListener("click", () => {
      move(rows.indexOf(row));
      tell(model, "selection", index);
    });
    return row;
  }

  /** @param {number} place */
  function move(place) {
    if (!rows[place]) return;
    if (rows[current]) rows[current].node.tabIndex = -1;
    current = place;
    rows[current].node.tabIndex = 0;
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
      node.setAttribute("aria-selected", String(index === model.get("selection")));
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
