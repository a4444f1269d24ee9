"use strict";
// What the report's page does by itself: read values off a curve, filter the samples, switch between light and dark.

const readouts = JSON.parse(document.getElementById("readouts").textContent);

for (const figure of document.querySelectorAll(".chart")) {
  const data = readouts[Number(figure.dataset.chart)];
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const values = figure.querySelectorAll(".key b");
  const at = figure.querySelector(".at");

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let place = 0;
    data.x.forEach((candidate, index) => {
      if (Math.abs(candidate - x) < Math.abs(data.x[place] - x)) place = index;
    });
    cursor.setAttribute("x1", data.x[place]);
    cursor.setAttribute("x2", data.x[place]);
    cursor.style.visibility = "visible";
    at.textContent = "step " + data.steps[place];
    values.forEach((value, index) => { value.textContent = data.lines[index].values[place]; });
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    at.textContent = "";
    values.forEach((value) => { value.textContent = ""; });
  });
}

const filters = document.getElementById("filters");

function filter() {
  const { step, outcome, low, high, text } = filters.elements;
  const wanted = text.value.trim().toLowerCase();
  let groups = 0;
  let completions = 0;
  for (const group of document.querySelectorAll(".group")) {
    const asked = group.querySelector(".problem").textContent + "\n" + group.querySelector(".solution code").textContent;
    const inStep = !step.value || group.dataset.step === step.value;
    let shown = 0;
    for (const row of group.querySelectorAll(".row")) {
      const reward = row.dataset.reward === "" ? null : Number(row.dataset.reward);
      const words = (asked + "\n" + row.querySelector("pre").textContent).toLowerCase();
      const fits = inStep
        && (!outcome.value || row.dataset.outcome === outcome.value)
        && (low.value === "" || (reward !== null && reward >= Number(low.value)))
        && (high.value === "" || (reward !== null && reward <= Number(high.value)))
        && (!wanted || words.includes(wanted));
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    group.hidden = shown === 0;
    groups += shown ? 1 : 0;
    completions += shown;
  }
  document.getElementById("shown").textContent = `${completions} completions of ${groups} groups`;
  document.getElementById("none").hidden = completions > 0;
}

if (filters) {
  filters.addEventListener("input", filter);
  filters.addEventListener("reset", () => setTimeout(filter));
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter(); // a browser may have kept what was chosen before a reload
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
