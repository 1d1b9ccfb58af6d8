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

