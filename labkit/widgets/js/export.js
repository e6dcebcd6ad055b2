// @ts-check
// What stands in for the kernel in an exported page: models that hold their traits, and rules for what follows from a
// change. Everything is in the page, in chunks of deflated JSON and bytes; nothing is fetched.

/** The bytes that were deflated (RFC 1951); browsers have had an inflater of their own only since 2023. */
function inflate(/** @type {Uint8Array} */ input) {
  let [at, held, bits, size] = [0, 0, 0, 0];
  let out = new Uint8Array(Math.max(1024, 4 * input.length));
  function take(/** @type {number} */ count) {
    while (bits < count) {
      if (at >= input.length) throw new Error("a chunk of this page is cut short");
      held |= input[at++] << bits;
      bits += 8;
    }
    const value = held & ((1 << count) - 1);
    held >>>= count;
    bits -= count;
    return value;
  }
  function room(/** @type {number} */ more) {
    if (size + more <= out.length) return;
    const larger = new Uint8Array(Math.max(2 * out.length, size + more));
    larger.set(out);
    out = larger;
  }
  /** A Huffman code from the lengths of its words: how many there are of each length, and symbols in their order. */
  function codeOf(/** @type {number[]} */ lengths) {
    const counts = new Uint16Array(16);
    const offsets = new Uint16Array(17);
    const symbols = new Uint16Array(lengths.length);
    for (const length of lengths) if (length) counts[length]++;
    for (let length = 1; length < 16; length++) offsets[length + 1] = offsets[length] + counts[length];
    lengths.forEach((length, symbol) => length && (symbols[offsets[length]++] = symbol));
    return { counts, symbols };
  }
  function symbolOf(/** @type {ReturnType<typeof codeOf>} */ { counts, symbols }) {
    let [code, first, index] = [0, 0, 0];
    for (let length = 1; length < 16; length++) {
      code |= take(1);
      const count = counts[length];
      if (code - count < first) return symbols[index + code - first];
      index += count;
      first = (first + count) << 1;
      code <<= 1;
    }
    throw new Error("a chunk of this page is damaged");
  }
  /** @type {(base: number, step: number, count: number) => [number[], number[]]} */
  const table = (base, step, count) => {
    const [from, extra] = [/** @type {number[]} */ ([]), /** @type {number[]} */ ([])];
    for (let n = 0; n < count; n++) {
      extra.push(n < 2 * step ? 0 : Math.floor(n / step) - 1);
      from.push(n ? from[n - 1] + (1 << extra[n - 1]) : base);
    }
    return [from, extra];
  };
  const [longs, longBits] = table(3, 4, 28);
  longs.push(258);
  longBits.push(0);
  const [fars, farBits] = table(1, 2, 30);
  const fixed = () => [
    codeOf([...Array(144).fill(8), ...Array(112).fill(9), ...Array(24).fill(7), ...Array(8).fill(8)]),
    codeOf(Array(30).fill(5)),
  ];
  function own() {
    const [literals, distances, most] = [take(5) + 257, take(5) + 1, take(4) + 4];
    const order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    const lengths = Array(19).fill(0);
    for (let n = 0; n < most; n++) lengths[order[n]] = take(3);
    const code = codeOf(lengths);
    const all = /** @type {number[]} */ ([]);
    while (all.length < literals + distances) {
      const symbol = symbolOf(code);
      if (symbol < 16) all.push(symbol);
      else if (symbol === 16) all.push(...Array(3 + take(2)).fill(all[all.length - 1]));
      else all.push(...Array(symbol === 17 ? 3 + take(3) : 11 + take(7)).fill(0));
    }
    return [codeOf(all.slice(0, literals)), codeOf(all.slice(literals))];
  }
  for (let last = 0; !last; ) {
    last = take(1);
    const kind = take(2);
    if (kind === 0) {
      held = bits = 0;
      const length = input[at] | (input[at + 1] << 8);
      room(length);
      out.set(input.subarray(at + 4, at + 4 + length), size);
      at += 4 + length;
      size += length;
      continue;
    }
    const [literals, distances] = kind === 1 ? fixed() : own();
    for (let symbol = symbolOf(literals); symbol !== 256; symbol = symbolOf(literals)) {
      if (symbol < 256) {
        room(1);
        out[size++] = symbol;
        continue;
      }
      const length = longs[symbol - 257] + take(longBits[symbol - 257]);
      const far = symbolOf(distances);
      const back = fars[far] + take(farBits[far]);
      room(length);
      for (let n = 0; n < length; n++, size++) out[size] = out[size - back];
    }
  }
  return out.subarray(0, size);
}

