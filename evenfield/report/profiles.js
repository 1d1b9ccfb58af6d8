// Wells: two maps, two plate maps, one tip; a well that is pointed at is marked in both maps.
const data = JSON.parse(document.getElementById("well-data").textContent);
const side = 470, tip = document.getElementById("tip");
const stages = all(".well-map");
const marks = stages.map((figure) => all("circle.seen, circle.unseen", figure));
const halos = stages.map((figure) => figure.querySelector(".halo"));
const single = document.querySelector("select[name=single]");
const legend = document.getElementById("legend");
let colour = document.querySelector("button[data-colour][aria-pressed=true]").dataset.colour;

const told = (field, row) => data.fields[field] ? data.fields[field].names[data.fields[field].codes[row]] : "";
const place = (table, row) => {
  const at = data.places[table];
  return [side * (0.5 + 0.485 * at[2 * row] / 1000), side * (0.5 - 0.485 * at[2 * row + 1] / 1000)];
};

// The tip: text only, so that nothing in the metadata can become markup.
const line = (text, parent, kind) => {
  const element = document.createElement(kind || "div");
  element.textContent = text;
  parent.append(element);
};
const show = (row, x, y, extra) => {
  tip.replaceChildren();
  if (data.images[row]) {
    const image = document.createElement("img");
    image.src = data.images[row];
    image.alt = "image of well " + data.wells[row];
    tip.append(image);
  }
  const box = document.createElement("div");
  line(data.wells[row] + " · plate " + told("plate", row), box, "b");
  const treatment = told("treatment", row), label = told("label", row);
  if (treatment && treatment !== "none") line(treatment, box);
  if (label && label !== "none") line(data.fields.label.title + ": " + label, box);
  for (const field of ["batch", "source"]) if (data.fields[field]) line(field + " " + told(field, row), box);
  if (data.controls[row]) line("negative control", box);
  if (extra) line(extra, box);
  tip.append(box);
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = Math.max(4, Math.min(x + 16, document.documentElement.clientWidth - width - 8)) + "px";
  tip.style.top = (y + 18 + height > window.innerHeight ? Math.max(4, y - height - 12) : y + 18) + "px";
};
const mark = (row) => {
  stages.forEach((figure, index) => {
    const [x, y] = row < 0 ? [0, 0] : place(figure.dataset.table, row);
    halos[index].setAttribute("visibility", row < 0 ? "hidden" : "visible");
    halos[index].setAttribute("cx", x.toFixed(1));
    halos[index].setAttribute("cy", y.toFixed(1));
  });
};
const hide = () => { tip.hidden = true; mark(-1); };
const isOff = (row) => single.value !== "" && String(data.fields[single.dataset.field].codes[row]) !== single.value;

const paint = () => {
  const field = data.fields[colour];
  marks.forEach((circles) => circles.forEach((circle, row) => {
    circle.setAttribute("class", (data.controls[row] ? "seen" : "unseen") + " k" + field.tones[field.codes[row]] + (isOff(row) ? " off" : ""));
  }));
  for (const button of legend.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(single.value !== "" && button.dataset.code === single.value));
  }
};
const listNames = () => {
  const field = data.fields[colour];
  single.dataset.field = colour;
  single.replaceChildren(new Option("all", ""), ...field.names.map((name, code) => new Option(name, code)));
  legend.replaceChildren(...field.legend.map(([tone, name]) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const code = field.names.findIndex((other, index) => other === name && field.tones[index] === tone);
    button.type = "button";
    button.className = "k" + tone;
    button.dataset.code = code;
    button.disabled = code < 0;
    button.append(document.createElement("i"), name);
    button.addEventListener("click", () => { single.value = single.value === String(code) ? "" : String(code); paint(); });
    item.append(button);
    return item;
  }));
};
for (const button of all("button[data-colour]")) {
  button.addEventListener("click", () => {
    colour = button.dataset.colour;
    for (const other of all("button[data-colour]")) other.setAttribute("aria-pressed", String(other === button));
    listNames();
    paint();
  });
}
single.addEventListener("change", paint);

// By plate and well, for the arrow keys.
const byName = [...Array(data.num).keys()].sort((a, b) =>
  data.fields.plate.codes[a] - data.fields.plate.codes[b] || (data.wells[a] < data.wells[b] ? -1 : 1));
