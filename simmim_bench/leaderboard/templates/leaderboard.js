// Connects DataTables, which sorts and searches the table, with the filters, the plots and the details dialog.
const DataTable = globalThis.DataTable;
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Missing scores are sorted last in both directions.
const missingLast = (sign) => (a, b) =>
  a === b ? 0 : a === "" ? 1 : b === "" ? -1 : sign * (Number(a) - Number(b));
DataTable.ext.type.order["known-asc"] = missingLast(1);
DataTable.ext.type.order["known-desc"] = missingLast(-1);

const GROUP_COLUMN = 1;
const filters = one("#filters");
const table = new DataTable("#scores", {
  paging: false,
  info: false,
  autoWidth: false,
  order: [],
  layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
  columnDefs: [
    { targets: ".high", type: "known", orderSequence: ["desc", "asc", ""] },
    { targets: ".low", type: "known", orderSequence: ["asc", "desc", ""] },
    { targets: ".text", type: "string" },
  ],
  language: { zeroRecords: "No row matches these filters.", emptyTable: "No rows yet." },
});

table.search.fixed("form", (_text, _data, index) => {
  const { arch, group, status } = table.row(index).node().dataset;
  const fields = filters.elements;
  return (
    (!fields.arch.value || fields.arch.value === arch) &&
    (!fields.group?.value || fields.group.value === group) &&
    (status === "reported" ? fields.reported.checked : fields.reproduced.checked)
  );
});

function applyFilters() {
  const { text, task, group, grouped } = filters.elements;
  table.columns("[data-task]").every(function () {
    this.visible(!task.value || this.header().dataset.task === task.value, false);
  });
  table.order.fixed({ pre: grouped?.checked ? [[GROUP_COLUMN, "asc"]] : [] });
  table.search(text.value).draw();
  for (const protocols of all("[data-selected-group]")) {
    protocols.hidden = protocols.dataset.selectedGroup !== group.value;
  }
}

function updatePlotsAndCount() {
  const rows = table.rows({ search: "applied" }).nodes().toArray();
  const ids = new Set(rows.map((row) => row.dataset.row));
  for (const element of all("#cost [data-row]")) {
    element.classList.toggle("off", !ids.has(element.dataset.row));
  }
  // A front through rows that the filters exclude would be wrong for the remaining rows.
  for (const front of all("#cost [data-front]")) {
    front.classList.toggle("off", !JSON.parse(front.dataset.front).every((id) => ids.has(id)));
  }
  const groups = new Set(rows.map((row) => row.dataset.group || row.dataset.status));
  const mixed = groups.size > 1 && table.order().some(([column]) => column > GROUP_COLUMN);
  one("#count").textContent =
    `${rows.length} of ${table.rows().count()} rows.` +
    (mixed && !filters.elements.grouped?.checked
      ? " Their protocols differ, so the order is not a ranking."
      : "");
}

table.on("draw", updatePlotsAndCount);
filters.addEventListener("input", applyFilters);
filters.addEventListener("submit", (event) => event.preventDefault());
// The fields still have their old values while the reset event is dispatched.
filters.addEventListener("reset", () => setTimeout(applyFilters));
filters.hidden = false;
// A browser may restore the fields of the form when the page is reloaded.
applyFilters();

const axes = one("#axes");
function showPlot() {
  const { column, cost } = axes.elements;
  let found = false;
  for (const figure of all("figure.plot")) {
    figure.hidden =
      figure.dataset.column !== column.value || figure.dataset.cost !== cost.value;
    found ||= !figure.hidden;
  }
  one("#no-plot").hidden = found;
}
if (axes) {
  axes.addEventListener("input", showPlot);
  filters.elements.task.addEventListener("input", () => {
    const option = one(`option[data-task="${CSS.escape(filters.elements.task.value)}"]`, axes);
    if (option) {
      axes.elements.column.value = option.value;
      showPlot();
    }
  });
  axes.hidden = false;
  showPlot();
}

// The differences of two rows: a table with one interval per line, on a common scale.
const comparison = one("#compare");
const svgElement = (tag, attributes, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
};
const cellOf = (tag, content, className = "") => {
  const cell = document.createElement(tag);
  cell.className = className;
  cell.append(content);
  return cell;
};
const signed = (value) => {
  const text = Math.abs(value).toFixed(1);
  return text === "0.0" ? text : `${value < 0 ? "−" : "+"}${text}`;
};
const pValue = (value) => (value === null ? "–" : value < 0.001 ? "< 0.001" : value.toFixed(3));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// Undecided: the interval is of the images alone and excludes 0, but another seed may reverse the difference.
function verdictOf({ low, high, alone }) {
  if (low <= 0 && high >= 0) return "not distinguishable";
  return alone ? "undecided" : low > 0 ? "higher" : "lower";
}

