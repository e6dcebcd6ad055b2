// The functions of the widgets that need no page. What Python does as well is in cases.json, which
// tests/unit/test_javascript.py reads, too.

import assert from "node:assert/strict";
import { test } from "node:test";
import zlib from "node:zlib";

import { cases, load } from "./load.js";

const { colourTable, ends, follow, half, inkOn, numbers, percent, say, shade, tick, unlessPressed } = load(
  "{ colourTable, ends, follow, half, inkOn, numbers, percent, say, shade, tick, unlessPressed }",
);
const { clipped } = load("{ clipped }", "heatmap_texts");
const { placed, sourceOf, unpacked, zoomed } = load("{ placed, sourceOf, unpacked, zoomed }", "heatmap_window");
const { coneShape } = load("{ coneShape }", "heatmap_cone");
const { Rows, rowOf, alternativesOf } = load("{ Rows, rowOf, alternativesOf }", "token_strip_rows");
const { marksByPlace, markClass } = load("{ marksByPlace, markClass }", "token_chip");
const { factOf } = load("{ factOf }", "bars", "token_strip_note");
const { curve } = load("{ curve }", "circuit_view");
const { Held, inflate, rules, unpacker } = load("{ Held, inflate, rules, unpacker }", "export");
const { looksOf } = load("{ looksOf }", "heatmap_window", "export", "export_looks");

/** A test of every row of a kind of cases. */
const each = (kind, check) => test(`${kind} are as in Python`, () => cases[kind].rows.forEach((row) => check(...row)));
/** An array as the kernel sends it. */
const wire = (Kind, dtype, shape, values) => ({ shape, dtype, data: new DataView(Kind.from(values).buffer) });
const floats = (shape, values) => wire(Float32Array, "float32", shape, values);
/** A model with these traits. */
const model = (traits) => ({ get: (name) => traits[name] });

const stops = Object.fromEntries(cases.scales.rows.map(([scale, theme, colours]) => [`${scale} ${theme}`, colours]));
each("colours", (scale, theme, at, rgb, ink) => {
  const table = colourTable(stops[`${scale} ${theme}`]);
  assert.deepEqual([...table.subarray(3 * at, 3 * at + 3)], rgb, `${scale} ${theme} ${at}`);
  assert.equal(inkOn(table, at), ink, `${scale} ${theme} ${at}`);
});
each("shades", (value, low, high, centre, at) => assert.equal(shade(value, low, high, centre), at));
each("shares", (probability, text) => assert.equal(percent(probability), text));
each("cuts", (text, columns, cut) => {
  const measureText = (shown) => ({ width: [...shown].reduce((sum, c) => sum + (/\p{Script=Han}|\p{Script=Hiragana}/u.test(c) ? 2 : 1), 0) });
  assert.equal(clipped({ measureText }, text, columns, new Map()), cut);
});
each("curves", (from, to, path) => {
  const rounded = curve(from, to).replace(/-?\d+(\.\d+)?/g, (number) => Number(number).toFixed(1));
  assert.equal(rounded, path);
});

test("numbers are said as people read them", () => {
  const said = [0, 0.0000003, 0.0021, 0.83, 1, 9.9999, 12.44, -4.25, NaN, Infinity].map(say);
  assert.deepEqual(said, ["0", "3.0e-7", "0.0021", "0.830", "1.000", "10.000", "12.4", "-4.250", "not computed yet", "not computed yet"]);
  assert.deepEqual([0.5, 1, 12.4, -3, 0.12345].map(tick), ["0.5", "1", "12.4", "−3", "0.123"]);
  assert.deepEqual([["rank", 3], ["probability", 0.25], ["surprise", 12.34], ["entropy", 1.234], ["rank", NaN]].map((fact) => factOf(...fact)), [
    "rank 3", "25.0%", "surprise 12.3 bits", "entropy 1.23 bits", null,
  ]);
});

test("the longer side of a scale with a centre sets both", () => {
  assert.deepEqual(ends(-1, 3, 0), [-3, 3]);
  assert.deepEqual(ends(-1, 3, null), [-1, 3]);
  assert.deepEqual(ends(2, 2, 2), [1, 3]);
});

test("arrays are read as they were sent, wherever their bytes begin", () => {
  const bytes = new Uint8Array([9, ...new Uint8Array(Float32Array.from([1.5, -2]).buffer)]);
  const data = new DataView(bytes.buffer, 1, 8);
  assert.deepEqual([...numbers({ shape: [2], dtype: "float32", data }).data], [1.5, -2]);
  assert.deepEqual([...numbers(wire(Int32Array, "int32", [2], [7, -1])).data], [7, -1]);
  assert.equal(numbers({ shape: [0], dtype: "float32", data: null }), null);
  assert.deepEqual([0x3c00, 0xc000, 0x0001, 0x7c00, 0x3555].map(half), [1, -2, 2 ** -24, Infinity, 0.333251953125]);
  assert.ok(Number.isNaN(half(0x7e00)));
});

