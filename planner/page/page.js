// Draws every picture of the page, in the colours of the reader's light or dark mode, and again when that changes.
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  return {
    background: "transparent",
    view: { stroke: null },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line },
    legend: { labelColor: ink, titleColor: ink },
    text: { color: ink },
    title: { color: ink },
  };
}

async function draw() {
  document.body.dataset.drawn = "";
  for (const [name, spec] of Object.entries(pictures)) {
    const options = { actions: false, renderer: "svg", config: colours(), tooltip: { theme: dark.matches ? "dark" : "light" } };
    await vegaEmbed(document.getElementById(name), spec, options);
  }
  document.body.dataset.drawn = "yes";
}

dark.addEventListener("change", draw);
draw();