// Ticks at multiples of 1, 2 or 5 times a power of ten, at most six.
function scaleOf(found) {
  const low = Math.min(0, ...found.map((one) => one.low));
  const high = Math.max(0, ...found.map((one) => one.high));
  const margin = (high - low || 1) * 0.06;
  const [left, right] = [low - margin, high + margin];
  const power = 10 ** Math.floor(Math.log10((right - left) / 6));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => (right - left) / s <= 6);
  const ticks = [];
  for (let k = Math.ceil(left / step); k * step <= right; k++) ticks.push(k * step);
  return { ticks, place: (points) => `${((100 * (points - left)) / (right - left)).toFixed(2)}%` };
}

function intervalOf(one, { ticks, place }) {
  const svg = svgElement("svg", { class: "forest-line", "aria-hidden": "true", focusable: "false" });
  for (const tick of ticks) {
    const x = place(tick);
    svg.append(svgElement("line", { x1: x, x2: x, y1: "0", y2: "100%", class: tick ? "tick" : "zero" }));
  }
  const [low, high] = [place(one.low), place(one.high)];
  svg.append(svgElement("line", { x1: low, x2: high, y1: "50%", y2: "50%", class: one.alone ? "bar alone" : "bar" }));
  for (const x of [low, high]) {
    svg.append(svgElement("line", { x1: x, x2: x, y1: "38%", y2: "62%", class: "bar" }));
  }
  svg.append(svgElement("circle", { cx: place(one.points), cy: "50%", r: "4.5" }));
  return svg;
}

function axisOf({ ticks, place }) {
  const svg = svgElement("svg", { class: "forest-axis", "aria-hidden": "true", focusable: "false" });
  for (const tick of ticks) {
    const label = Number(tick.toPrecision(6));
    svg.append(svgElement("text", { x: place(tick), y: "1.1em", "text-anchor": "middle" }, label < 0 ? `−${-label}` : `${label}`));
  }
  return svg;
}

function startComparison() {
  const { shown, texts, groups } = JSON.parse(one("#comparisons").content.textContent);
  const nodes = new Map(table.rows().nodes().toArray().map((row) => [row.dataset.row, row]));
  const titles = table.columns("[data-task]").header().toArray().map((head) => head.dataset.heading);
  const form = one("#pair");
  const { a, b } = form.elements;
  let previous = [0, 1];

  const group = () => groups[form.elements.protocols?.value ?? 0];
  const fill = (select, rows, chosen) => {
    select.replaceChildren(
      ...rows.map((id, k) => new Option(one("a", nodes.get(id)).textContent, k, false, k === chosen)),
    );
  };

  // The differences are stored for rows i < j; those of j and i have the opposite sign.
  function differencesOf(i, j) {
    const swapped = i > j;
    const [claim, differences, missing] = group().pairs[swapped ? `${j}-${i}` : `${i}-${j}`];
    const text = (k) => (swapped ? texts[k].replace(/\b[AB]\b/g, (c) => (c === "A" ? "B" : "A")) : texts[k]);
    return {
      claim: text(claim),
      missing: missing.map(([column, reason]) => [titles[column], text(reason)]),
      found: differences.map(([column, points, low, high, p, holm, images, ours, theirs, ofPretrainings, alone]) => ({
        column,
        points: swapped ? -points : points,
        low: swapped ? -high : low,
        high: swapped ? -low : high,
        p: alone ? null : p,
        holm,
        images,
        units: swapped ? [theirs, ours] : [ours, theirs],
        unit: ofPretrainings ? "pretraining" : "seed",
        alone: Boolean(alone),
      })),
    };
  }

  function lineOf(one, scale, i, j) {
    const verdict = verdictOf(one);
    const row = cellOf("tr", "", verdict.replace(" ", "-"));
    const { scores } = group();
    const [ours, theirs] = one.units;
    const over = ours === theirs ? plural(ours, one.unit) : `${ours} and ${theirs} ${one.unit}s`;
    const head = cellOf("th", titles[one.column]);
    head.scope = "row";
    row.append(
      head,
      cellOf("td", scores[i][one.column]),
      cellOf("td", scores[j][one.column]),
      cellOf("td", intervalOf(one, scale), "interval"),
      cellOf("td", `${signed(one.points)} (${signed(one.low)} to ${signed(one.high)})`, "points"),
      cellOf("td", pValue(one.p)),
      cellOf("td", pValue(one.holm)),
      cellOf("td", one.alone ? "one seed: images alone" : over),
      cellOf("td", one.images.toLocaleString("en")),
      cellOf("td", verdict, "verdict"),
    );
    return row;
  }

  function showPair() {
    const [i, j] = [Number(a.value), Number(b.value)];
    previous = [i, j];
    const { claim, found, missing } = differencesOf(i, j);
    const scale = scaleOf(found);
    const counts = (verdict) => found.filter((one) => verdictOf(one) === verdict).length;
    one("#pair-summary").textContent = found.length
      ? `A is higher in ${counts("higher")} of ${plural(found.length, "column")}, lower in ${counts("lower")}, ` +
        `not distinguishable in ${counts("not distinguishable")}` +
        (counts("undecided") ? `, undecided with one seed in ${counts("undecided")}.` : ".")
      : "These rows cannot be compared in any column.";
    one(".scroll", comparison).hidden = one("#pair-claim").hidden = !found.length;
    one("#pair-claim").textContent = claim;
    one(".forest tbody").replaceChildren(...found.map((line) => lineOf(line, scale, i, j)));
    one(".forest tfoot .interval").replaceChildren(axisOf(scale));
    one("#pair-missing").hidden = !missing.length;
    one("#pair-missing ul").replaceChildren(
      ...missing.map(([title, reason]) => cellOf("li", `${title}: ${reason}`)),
    );
  }

  function showGroup(i, j) {
    const { name, rows, compared } = group();
    fill(a, rows.slice(0, compared), i);
    fill(b, rows, j);
    one("#pair-note").textContent =
      compared < rows.length
        ? `Of the ${rows.length} rows of group ${name}, the page compares the first ${compared} with all others; ` +
          "simmim-bench leaderboard compare A B compares any two."
        : "";
    showPair();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "protocols") {
      showGroup(0, 1);
      return;
    }
    // A row chosen as both trades places with the other, or leaves it to the next row.
    if (a.value === b.value) {
      const [other, former] = event.target === a ? [b, previous[0]] : [a, previous[1]];
      other.value = former;
      if (other.value === "") other.value = Number(event.target.value) ? 0 : 1;
      if (other.value === "") [a.value, b.value] = previous;
    }
    showPair();
  });
  filters.elements.group?.addEventListener("input", () => {
    const option = one(`option[data-group="${CSS.escape(filters.elements.group.value)}"]`, form);
    if (option) {
      form.elements.protocols.value = option.value;
      showGroup(0, 1);
    }
  });
  comparison.hidden = false;
  const [number, i, j] = shown ?? [0, 0, 1];
  if (form.elements.protocols) form.elements.protocols.value = number;
  showGroup(i, j);
}
if (comparison) {
  startComparison();
}

