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
