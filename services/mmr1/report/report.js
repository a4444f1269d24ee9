"use strict";
// What the report's page does by itself: read values off a curve, filter the samples, choose whose boxes are drawn,
// enlarge an image, switch between light and dark.

const readouts = JSON.parse(document.getElementById("readouts").textContent);

for (const figure of document.querySelectorAll(".chart")) {
  const data = readouts[Number(figure.dataset.chart)];
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const values = figure.querySelectorAll(".key b");
  const at = figure.querySelector(".at");

  let current = data.x.length - 1;

  function show(place) {
    current = place;
    cursor.setAttribute("x1", data.x[place]);
    cursor.setAttribute("x2", data.x[place]);
    cursor.style.visibility = "visible";
    at.textContent = "step " + data.steps[place];
    values.forEach((value, index) => { value.textContent = data.lines[index].values[place]; });
  }

  function hide() {
    cursor.style.visibility = "hidden";
    at.textContent = "";
    values.forEach((value) => { value.textContent = ""; });
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let place = 0;
    data.x.forEach((candidate, index) => {
      if (Math.abs(candidate - x) < Math.abs(data.x[place] - x)) place = index;
    });
    show(place);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const last = data.x.length - 1;
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(last, to)));
  });
}

const filters = document.getElementById("filters");
const all = document.querySelectorAll(".row").length;

function filter() {
  const { task, step, outcome, low, high, text } = filters.elements;
  const wanted = text.value.trim().toLowerCase();
  let groups = 0;
  let completions = 0;
  for (const group of document.querySelectorAll(".group")) {
    const asked = group.querySelector(".problem").textContent + "\n" + group.querySelector(".solution code").textContent;
    const asks = (!step || !step.value || group.dataset.step === step.value)
      && (!task || !task.value || group.dataset.task === task.value);
    let shown = 0;
    for (const row of group.querySelectorAll(".row")) {
      const reward = row.dataset.reward === "" ? null : Number(row.dataset.reward);
      const words = (asked + "\n" + row.querySelector("pre").textContent).toLowerCase();
      const fits = asks
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
  document.getElementById("shown").textContent = `${completions} of ${all} completions, in ${groups} groups`;
  document.getElementById("none").hidden = completions > 0;
}

if (filters) {
  filters.addEventListener("input", filter);
  filters.addEventListener("reset", () => setTimeout(filter));
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter(); // a browser may have kept what was chosen before a reload
}

// Which completion's boxes are on the image: one of each group.
for (const button of document.querySelectorAll(".choose")) {
  button.addEventListener("click", () => {
    const group = button.closest(".group");
    for (const other of group.querySelectorAll(".choose")) other.setAttribute("aria-pressed", String(other === button));
    for (const boxes of group.querySelectorAll("[data-of]")) {
      boxes.toggleAttribute("hidden", boxes.dataset.of !== button.dataset.row);
    }
  });
}

for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    document.getElementById("large-picture").replaceChildren(button.parentElement.querySelector(".picture").cloneNode(true));
    document.getElementById("large").showModal();
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
