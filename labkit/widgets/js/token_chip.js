// @ts-check
// What the strips share: a token's text in its chip, and the names that mark it.

/**
 * Put a token's text into its chip. Spaces that are made visible are there to be seen, not to be read: paler than the word.
 * @param {HTMLElement} node @param {string} text
 */
function writeToken(node, text) {
  const [, lead, word, tail] = /** @type {string[]} */ (/** @type {unknown} */ (/^(·*)([^]*?)(·*)$/.exec(text)));
  if (lead) node.append(element("span", "labkit-space", lead));
  node.append(element("bdi", "", word)); // right-to-left words keep their own direction, and their neighbours theirs
  if (tail) node.append(element("span", "labkit-space", tail));
}

/** Which names mark each place. @param {Record<string, number[]>} marks */
function marksByPlace(marks) {
  const found = /** @type {Map<number, string[]>} */ (new Map());
  for (const [name, places] of Object.entries(marks)) {
    for (const at of places) found.set(at, [...(found.get(at) ?? []), name]);
  }
  return found;
}

/** The class that a mark gives to what it marks. @param {string} name */
const markClass = (name) => `labkit-is-${name.replace(/[^a-z0-9-]/gi, "-")}`;
