// The numbers of a strip, one row per token, in arrays with room to grow: appending touches only the new rows.

const COLUMNS = { values: { float32: Float32Array }, top: { int32: Int32Array }, chances: { float16: Uint16Array }, facts: { float32: Float32Array } };
const EMPTY = { values: NaN, top: -1, chances: 0, facts: NaN };

/** One array trait as rows: `row(i)` is a view, or null where there is none. */
class Rows {
  constructor(name, wire) {
    this.name = name;
    this.length = 0;
    this.width = 1;
    this.kind = Object.values(COLUMNS[name])[0];
    this.room = new this.kind(0);
    const held = numbers(wire);
    if (!held) return;
    this.length = held.shape[0];
    this.width = held.shape.length > 1 ? held.shape[1] : 1;
    this.room = held.data;
  }
  row(i) {
    return i < this.length && this.width ? this.room.subarray(i * this.width, (i + 1) * this.width) : null;
  }
  /** Put rows behind the first `at` ones. */
  add(at, count, width, data) {
    if (width !== this.width && this.length === 0) this.width = width;
    const needed = (at + count) * Math.max(width, this.width);
    if (this.room.length < needed || width > this.width) {
      const room = new this.kind(2 * needed).fill(EMPTY[this.name]);
      const wide = Math.max(width, this.width);
      for (let i = 0; i < this.length; i++) room.set(this.row(i) || [], i * wide);
      this.room = room;
      this.width = wide;
    }
    for (let i = this.length; i < at; i++) this.room.fill(EMPTY[this.name], i * this.width, (i + 1) * this.width);
    for (let i = 0; i < count; i++) this.room.set(data.subarray(i * width, (i + 1) * width), (at + i) * this.width);
    this.length = at + count;
  }
  /** As the trait holds it. */
  wire() {
    const { buffer, byteOffset, BYTES_PER_ELEMENT } = this.room;
    const data = new DataView(buffer, byteOffset, this.length * this.width * BYTES_PER_ELEMENT);
    const shape = this.name === "values" ? [this.length] : [this.length, this.width];
    return { shape, dtype: Object.keys(COLUMNS[this.name])[0], data };
  }
}

/**
 * Streaming adds to the end: the kernel sends only the new tokens, once for all views of the model. What the model holds
 * grows in place, so that no view hears of a change and draws everything anew; views add the new chips themselves.
 */
function initialize({ model }) {
  const rows = {};
  const forget = () => Object.keys(rows).forEach((name) => delete rows[name]);
  model.on("change:tokens change:values change:top change:chances change:facts", forget);
  model.on("msg:custom", (message, buffers) => {
    if (message.kind !== "append") return;
    const count = message.tokens.length;
    Object.entries(message.arrays).forEach(([name, { shape, dtype }], n) => {
      if (!rows[name]) rows[name] = new Rows(name, model.get(name));
      const { data } = numbers({ shape, dtype, data: buffers[n] });
      rows[name].add(message.at, count, shape.length > 1 ? shape[1] : 1, data);
      const wire = rows[name].wire();
      Object.assign(model.get(name), wire); // `set` would send it back to the kernel
    });
    model.get("words").push(...message.words);
    model.get("tokens").push(...message.tokens);
  });
}

/** A row of an array trait, read where it lies. */
function rowOf(model, name, i) {
  const wire = model.get(name);
  if (!wire || !wire.data || i >= wire.shape[0]) return null;
  const width = wire.shape.length > 1 ? wire.shape[1] : 1;
  const { data } = wire;
  const at = (n) => i * width + n;
  if (wire.dtype === "int32") return Array.from({ length: width }, (_, n) => data.getInt32(4 * at(n), true));
  if (wire.dtype === "float16") return Array.from({ length: width }, (_, n) => half(data.getUint16(2 * at(n), true)));
  return Array.from({ length: width }, (_, n) => data.getFloat32(4 * at(n), true));
}

/** The alternatives of a token: [text, probability], likeliest first. */
function alternativesOf(model, i) {
  const top = rowOf(model, "top", i);
  const chances = rowOf(model, "chances", i);
  if (!top || !chances) return [];
  const words = model.get("words");
  return top.map((word, n) => [words[word], chances[n]]).filter(([text]) => text !== undefined);
}