test("a lower triangle is made a square again", () => {
  const packed = { ...floats([3, 3], [1, 2, 3, 4, 5, 6]), triangle: true };
  assert.deepEqual([...unpacked(packed).data], [1, 0, 0, 2, 3, 0, 4, 5, 6]);
  assert.equal(unpacked(null), null);
});

test("a window stays inside the grid and large enough to be read", () => {
  assert.deepEqual(placed([40, 20], 35, 18, 10, 8), [30, 40, 12, 20]);
  assert.deepEqual(placed([40, 20], -3, -3, 1, 1), [0, 6, 0, 6]);
  assert.deepEqual(placed([4, 20], 0, 0, 1, 100), [0, 4, 0, 20]);
});

test("zooming keeps the cell where it is, and zooming out again gives what there was", () => {
  const inner = zoomed([100, 100], [0, 100, 0, 100], 0.5, [20, 60]);
  assert.deepEqual(inner, [10, 60, 30, 80]);
  assert.deepEqual(zoomed([100, 100], inner, 2, [20, 60]), [0, 100, 0, 100]);
  assert.deepEqual(zoomed([100, 100], [40, 60, 40, 60], 0.5), [45, 55, 45, 55]);
});

test("numbers come from the detail where it covers the window", () => {
  const values = numbers(floats([2, 2], [1, 2, 3, 4]));
  const zoom = { detail_at: [4, 8, 0, 4], detail: floats([2, 2], [5, 6, 7, 8]), extent: [16, 16] };
  assert.deepEqual(sourceOf(model(zoom), values, [4, 6, 0, 2]).data, Float32Array.from([5, 6, 7, 8]));
  assert.equal(sourceOf(model(zoom), values, [4, 6, 0, 2]).step, 2);
  assert.equal(sourceOf(model(zoom), values, [0, 6, 0, 2]).data, values.data);
  assert.equal(sourceOf(model(zoom), values, [0, 6, 0, 2]).step, 8);
  assert.equal(sourceOf(model({}), values, [0, 2, 0, 2]).step, 1);
});

test("a cone has a closed outline, whichever way up it is drawn", () => {
  const cone = { data: [0, 1, 0, 1, 1, 1], shape: [2, 3] };
  for (const flip of [(row) => row, (row) => 1 - row]) {
    const { outside, border } = coneShape(cone, flip);
    assert.deepEqual(outside, [[0, 0], [0, 2]]);
    assert.equal(border.length, 10); // of four cells in a T
    const corners = border.flatMap(([x1, y1, x2, y2]) => [`${x1},${y1}`, `${x2},${y2}`]);
    for (const corner of corners) assert.equal(corners.filter((other) => other === corner).length % 2, 0, corner);
  }
});

test("rows that are appended stand behind those there were, and what is missing is empty", () => {
  const rows = new Rows("top", wire(Int32Array, "int32", [1, 2], [3, 4]));
  rows.add(2, 1, 3, Int32Array.from([7, 8, 9]));
  const held = rows.wire();
  assert.deepEqual(held.shape, [3, 3]);
  assert.deepEqual([0, 1, 2].map((i) => rowOf(model({ top: held }), "top", i)), [[3, 4, -1], [-1, -1, -1], [7, 8, 9]]);
  assert.equal(rowOf(model({ top: held }), "top", 3), null);
  const many = new Rows("values", null);
  for (let i = 0; i < 500; i++) many.add(i, 1, 1, Float32Array.of(i));
  assert.deepEqual([many.length, many.row(499)[0], many.wire().shape], [500, 499, [500]]);
});

test("alternatives are words with their probabilities", () => {
  const traits = { top: wire(Int32Array, "int32", [1, 3], [1, 0, -1]), chances: wire(Uint16Array, "float16", [1, 3], [0x3800, 0x3400, 0]), words: ["a", "b"] };
  assert.deepEqual(alternativesOf(model(traits), 0), [["b", 0.5], ["a", 0.25]]);
});

test("a token has all its marks, and any name makes a class", () => {
  assert.deepEqual([...marksByPlace({ differs: [2], special: [0, 2] })], [[2, ["differs", "special"]], [0, ["special"]]]);
  assert.equal(markClass("my mark/1"), "labkit-is-my-mark-1");
});

test("a block hears of its traits and of messages until it is taken away", () => {
  const heard = { on: [], off: [] };
  const listener = () => {};
  const traits = { ...model({}), on: (...one) => heard.on.push(one), off: (...one) => heard.off.push(one) };
  const nothing = class { observe() {} disconnect() {} };
  Object.assign(globalThis, { MutationObserver: nothing, ResizeObserver: nothing });
  globalThis.document = { body: { dataset: { jpThemeLight: "false" } }, documentElement: {} };
  globalThis.matchMedia = () => ({ matches: false, addEventListener() {}, removeEventListener() {} });
  const dressed = [];
  globalThis.dressRoot = (root) => dressed.push(root);
  const shadow = { host: {} };
  const el = Object.assign(new EventTarget(), { dataset: {}, getRootNode: () => shadow });
  follow({ model: traits, el }, { "title unit": listener, "msg:custom": listener })();
  assert.deepEqual(dressed, [shadow]);
  assert.equal(el.dataset.theme, "dark");
  assert.deepEqual(heard.on, [["change:title change:unit", listener], ["msg:custom", listener]]);
  assert.deepEqual(heard.off, heard.on);
});