/** The chunks of a page, each unpacked when it is first asked for. @param {string[]} chunks */
function unpacker(chunks) {
  const bytes = (/** @type {number} */ n) => inflate(Uint8Array.from(atob(chunks[n]), (c) => c.charCodeAt(0)));
  /** @returns {any} */
  const whole = (/** @type {any} */ value) => {
    if (Array.isArray(value)) return value.map(whole);
    if (value === null || typeof value !== "object") return value;
    if ("$" in value) return new DataView(bytes(value.$).slice().buffer);
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, whole(one)]));
  };
  return (/** @type {number} */ n) => whole(JSON.parse(new TextDecoder().decode(bytes(n))));
}

/** Are two values of a trait the same? Of arrays only the very same are. @param {any} one @param {any} other */
const alike = (one, other) => one === other || (!one?.data && !other?.data && JSON.stringify(one) === JSON.stringify(other));

/** A model as blocks know it from a notebook. */
class Held {
  /** @param {Record<string, any>} traits */
  constructor(traits) {
    this.traits = traits;
    this.first = { ...traits };
    this.acts = /** @type {Map<string, Set<(...news: any[]) => void>>} */ (new Map());
  }
  get(/** @type {string} */ name) {
    return this.traits[name];
  }
  set(/** @type {string} */ name, /** @type {any} */ value) {
    this.take({ [name]: value });
  }
  /** Several at once: whoever hears of one finds the others there. @param {Record<string, any>} traits */
  take(traits) {
    const news = Object.entries(traits).filter(([name, value]) => !alike(this.traits[name], value));
    Object.assign(this.traits, traits);
    for (const [name, value] of news) this.acts.get(`change:${name}`)?.forEach((act) => act(this, value));
  }
  save_changes() {}
  send() {}
  on(/** @type {string} */ names, /** @type {() => void} */ act) {
    for (const name of names.split(" ")) this.acts.set(name, (this.acts.get(name) ?? new Set()).add(act));
  }
  off(/** @type {string} */ names, /** @type {() => void} */ act) {
    for (const name of names.split(" ")) this.acts.get(name)?.delete(act);
  }
}

/** What follows from a change, by the name of the rule. @type {Record<string, (rule: any, page: ExportedPage) => void>} */
const rules = {
  /** These have the same value. */
  same({ trait, of }, { models }) {
    const held = of.map((/** @type {string} */ id) => models[id]);
    for (const one of held) {
      one.on(`change:${trait}`, () => held.forEach((/** @type {Held} */ other) => other.set(trait, one.get(trait))));
    }
  },
  /** What is chosen in a curve is the row of the cell that is chosen in a map. */
  row({ curve, map }, { models }) {
    models[curve].on("change:selection", () => {
      const [row, cell] = [models[curve].get("selection"), models[map].get("selection")];
      if (row !== null && cell) models[map].set("selection", [row, cell[1]]);
    });
  },
  /** A value of some traits goes with a state of other parts; what the last one changed and this does not goes back. */
  switch({ on, states, otherwise }, { models, unpack }) {
    let before = /** @type {Record<string, Record<string, any>>} */ ({});
    const act = () => {
      const values = on.map((/** @type {[string, string]} */ [id, trait]) => models[id].get(trait));
      const key = JSON.stringify(values);
      const chunk = states[key] ?? otherwise;
      if (chunk === null || chunk === undefined) return;
      const state = unpack(chunk);
      const said = values.map((/** @type {any} */ value) => JSON.stringify(value)).join(", ");
      const words = said.replace(/\[/g, "(").replace(/\]/g, ")").replace(/,(?! )/g, ", ");
      for (const id of new Set([...Object.keys(before), ...Object.keys(state)])) {
        const back = Object.keys(before[id] ?? {}).map((name) => [name, models[id].first[name]]);
        const now = Object.entries(state[id] ?? {}).map(([name, value]) =>
          [name, key in states || typeof value !== "string" ? value : value.split("%s").join(words)]);
        models[id].take(Object.fromEntries([...back, ...now]));
      }
      before = state;
    };
    for (const [id, trait] of on) models[id].on(`change:${trait}`, act);
  },
};

