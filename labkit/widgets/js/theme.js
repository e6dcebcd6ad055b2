// @ts-check
// What every block shares: the theme around it, colour scales, numbers from the kernel, and the floating note.
// The kernel puts this text in front of each block's own module, so each block stays one ES module with no imports.
// The types that comments name are in tests/js/widgets.d.ts.

/** Is the page around `el` dark? Notebook front ends say so in different ways. @param {HTMLElement} el */
function isDark(el) {
  const { body, documentElement: root } = document;
  const system = matchMedia("(prefers-color-scheme: dark)").matches;
  if (matchMedia("(forced-colors: active)").matches) return system; // whatever the notebook's own theme
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false"; // JupyterLab, Notebook 7
  if (body.dataset.vscodeThemeKind) return /dark|high-contrast$/.test(body.dataset.vscodeThemeKind); // VS Code
  if (root.getAttribute("theme")) return root.getAttribute("theme") === "dark"; // Colab
  if (body.classList.contains("dark-theme")) return true; // marimo
  if (body.classList.contains("light-theme")) return false;
  const light = getComputedStyle(el).getPropertyValue("--jp-layout-color0").trim();
  if (light) return false; // classic notebook: the variables are there, dark themes are not
  return system;
}

/** Keep `el.dataset.theme` equal to the page's theme, call `changed` when it changes, return how to stop. */
function followTheme(/** @type {HTMLElement} */ el, /** @type {() => void} */ changed) {
  const media = ["(prefers-color-scheme: dark)", "(forced-colors: active)"].map((query) => matchMedia(query));
  let before = "";
  const look = () => {
    const theme = isDark(el) ? "dark" : "light";
    const now = theme + media[1].matches;
    if (now === before) return;
    before = now;
    el.dataset.theme = theme;
    changed();
    // a theme's style sheets may come after its name, and what is drawn on a canvas takes its colours from them
    for (const later of [100, 600, 2000]) setTimeout(() => el.isConnected && changed(), later);
  };
  const observer = new MutationObserver(look);
  for (const node of [document.body, document.documentElement]) observer.observe(node, { attributes: true });
  for (const one of media) one.addEventListener("change", look);
  look();
  return () => {
    observer.disconnect();
    for (const one of media) one.removeEventListener("change", look);
  };
}

/** Give a shadow tree, in which marimo draws, the css that the page has; `el` may not be in its place yet. */
function dressShadow(/** @type {HTMLElement} */ el, again = true) {
  const root = el.getRootNode();
  if ("host" in root) dressRoot(/** @type {ShadowRoot} */ (root));
  else if (again && !el.isConnected) requestAnimationFrame(() => dressShadow(el, false));
}

/**
 * `draw`, but not between the press and the release of a pointer in `el`: a node that is replaced in between gets no click.
 * @param {HTMLElement} el @param {() => void} draw
 */
function unlessPressed(el, draw) {
  let [pressed, owed] = [false, false];
  const release = () => {
    pressed = false;
    if (owed) setTimeout(draw); // after the click that follows the release
    owed = false;
  };
  el.addEventListener("pointerdown", () => {
    pressed = true;
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, release, { once: true, capture: true });
  }, true);
  return () => (pressed ? (owed = true) : draw());
}

/**
 * Act when traits change: `{"title unit": draw}`. `dress` is called when the theme does and, where `sized`, the width.
 * Returns how to stop.
 * @param {Context<any>} context @param {Record<string, (...news: any[]) => void>} listeners
 */
function follow({ model, el }, listeners, dress = () => {}, sized = false) {
  dressShadow(el);
  const calmly = unlessPressed(el, dress);
  const stopTheme = followTheme(el, calmly);
  const observer = new ResizeObserver(calmly);
  if (sized) observer.observe(el);
  const all = Object.entries(listeners).map(
    ([names, act]) => /** @type {const} */ ([names.replace(/(^| )(?!msg:)/g, "$1change:"), act]),
  );
  for (const [names, act] of all) model.on(names, act);
  return () => {
    stopTheme();
    observer.disconnect();
    for (const [names, act] of all) model.off(names, act);
  };
}

/** `draw`, once a frame at most, however often it is asked for. @param {() => void} draw */
function onceAFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** 256 colours between the stops ("#rrggbb"), as a flat array of r, g, b. @param {string[]} stops */
function colourTable(stops) {
  const parsed = stops.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (parsed.length - 1);
    const left = Math.min(Math.floor(place), parsed.length - 2);
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = parsed[left][c] + (place - left) * (parsed[left + 1][c] - parsed[left][c]);
    }
  }
  return table;
}

/** The colours of a block's scale in its theme. @param {Model<BlockTraits>} model @param {HTMLElement} el */
const tableOf = (model, el) => colourTable(model.get("stops")[el.dataset.theme ?? "light"]);

/** What draws on a canvas. @param {HTMLCanvasElement} canvas */
const pen = (canvas) => /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));

/**
 * A trait that holds an array: {shape, dtype, data} with the bytes as a DataView; null where there is none.
 * @param {Wire | null} wire @returns {Numbers | null}
 */
function numbers(wire) {
  if (!wire || !wire.data) return null;
  const { buffer, byteOffset, byteLength } = wire.data;
  const { shape, dtype } = wire;
  if (dtype === "uint8") return { shape, dtype, data: new Uint8Array(buffer, byteOffset, byteLength) };
  const Kind = { int32: Int32Array, float16: Uint16Array, float32: Float32Array }[dtype];
  return { shape, dtype, data: new Kind(buffer.slice(byteOffset, byteOffset + byteLength)) }; // a view has to be aligned
}