const dialog = one("#detail");
const body = one("#detail-body");
let opener = null;

function templateOf(hash) {
  try {
    return document.getElementById(`detail-${decodeURIComponent(hash.slice(1))}`);
  } catch {
    return null; // the address contains an invalid % sequence
  }
}

function classTable(scores) {
  const table = document.createElement("table");
  table.className = "plain";
  const head = table.createTHead().insertRow();
  for (const title of ["class", "score"]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = title;
    head.append(cell);
  }
  const rows = table.createTBody();
  for (const [name, score] of Object.entries(scores).sort((a, b) => b[1] - a[1])) {
    const row = rows.insertRow();
    const cell = document.createElement("th");
    cell.scope = "row";
    cell.textContent = name;
    row.append(cell);
    const value = row.insertCell();
    value.textContent = score === null ? "–" : score.toFixed(1);
    value.style.setProperty("--score", `${score ?? 0}%`);
  }
  return table;
}

function showDetails() {
  const template = templateOf(location.hash);
  if (!(template instanceof HTMLTemplateElement)) {
    dialog.close();
    return;
  }
  body.replaceChildren(template.content.cloneNode(true));
  for (const figure of all("[data-reconstruction]", body)) {
    const image = all("img", one("#reconstructions").content).find(
      (candidate) => candidate.dataset.reconstruction === figure.dataset.reconstruction,
    );
    figure.prepend(image.cloneNode());
  }
  for (const holder of all("[data-by-class]", body)) {
    holder.append(classTable(JSON.parse(holder.dataset.byClass)));
  }
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
  }
  dialog.scrollTop = 0;
}

async function copyCommand(button) {
  const code = one("code", button.parentElement);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    // Without permission to write to the clipboard, the text is selected for Ctrl+C.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (link && templateOf(link.getAttribute("href"))) {
    // By default, the browser would scroll to the row, away from a plot that was clicked.
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    showDetails();
  }
  const button = event.target.closest("[data-copy]");
  if (button) {
    copyCommand(button);
  }
});
dialog.addEventListener("close", () => {
  const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (location.hash) {
    history.replaceState(null, "", location.pathname + location.search);
  }
  // Details that were opened by the address or from a plot return the focus to the row's link.
  const target = opener && opener !== document.body ? opener : row && one("a", row);
  target?.focus();
});
addEventListener("hashchange", showDetails);
addEventListener("popstate", showDetails);
if (location.hash) {
  showDetails();
}