/** A control that stays, as the page has it: what is chosen is its trait `value`. @param {Held} model */
function controlOf(model) {
  const offered = /** @type {[string, any][]} */ (model.get("options") ?? []);
  if (model.get("look") === "buttons") {
    const group = element("div", "labkit-control", undefined, { role: "group", "aria-label": model.get("label") || "View" });
    for (const [text, value] of offered) {
      const button = element("button", "labkit-choice", text, { type: "button" });
      const press = () => attribute(button, { "aria-pressed": alike(value, model.get("value")) });
      button.addEventListener("click", () => model.set("value", value));
      model.on("change:value", press);
      press();
      group.append(button);
    }
    return group;
  }
  const label = element("label", "labkit-control");
  const words = element("span", "labkit-muted", model.get("label"));
  if (model.get("look") === "checkbox") {
    const box = element("input", "", undefined, { type: "checkbox" });
    box.checked = model.get("value");
    box.addEventListener("change", () => model.set("value", box.checked));
    label.append(box, words);
    return label;
  }
  const select = element("select");
  offered.forEach(([text], n) => select.append(element("option", "", text, { value: n })));
  const follow = () => (select.value = String(offered.findIndex(([, value]) => alike(value, model.get("value")))));
  select.addEventListener("change", () => model.set("value", offered[Number(select.value)][1]));
  model.on("change:value", follow);
  follow();
  label.append(words, select);
  return label;
}

/** A part of the page and all that is in it. @param {string} id @param {ExportedPage} page @returns {HTMLElement} */
function partOf(id, page) {
  const { kind, block, children, row, class: classes, style } = page.parts[id];
  const model = page.models[id];
  const node = kind === "control" ? controlOf(model) : element("div");
  for (const name of classes) node.classList.add(name);
  Object.assign(node.style, { flex: style.flex ?? "", width: style.width ?? "", maxWidth: style.max_width ?? "" });
  if (kind === "box") {
    node.classList.add(row ? "labkit-across" : "labkit-down");
    node.append(...(children ?? []).map((child) => partOf(child, page)));
  } else if (kind === "text") {
    const write = () => (node.textContent = model.get("text"));
    model.on("change:text", write);
    write();
  } else if (kind === "quote") {
    node.classList.add("labkit-quote");
    node.append(element("div", "labkit-muted", model.get("label")), element("div", "labkit-quoted", model.get("text")));
    if (!model.get("text")) node.classList.add("labkit-empty");
  } else if (kind === "block") page.waiting.push(() => page.blocks[/** @type {string} */ (block)].render({ model, el: node }));
  const show = () => node.classList.toggle("labkit-away", model.get("hidden"));
  model.on("change:hidden", show);
  show();
  return node;
}

/** Light or dark, as the system has it until somebody chooses. @param {HTMLElement} toggle */
function dressPage(toggle) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = /** @type {boolean | null} */ (null);
  const dress = () => {
    const dark = chosen ?? system.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.body.dataset.jpThemeLight = String(!dark);
    toggle.textContent = dark ? "Light" : "Dark";
    toggle.setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
  };
  system.addEventListener("change", dress);
  toggle.addEventListener("click", () => {
    chosen = !(chosen ?? system.matches);
    dress();
  });
  toggle.hidden = false;
  dress();
}

/** Bring the page to life; whatever cannot be keeps its picture. @param {Record<string, any>} blocks */
function openPage(blocks) {
  const toggle = document.querySelector("#labkit-theme");
  if (toggle instanceof HTMLElement) dressPage(toggle);
  const { main, chunks } = JSON.parse(document.querySelector("#labkit-data")?.textContent ?? "");
  const unpack = unpacker(chunks);
  const { roots, models: parts, rules: told } = unpack(main);
  const models = Object.fromEntries(Object.entries(parts).map(([id, { traits }]) => [id, new Held(traits)]));
  for (const live of document.querySelectorAll(".labkit-live")) {
    if (!(live instanceof HTMLElement)) continue;
    const still = live.previousElementSibling;
    /** @type {ExportedPage} */
    const page = { parts, models, blocks, unpack, waiting: [] };
    try {
      const root = roots[Number(live.dataset.root)];
      live.hidden = false;
      live.append(partOf(root, page));
      for (const draw of page.waiting) draw();
      if (still instanceof HTMLElement) still.hidden = true;
    } catch (error) {
      live.hidden = true;
      console.error(error);
    }
  }
  for (const rule of told) rules[rule.rule](rule, { parts, models, blocks, unpack, waiting: [] });
}
