"use strict";
const root = document.documentElement;
window.addEventListener("error", (event) => { root.dataset.error = String(event.message); });

const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// The table of results: filters and sorting.
for (const table of all("table.results")) {
  const body = table.tBodies[0];
  const filters = all("select[data-column]", table.closest("section"));
  const show = () => {
    for (const row of body.rows) {
      row.hidden = filters.some((filter) => filter.value && row.dataset[filter.dataset.column] !== filter.value);
    }
  };
  for (const filter of filters) filter.addEventListener("change", show);
  show();
  for (const button of all("thead button", table)) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = [...head.parentNode.children].indexOf(head);
      const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("n"));
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const text = row.cells[column].dataset.value;
        if (text === undefined) return row.cells[column].textContent;
        return text === "" ? -Infinity : Number(text);
      };
      const order = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        return (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true })) * (up ? 1 : -1);
      });
      body.append(...order);
    });
  }
}

// Plate maps: another plate, another choice.
const plates = document.getElementById("plate-data");
if (plates) {
  const data = JSON.parse(plates.textContent);
  const section = plates.closest("section");
  const plate = section.querySelector("select[name=plate]");
  const choice = section.querySelector("select[name=choice]");
  const draw = (figure, key) => {
    const wells = new Map(((data[key] || {})[plate.value] || []).map(([well, right, total]) => [well, [right, total]]));
    let right = 0, total = 0;
    all("rect.well", figure).forEach((rect, index) => {
      const [hits, size] = wells.get(index) || [0, 0];
      right += hits; total += size;
      rect.setAttribute("class", "well " + (size ? "q" + Math.floor((hits / size) * 10 + 0.5) : "qe"));
      const mark = rect.querySelector("title");
      mark.textContent = mark.textContent.split(":")[0] + ": " + (size ? hits + " of " + size + " right" : "not scored");
    });
    figure.querySelector(".sum").textContent = total ? (100 * right / total).toFixed(0) + " % of " + total + " right" : "not scored";
  };
  const redraw = () => {
    for (const figure of all("figure[data-choice]", section)) draw(figure, figure.dataset.choice);
  };
  plate.addEventListener("change", redraw);
  if (choice) choice.addEventListener("change", () => {
    const figure = all("figure[data-choice]", section).pop();
    figure.dataset.choice = choice.value;
    figure.querySelector("h3 b").textContent = choice.selectedOptions[0].textContent;
    redraw();
  });
}

// Embedding: coloured by batch or by label; a legend entry singles out its marks.
for (const section of all("section[data-by]")) {
  const single = (code) => {
    for (const mark of all(".map .seen, .map .unseen", section)) mark.classList.toggle("off", code !== "" && !mark.classList.contains(code));
    for (const button of all(".legend button", section)) button.setAttribute("aria-pressed", String(button.dataset.code === code));
  };
  for (const button of all("button[data-colour]", section)) {
    button.addEventListener("click", () => {
      section.dataset.by = button.dataset.colour;
      for (const other of all("button[data-colour]", section)) other.setAttribute("aria-pressed", String(other === button));
      single("");
    });
  }
  for (const button of all(".legend button", section)) {
    button.addEventListener("click", () => single(button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.code));
  }
}
root.dataset.ready = "yes";
