// Figures of the notebooks, drawn where they are first seen by the copy of plotly that comes with the site.
const draw = (box) => {
  const { data, layout } = JSON.parse(box.querySelector("script").textContent);
  Plotly.newPlot(box, data, layout, { displaylogo: false, displayModeBar: false });
};
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "600px" });
document.querySelectorAll(".labkit-plot").forEach((box) => seen.observe(box));