stages.forEach((figure, index) => {
  const select = figure.querySelector("select"), stage = figure.querySelector(".stage");
  const svg = stage.querySelector("svg");
  let current = -1;
  select.addEventListener("change", () => {
    figure.dataset.table = select.value;
    marks[index].forEach((circle, row) => {
      const [x, y] = place(select.value, row);
      circle.setAttribute("cx", x.toFixed(1));
      circle.setAttribute("cy", y.toFixed(1));
    });
    svg.setAttribute("aria-label", "Map of " + data.num + " wells of " + select.value);
    stage.setAttribute("aria-label", "Map of " + select.value + ": arrow keys go from well to well");
  });
  stage.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect(), scale = side / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = -1, least = 100;
    for (let row = 0; row < data.num; row++) {
      if (isOff(row)) continue;
      const [cx, cy] = place(figure.dataset.table, row);
      const away = (cx - x) ** 2 + (cy - y) ** 2;
      if (away < least) { least = away; best = row; }
    }
    if (best < 0) { hide(); return; }
    show(best, event.clientX, event.clientY);
    mark(best);
  });
  stage.addEventListener("mouseleave", hide);
  stage.addEventListener("blur", hide);
  stage.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hide(); return; }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const kept = byName.filter((row) => !isOff(row));
    if (!kept.length) return;
    current = (Math.max(-1, current) + step + kept.length) % kept.length;
    const row = kept[current], box = svg.getBoundingClientRect();
    const [x, y] = place(figure.dataset.table, row);
    show(row, box.left + x * box.width / side, box.top + y * box.width / side);
    mark(row);
  });
});

// Plate maps.
const plate = document.querySelector("select[name=plate]");
const [numRows, numColumns] = data.size;
const wellNumber = data.wells.map((well) => {
  const found = /^([A-Z]{1,2})([0-9]{1,2})$/.exec(well);
  if (!found) return -1;
  const row = [...found[1]].reduce((sum, letter) => 26 * sum + letter.charCodeAt(0) - 64, 0) - 1;
  const column = Number(found[2]) - 1;
  return row < numRows && column < numColumns ? row * numColumns + column : -1;
});
const shortNumber = (value) => String(Number(value.toPrecision(4)));
all(".grid-of").forEach((figure) => {
  const select = figure.querySelector("select"), rects = all("rect.well", figure);
  let rowOf = new Map();
  const draw = () => {
    const value = data.values[Number(select.value)], sums = new Map();
    rowOf = new Map();
    data.wells.forEach((_, row) => {
      if (plate.value && told("plate", row) !== plate.value) return;
      const number = value.at[row], well = wellNumber[row];
      if (well < 0) return;
      if (plate.value) rowOf.set(well, row);
      if (number === null) return;
      const [sum, count] = sums.get(well) || [0, 0];
      sums.set(well, [sum + number, count + 1]);
    });
    rects.forEach((rect, well) => {
      const found = sums.get(well), mean = found ? found[0] / found[1] : 0;
      const share = value.high > value.low ? (mean - value.low) / (value.high - value.low) : 0.5;
      const step = Math.floor(Math.min(Math.max(share, 0), 1) * 10 + 0.5);
      rect.setAttribute("class", "well " + (found ? "h" + step : "qe"));
      const mark = rect.querySelector("title");
      mark.textContent = mark.textContent.split(":")[0] + ": " + (found ? shortNumber(mean) : "no value");
    });
    figure.querySelector(".low").textContent = value.low;
    figure.querySelector(".high").textContent = value.high;
    const name = select.selectedOptions[0].textContent;
    figure.querySelector("svg").setAttribute("aria-label", "Plate map of " + name + ", " + (plate.value || "mean over plates") + ".");
  };
  select.addEventListener("change", draw);
  plate.addEventListener("change", draw);
  figure.addEventListener("mousemove", (event) => {
    const well = rects.indexOf(event.target);
    const row = rowOf.get(well);
    if (row === undefined) { hide(); return; }
    show(row, event.clientX, event.clientY, select.selectedOptions[0].textContent + ": " + event.target.querySelector("title").textContent.split(": ")[1]);
    mark(row < data.num ? row : -1);
  });
  figure.addEventListener("mouseleave", hide);
});
for (const button of all("button.goto")) {
  button.addEventListener("click", () => {
    if (!plate) return;
    plate.value = button.dataset.plate;
    plate.dispatchEvent(new Event("change"));
    document.getElementById("plates").scrollIntoView();
  });
}
listNames();
root.dataset.ready = "yes";