/** A half-precision number from its 16 bits. @param {number} bits */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const rest = bits & 1023;
  if (exponent === 0) return sign * rest * 2 ** -24;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (1 + rest / 1024) * 2 ** (exponent - 15);
}

/**
 * The ends of a scale; with a centre, the longer side sets both.
 * @param {number} low @param {number} high @param {number | null} [centre] @returns {[number, number]}
 */
function ends(low, high, centre) {
  if (centre === null || centre === undefined) return [low, high];
  const reach = Math.max(high - centre, centre - low) || 1;
  return [centre - reach, centre + reach];
}

/**
 * Where a value lies between the ends of a scale, 0 to 255.
 * @param {number} value @param {number} least @param {number} most @param {number | null} [centre]
 */
function shade(value, least, most, centre) {
  const [low, high] = ends(least, most, centre);
  return Math.max(0, Math.min(255, Math.round(((value - low) / (high - low || 1)) * 255)));
}

function css(/** @type {Uint8ClampedArray} */ table, /** @type {number} */ at) {
  return `rgb(${table[3 * at]}, ${table[3 * at + 1]}, ${table[3 * at + 2]})`;
}

/** Black or white, whichever is easier to read on this colour. @param {Uint8ClampedArray} table @param {number} at */
function inkOn(table, at) {
  const linear = [0, 1, 2].map((c) => ((table[3 * at + c] / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
}

/** A number as people read it: 0.83, 12.4, 0.0021, 3e-7. @param {number} value */
function say(value) {
  if (!Number.isFinite(value)) return "not computed yet";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(1);
  return value.toFixed(size < 0.01 ? 4 : size < 10 ? 3 : 1);
}

/** A number at the end or middle of a scale: 0.5, 1, 12.4. @param {number} value */
function tick(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

/** A share of one as people read it: 92.1%, 0.34%, < 0.01%. @param {number} value */
function percent(value) {
  if (value < 0.0001) return "< 0.01%";
  return `${(100 * value).toFixed(value < 0.01 ? 2 : 1)}%`;
}

/** Set attributes. @template {Element} Node @param {Node} node @param {Record<string, any>} attributes */
function attribute(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/**
 * An element with a class, text and attributes. Text goes in as textContent: a token is never markup.
 * @template {keyof HTMLElementTagNameMap} Tag @param {Tag} tag @param {string} [name] @param {string} [text]
 */
function element(tag, name, text, attributes = {}) {
  const node = attribute(document.createElement(tag), attributes);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** An element of a drawing. @param {string} tag @param {Record<string, any>} attributes @param {string} [text] */
function shape(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (text !== undefined) node.textContent = text;
  return attribute(/** @type {SVGGraphicsElement} */ (node), attributes);
}

/** Text where there is some: a title, a caption. @param {HTMLElement} node @param {string} text */
function write(node, text) {
  node.textContent = text;
  node.hidden = !text;
}

/** Put something that floats below a box, or above it where there is no room below. */
function placeBeside(/** @type {HTMLElement} */ node, /** @type {Place} */ box) {
  const { width, height } = node.getBoundingClientRect();
  const below = box.bottom + 6 + height <= innerHeight || box.top < height + 6;
  const left = Math.min(box.left, document.documentElement.clientWidth - width - 8);
  node.style.left = `${Math.max(8, left)}px`;
  node.style.top = `${below ? box.bottom + 6 : box.top - height - 6}px`;
}

/**
 * Something that floats over the page beside a box; it lies in the top layer, so that no output area cuts it off.
 * @param {HTMLElement} root
 */
function floating(root, name = "labkit-note", attributes = {}) {
  const note = element("div", name, undefined, attributes);
  const inTopLayer = Boolean(note.showPopover); // older browsers have none
  if (inTopLayer) note.popover = "manual";
  note.hidden = true;
  root.append(note);
  return {
    note,
    show(/** @type {Place} */ box, /** @type {(Node | string)[]} */ content) {
      note.replaceChildren(...content);
      note.hidden = false;
      if (inTopLayer && !note.matches(":popover-open")) note.showPopover();
      placeBeside(note, box);
    },
    hide() {
      if (note.hidden) return;
      if (inTopLayer && note.matches(":popover-open")) note.hidePopover();
      note.hidden = true;
    },
  };
}

/** A note beside what the pointer or the keyboard is on. @param {HTMLElement} root */
const floatingNote = (root) => floating(root, "labkit-note", { role: "tooltip" });

/** Text that is read out when it changes and never seen. @param {HTMLElement} root */
function spoken(root) {
  const live = element("div", "labkit-spoken", "", { "aria-live": "polite" });
  root.append(live);
  return live;
}

/** Make `el` the root of a block: its class, and no notebook shortcut fires from keys pressed inside it. */
function blockRoot(/** @type {HTMLElement} */ el, /** @type {string} */ name) {
  el.classList.add("labkit", name);
  el.dataset.lmSuppressShortcuts = "true";
}

/** An event that is the block's own: neither the page nor the notebook acts on it. @param {Event} event */
function taken(event) {
  event.preventDefault();
  event.stopPropagation();
}

/** The element that an event comes from. @param {Event} event */
const targetOf = (event) => /** @type {HTMLElement} */ (event.target);

/**
 * Set a trait and tell the kernel, if it is a change.
 * @template Traits @template {keyof Traits & string} Name
 * @param {Model<Traits>} model @param {Name} name @param {Traits[Name]} value
 */
function tell(model, name, value) {
  if (JSON.stringify(model.get(name)) === JSON.stringify(value)) return;
  model.set(name, value);
  model.save_changes();
}
