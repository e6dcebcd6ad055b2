// What every block shares: the theme around it, colour scales, numbers from the kernel, and the floating note.
// The kernel puts this text in front of each block's own module, so each block stays one ES module with no imports.

/** Is the page around `el` dark? Notebook front ends say so in different ways. */
function isDark(el) {
  const { body, documentElement: root } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false"; // JupyterLab, Notebook 7
  if (body.dataset.vscodeThemeKind) return /dark|high-contrast$/.test(body.dataset.vscodeThemeKind); // VS Code
  if (root.getAttribute("theme")) return root.getAttribute("theme") === "dark"; // Colab
  const light = getComputedStyle(el).getPropertyValue("--jp-layout-color0").trim();
  if (light) return false; // classic notebook: the variables are there, dark themes are not
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Keep `el.dataset.theme` equal to the page's theme, call `changed` when it changes, return how to stop. */
function followTheme(el, changed) {
  const look = () => {
    const theme = isDark(el) ? "dark" : "light";
    if (theme === el.dataset.theme) return;
    el.dataset.theme = theme;
    changed();
    // a theme's style sheets may come after its name, and what is drawn on a canvas takes its colours from them
    for (const later of [100, 600, 2000]) setTimeout(() => el.isConnected && changed(), later);
  };
  const observer = new MutationObserver(look);
  for (const node of [document.body, document.documentElement]) observer.observe(node, { attributes: true });
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", look);
  look();
  return () => {
    observer.disconnect();
    media.removeEventListener("change", look);
  };
}

/** 256 colours between the stops ("#rrggbb"), as a flat array of r, g, b. */
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

/** A trait that holds an array: {shape, dtype, data} with the bytes as a DataView; null where there is none. */
function numbers(wire) {
  if (!wire || !wire.data) return null;
  const { buffer, byteOffset, byteLength } = wire.data;
  if (wire.dtype === "uint8") return { shape: wire.shape, dtype: "uint8", data: new Uint8Array(buffer, byteOffset, byteLength) };
  const copy = buffer.slice(byteOffset, byteOffset + byteLength); // a view has to start at a multiple of its number's size
  if (wire.dtype === "int32") return { shape: wire.shape, dtype: "int32", data: new Int32Array(copy) };
  if (wire.dtype === "float16") return { shape: wire.shape, dtype: "float16", data: new Uint16Array(copy) };
  return { shape: wire.shape, dtype: "float32", data: new Float32Array(copy) };
}

/** A half-precision number from its 16 bits. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const rest = bits & 1023;
  if (exponent === 0) return sign * rest * 2 ** -24;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (1 + rest / 1024) * 2 ** (exponent - 15);
}

/** Where a value lies between low and high, 0 to 255; with a centre, the longer side sets the scale of both. */
function shade(value, low, high, centre) {
  if (centre !== null && centre !== undefined) {
    const reach = Math.max(high - centre, centre - low) || 1;
    low = centre - reach;
    high = centre + reach;
  }
  return Math.max(0, Math.min(255, Math.round(((value - low) / (high - low || 1)) * 255)));
}

function css(table, at) {
  return `rgb(${table[3 * at]}, ${table[3 * at + 1]}, ${table[3 * at + 2]})`;
}

/** Black or white, whichever is easier to read on this colour. */
function inkOn(table, at) {
  const linear = [0, 1, 2].map((c) => ((table[3 * at + c] / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
}

/** A number as people read it: 0.83, 12.4, 0.0021, 3e-7. */
function say(value) {
  if (!Number.isFinite(value)) return "not computed yet";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(1);
  return value.toFixed(size < 0.01 ? 4 : size < 10 ? 3 : 1);
}

/** A number at the end or middle of a scale: 0.5, 1, 12.4. */
function tick(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

/** A share of one as people read it: 92.1%, 0.34%, < 0.01%. */
function percent(value) {
  if (value > 0 && value < 0.0001) return "< 0.01%";
  return `${(100 * value).toFixed(value < 0.01 ? 2 : 1)}%`;
}

/** An element with a class and text. Text goes in as textContent: a token is never markup. */
function element(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Put something that floats below a box, or above it where there is no room below. */
function placeBeside(node, box) {
  const { width, height } = node.getBoundingClientRect();
  const below = box.bottom + 6 + height <= innerHeight || box.top < height + 6;
  const left = Math.min(box.left, document.documentElement.clientWidth - width - 8);
  node.style.left = `${Math.max(8, left)}px`;
  node.style.top = `${below ? box.bottom + 6 : box.top - height - 6}px`;
}

/** A note that floats over the page beside a box; it lies in the top layer, so that no output area cuts it off. */
function floatingNote(root) {
  const note = element("div", "labkit-note");
  note.setAttribute("role", "tooltip");
  if (note.showPopover) note.popover = "manual";
  note.hidden = true;
  root.append(note);
  return {
    show(box, content) {
      note.replaceChildren(...content);
      note.hidden = false;
      if (note.showPopover && !note.matches(":popover-open")) note.showPopover();
      placeBeside(note, box);
    },
    hide() {
      if (note.hidden) return;
      if (note.hidePopover && note.matches(":popover-open")) note.hidePopover();
      note.hidden = true;
    },
  };
}

/** Text that is read out when it changes and never seen. */
function spoken(root) {
  const live = element("div", "labkit-spoken");
  live.setAttribute("aria-live", "polite");
  root.append(live);
  return live;
}

/** Make `el` the root of a block: its class, and no notebook shortcut fires from keys pressed inside it. */
function blockRoot(el, name) {
  el.classList.add("labkit", name);
  el.dataset.lmSuppressShortcuts = "true";
}

/** Set a trait and tell the kernel, if it is a change. */
function tell(model, name, value) {
  if (JSON.stringify(model.get(name)) === JSON.stringify(value)) return;
  model.set(name, value);
  model.save_changes();
}
