// @ts-check
// StatusLine: what is going on, in one sentence, with a bar while something runs.

const BETWEEN = 5000; // milliseconds between two announcements of how far something is

/** @param {Context<StatusLineTraits>} context */
function render({ model, el }) {
  blockRoot(el, "labkit-status");
  const text = element("span", "labkit-status-text");
  const track = element("span", "labkit-track", "", { role: "progressbar", "aria-label": "progress" });
  const done = element("span", "labkit-done");
  track.append(done);
  el.append(track, text);
  const live = spoken(el);
  let said = { kind: "", going: false, at: -Infinity };

  /** What is seen changes many times a second; what is read out changes at the start, at the end and now and then. */
  function announce() {
    const now = { kind: model.get("kind"), going: model.get("share") !== null, at: performance.now() };
    const same = now.going && said.going && now.kind === said.kind;
    if (same && now.at - said.at < BETWEEN) return;
    said = now;
    attribute(live, now.kind === "error" ? { role: "alert", "aria-live": "assertive" } : { role: "status", "aria-live": "polite" });
    if (live.textContent !== model.get("text")) live.textContent = model.get("text");
  }

  function draw() {
    text.textContent = model.get("text");
    el.dataset.kind = model.get("kind");
    const share = model.get("share");
    track.hidden = share === null;
    done.style.width = `${100 * (share ?? 0)}%`;
    attribute(track, { "aria-valuenow": Math.round(100 * (share ?? 0)) });
    announce();
  }

  draw();
  return follow({ model, el }, { "text kind share": draw });
}

export default { render };
