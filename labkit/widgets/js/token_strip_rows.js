// @ts-check
// The numbers of a strip, one row per token, in arrays with room to grow: appending touches only the new rows.

/** What a row is made of, and what stands where there is none yet. @type {Record<string, [any, string, number]>} */
const COLUMNS = {
  values: [Float32Array, "float32", NaN],
  top: [Int32Array, "int32", -1],
  chances: [Uint16Array, "float16", 0],
  facts: [Float32Array, "float32", NaN],
};

/** One array trait as rows: `row(i)` is a view, or null where there is none. */
class Rows {
  constructor(/** @type {string} */ name, /** @type {Wire | null} */ wire) {
    const held = numbers(wire);
    this.name = name;
    const [Kind, dtype, empty] = COLUMNS[name];
    this.kind = Kind;
    this.dtype = dtype;
    this.empty = empty;
    this.length = held?.shape[0] ?? 0;
    this.width = held?.shape[1] ?? 1;
    this.room = held?.data ?? new this.kind(0);
  }
  row(/** @type {number} */ i) {
    return i < this.length && this.width ? this.room.subarray(i * this.width, (i + 1) * this.width) : null;
  }
  /**
   * Put rows behind the first `at` ones.
   * @param {number} at @param {number} count @param {number} width @param {Numbers["data"]} data
   */
  add(at, count, width, data) {
    if (width !== this.width && this.length === 0) this.width = width;
    const needed = (at + count) * Math.max(width, this.width);
    if (this.room.length < needed || width > this.width) {
      const room = new this.kind(2 * needed).fill(this.empty);
      const wide = Math.max(width, this.width);
      for (let i = 0; i < this.length; i++) room.set(this.row(i) ?? [], i * wide);
      this.room = room;
      this.width = wide;
    }
    for (let i = this.length; i < at; i++) this.room.fill(this.empty, i * this.width, (i + 1) * this.width);
    for (let i = 0; i < count; i++) this.room.set(data.subarray(i * width, (i + 1) * width), (at + i) * this.width);
    this.length = at + count;
  }
  /** As the trait holds it. */
  wire() {
    const { buffer, byteOffset, BYTES_PER_ELEMENT } = this.room;
    const data = new DataView(buffer, byteOffset, this.length * this.width * BYTES_PER_ELEMENT);
    const shape = this.name === "values" ? [this.length] : [this.length, this.width];
    return { shape, dtype: this.dtype, data };
  }
}

/**
 * Streaming adds to the end: the kernel sends only the new tokens, once for all views of the model. What the model holds
 * grows in place, so that no view hears of a change and draws everything anew; views add the new chips themselves.
 * @param {{ model: Model<TokenStripTraits> }} context
 */
function initialize({ model }) {
  const rows = /** @type {Record<string, Rows>} */ ({});
  const forget = () => Object.keys(rows).forEach((name) => delete rows[name]);
  model.on("change:tokens change:values change:top change:chances change:facts", forget);
  model.on("msg:custom", (message, buffers) => {
    if (message.kind !== "append") return;
    const count = message.tokens.length;
    Object.entries(message.arrays).forEach(([column, { shape, dtype }], n) => {
      const name = /** @type {"values" | "top" | "chances" | "facts"} */ (column);
      if (!rows[name]) rows[name] = new Rows(name, model.get(name));
      const data = numbers({ shape, dtype, data: buffers[n] })?.data;
      if (data) rows[name].add(message.at, count, shape[1] ?? 1, data);
      Object.assign(model.get(name) ?? {}, rows[name].wire()); // `set` would send it back to the kernel
    });
    model.get("words").push(...message.words);
    model.get("tokens").push(...message.tokens);
  });
}

/**
 * A row of an array trait, read where it lies.
 * @param {Model<TokenStripTraits>} model @param {"values" | "top" | "chances" | "facts"} name @param {number} i
 */
function rowOf(model, name, i) {
  const wire = model.get(name);
  if (!wire || !wire.data || i >= wire.shape[0]) return null;
  const { dtype, data } = wire;
  return Array.from({ length: wire.shape[1] ?? 1 }, (_, n) => {
    const at = i * (wire.shape[1] ?? 1) + n;
    if (dtype === "float16") return half(data.getUint16(2 * at, true));
    return dtype === "int32" ? data.getInt32(4 * at, true) : data.getFloat32(4 * at, true);
  });
}

/** The alternatives of a token: [text, probability], likeliest first. @returns {Alternative[]} */
function alternativesOf(/** @type {Model<TokenStripTraits>} */ model, /** @type {number} */ i) {
  const top = rowOf(model, "top", i);
  const chances = rowOf(model, "chances", i);
  if (!top || !chances) return [];
  const words = model.get("words");
  return top.map((word, n) => /** @type {Alternative} */ ([words[word], chances[n]])).filter(([text]) => text !== undefined);
}
