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
