// StatusLine: what is going on, in one sentence, with a bar while something runs.

function render({ model, el }) {
  blockRoot(el, "labkit-status");
  const text = element("span", "labkit-status-text");
  const track = element("span", "labkit-track");
  const done = element("span", "labkit-done");
  track.setAttribute("role", "progressbar");
  track.setAttribute("aria-label", "progress");
  track.append(done);
  el.append(track, text);

  function draw() {
    const error = model.get("kind") === "error";
    text.textContent = model.get("text");
    text.setAttribute("role", error ? "alert" : "status");
    el.dataset.kind = model.get("kind");
    const share = model.get("share");
    track.hidden = share === null;
    if (share !== null) {
      done.style.width = `${100 * share}%`;
      track.setAttribute("aria-valuenow", Math.round(100 * share));
    }
  }

  const stopTheme = followTheme(el, () => {});
  draw();
  model.on("change:text change:kind change:share", draw);
  return () => {
    stopTheme();
    model.off("change:text change:kind change:share", draw);
  };
}

export default { render };