test("nothing is drawn anew between press and release, and once after it", async () => {
  const [el, draws] = [new EventTarget(), []];
  globalThis.window = new EventTarget();
  const calmly = unlessPressed(el, () => draws.push(1));
  calmly();
  el.dispatchEvent(new Event("pointerdown"));
  calmly();
  calmly();
  assert.equal(draws.length, 1);
  window.dispatchEvent(new Event("pointerup"));
  assert.equal(draws.length, 1); // the click comes first
  await new Promise((done) => setTimeout(done, 5));
  assert.equal(draws.length, 2);
  calmly();
  assert.equal(draws.length, 3);
});

test("what was deflated is inflated, however it was packed", () => {
  const words = Array.from({ length: 4000 }, (_, n) => `token ${(n * 7919) % 613} <\u2028>`).join(" ");
  const noise = Uint8Array.from({ length: 70_000 }, (_, n) => (n * n * 31 + (n >> 3) * 17) & 255);
  for (const data of [Buffer.alloc(0), Buffer.from("a"), Buffer.from(words), Buffer.from(noise), Buffer.alloc(300_000)]) {
    for (const how of [{ level: 9 }, { level: 1 }, { level: 0 }, { strategy: zlib.constants.Z_FIXED }]) {
      assert.ok(Buffer.from(inflate(zlib.deflateRawSync(data, how))).equals(data), `${data.length} ${JSON.stringify(how)}`);
    }
  }
  const packed = zlib.deflateRawSync(Buffer.from(words));
  assert.throws(() => inflate(packed.subarray(0, packed.length - 20)), /cut short/);
});

/** A page with these models: `when(traits by id)` is a chunk. */
const page = (traits) => {
  const states = [];
  const models = Object.fromEntries(Object.entries(traits).map(([id, its]) => [id, new Held(its)]));
  return { models, when: (state) => states.push(state) - 1, unpack: (n) => states[n] };
};

test("a value has its state, what the last one changed goes back, and what is absent says so", () => {
  const { models, when, unpack } = page({ grid: { selection: null }, bars: { title: "", note: "first" } });
  const states = { "[[1,2]]": when({ bars: { title: "here", note: "%s stays" } }), "[[3,4]]": when({ bars: { title: "there" } }) };
  const otherwise = when({ bars: { title: "heads=[%s] is %s" } });
  rules.switch({ on: [["grid", "selection"]], states, otherwise }, { models, unpack });
  const shows = (selection) => {
    models.grid.set("selection", selection);
    return [models.bars.get("title"), models.bars.get("note")];
  };
  assert.deepEqual(shows([1, 2]), ["here", "%s stays"]);
  assert.deepEqual(shows([3, 4]), ["there", "first"]);
  assert.deepEqual(shows([5, 6]), ["heads=[(5, 6)] is (5, 6)", "first"]);
});

test("linked parts have one value, and each hears of it once", () => {
  const { models } = page({ a: { window: null }, b: { window: null } });
  rules.same({ trait: "window", of: ["a", "b"] }, { models });
  let heard = 0;
  models.b.on("change:window", () => heard++);
  models.a.set("window", [0, 1, 0, 1]);
  models.b.set("window", [0, 1, 0, 1]);
  assert.deepEqual([models.b.get("window"), heard], [[0, 1, 0, 1], 1]);
});

test("chunks hold JSON and the bytes that it refers to", () => {
  const pack = (data) => zlib.deflateRawSync(Buffer.from(data)).toString("base64");
  const unpack = unpacker([pack([1, 2, 3]), pack(JSON.stringify({ values: { shape: [3], data: { $: 0 } }, "<b>": "</script>" }))]);
  const { values, ...rest } = unpack(1);
  assert.deepEqual([[...new Uint8Array(values.data.buffer)], rest], [[1, 2, 3], { "<b>": "</script>" }]);
});

test("where a token looks is a row of the matrix, what looks at it a column, pooled or not", () => {
  const matrix = { shape: [2, 2], dtype: "uint8", data: Uint8Array.from([255, 0, 51, 204]) };
  const of = { matrix, size: 2, low: 0, high: 1 };
  const looks = (...how) => [...looksOf(...how)].map((value) => Number(value.toFixed(2)));
  assert.deepEqual(looks(of, 1, "from"), [0.2, 0.8]);
  assert.deepEqual(looks(of, 0, "to"), [1, 0.2]);
  assert.deepEqual(looks({ ...of, size: 4 }, 2, "from"), [0.2, 0.2, 0.8, 0]);
});
