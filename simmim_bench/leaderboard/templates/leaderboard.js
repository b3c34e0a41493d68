// Sorting and search are DataTables'; this file joins them to the filters, the plots and the details.
const DataTable = globalThis.DataTable;
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A missing score comes last in both directions.
const missingLast = (sign) => (a, b) =>
  a === b ? 0 : a === "" ? 1 : b === "" ? -1 : sign * (Number(a) - Number(b));
DataTable.ext.type.order["known-asc"] = missingLast(1);
DataTable.ext.type.order["known-desc"] = missingLast(-1);

const GROUP = 1;
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
  language: { zeroRecords: "No row fits these filters.", emptyTable: "No rows yet." },
});

table.search.fixed("form", (_text, _data, index) => {
  const { arch, group, status } = table.row(index).node().dataset;
  const wanted = filters.elements;
  return (
    (!wanted.arch.value || wanted.arch.value === arch) &&
    (!wanted.group?.value || wanted.group.value === group) &&
    (status === "reported" ? wanted.reported.checked : wanted.reproduced.checked)
  );
});

function filter() {
  const { text, task, group, apart } = filters.elements;
  table.columns("[data-task]").every(function () {
    this.visible(!task.value || this.header().dataset.task === task.value, false);
  });
  table.order.fixed({ pre: apart?.checked ? [[GROUP, "asc"]] : [] });
  table.search(text.value).draw();
  for (const chosen of all("[data-chosen]")) {
    chosen.hidden = chosen.dataset.chosen !== group.value;
  }
}

function tell() {
  const rows = table.rows({ search: "applied" }).nodes().toArray();
  const ids = new Set(rows.map((row) => row.dataset.row));
  for (const part of all("#cost [data-row]")) {
    part.classList.toggle("off", !ids.has(part.dataset.row));
  }
  // A front through rows that are not shown would say something of those that are.
  for (const front of all("#cost [data-front]")) {
    front.classList.toggle("off", !JSON.parse(front.dataset.front).every((id) => ids.has(id)));
  }
  const groups = new Set(rows.map((row) => row.dataset.group || row.dataset.status));
  const mixed = groups.size > 1 && table.order().some(([column]) => column > GROUP + 1);
  one("#count").textContent =
    `${rows.length} of ${table.rows().count()} rows.` +
    (mixed && !filters.elements.apart?.checked
      ? " They follow different protocols, so their order is not a ranking."
      : "");
}

table.on("draw", tell);
filters.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
// The fields still hold their old values while a form is being reset.
filters.addEventListener("reset", () => setTimeout(filter));
filters.hidden = false;
// A browser may restore what was chosen before the page was loaded again.
filter();

const axes = one("#axes");
function plot() {
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
  axes.addEventListener("input", plot);
  filters.elements.task.addEventListener("input", () => {
    const option = one(`option[data-task="${CSS.escape(filters.elements.task.value)}"]`, axes);
    if (option) {
      axes.elements.column.value = option.value;
      plot();
    }
  });
  axes.hidden = false;
  plot();
}

const dialog = one("#detail");
const body = one("#detail-body");
let opener = null;

function templateOf(hash) {
  try {
    return document.getElementById(`detail-${decodeURIComponent(hash.slice(1))}`);
  } catch {
    return null; // an address with a broken % sign
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
    value.style.setProperty("--share", `${score ?? 0}%`);
  }
  return table;
}

function show() {
  const template = templateOf(location.hash);
  if (!(template instanceof HTMLTemplateElement)) {
    dialog.close();
    return;
  }
  body.replaceChildren(template.content.cloneNode(true));
  for (const figure of all("[data-picture]", body)) {
    const picture = all("img", one("#pictures").content).find(
      (image) => image.dataset.picture === figure.dataset.picture,
    );
    figure.prepend(picture.cloneNode());
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

document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[href^='#']");
  if (link && templateOf(link.getAttribute("href"))) {
    // The browser would scroll to the row, away from the plot that was clicked.
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    show();
  }
  const button = event.target.closest("[data-copy]");
  if (button) {
    const code = one("code", button.parentElement);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no leave to write: ready for Ctrl+C
      button.textContent = "Selected";
    }
  }
});
dialog.addEventListener("close", () => {
  const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (location.hash) {
    history.replaceState(null, "", location.pathname + location.search);
  }
  // Opened by its address or from a plot, there is nothing to go back to but the row.
  const back = opener && opener !== document.body ? opener : row && one("a", row);
  back?.focus();
});
addEventListener("hashchange", show);
addEventListener("popstate", show);
if (location.hash) {
  show();
}
