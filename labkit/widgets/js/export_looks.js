// @ts-check
// In an exported page: where a token looks, or what looks at it, from the matrix that is large. As TokenLooks in Python.

const MOST_LOOKS = 5;
const POINT = "Point at a token to see where it looks; click to lock it";

/**
 * A row (where a token looks) or a column (what looks at it) of a matrix that may be pooled and in bytes.
 * @param {{ matrix: Numbers, size: number, low: number, high: number }} of
 * @param {number} token @param {string} direction
 */
function looksOf({ matrix, size, low, high }, token, direction) {
  const [rows, columns] = matrix.shape;
  const step = Math.ceil(size / rows);
  const found = new Float32Array(size);
  for (let n = 0; n < size; n++) {
    const [query, key] = direction === "to" ? [n, token] : [token, n];
    if (key > query) continue; // it cannot look ahead
    const raw = matrix.data[Math.floor(query / step) * columns + Math.floor(key / step)];
    found[n] = matrix.dtype === "uint8" ? low + (raw / 255) * (high - low) : raw;
  }
  return found;
}

rules.looks = ({ map, strip, bars, direction }, { models }) => {
  const [matrix, text, table] = [models[map], models[strip], models[bars]];
  let token = text.get("tokens").length - 1; // the last one pointed at: what comes and goes would move the page
  const follow = () => {
    const places = [text.get("selection"), text.get("hovered"), matrix.get("hovered")?.[0]];
    token = places.find((place) => place !== null && place !== undefined) ?? token;
    const { looking: _, ...marks } = text.get("marks");
    const held = unpacked(matrix.get("values"));
    if (token < 0 || !held) {
      text.take({ values: null, title: POINT, marks });
      table.take({ columns: [], title: "", note: "" });
      return;
    }
    const way = direction ? models[direction].get("value") : "from";
    const tokens = text.get("tokens");
    const [low, high] = [matrix.get("low"), matrix.get("high")];
    const size = matrix.get("extent")?.[0] ?? held.shape[0];
    const values = looksOf({ matrix: held, size, low, high }, token, way);
    const name = `${tokens[token]} (${token})`;
    const title = way === "from" ? `Where ${name} looks` : `What looks at ${name}`;
    const wire = { shape: [size], dtype: "float32", data: new DataView(values.buffer) };
    const unit = matrix.get("unit");
    text.take({ values: wire, title, unit, low: 0, high, marks: { ...marks, looking: [token] } });
    const total = unit === "attention" && way === "from" ? 1 : values.reduce((sum, one) => sum + one, 0) || 1;
    const most = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, MOST_LOOKS).filter((n) => values[n] > 0);
    table.take({ columns: [[title, most.map((n) => [`${n} ${tokens[n]}`, values[n] / total])]] });
  };
  text.on("change:selection change:hovered", follow);
  matrix.on("change:hovered change:values", follow);
  matrix.on("change:selection", () => text.set("selection", matrix.get("selection")?.[0] ?? null));
  if (direction) models[direction].on("change:value", follow);
  follow();
};
