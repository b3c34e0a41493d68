// Connects DataTables, which sorts and searches the table, with the filters, the plots and the details dialog.
const DataTable = globalThis.DataTable;
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Missing scores are sorted last in both directions.
const missingLast = (sign) => (a, b) =>
  a === b ? 0 : a === "" ? 1 : b === "" ? -1 : sign * (Number(a) - Number(b));
DataTable.ext.type.order["known-asc"] = missingLast(1);
DataTable.ext.type.order["known-desc"] = missingLast(-1);

// Whether a row can be compared with another one, and what chooses it as A; comparison.js sets both.
let comparable = () => false;
let compareWith = () => {};

const GROUP_COLUMN = 1;
const filters = one("#filters");
const heads = new Map(all("#scores thead [data-column]").map((head) => [head.dataset.column, head]));
const sortable = all("#scores thead th");
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

const viewOf = (row) => (row.dataset.status === "reported" ? "published" : "measured");
const shownOf = (view, row) => view === viewOf(row);

table.search.fixed("form", (_text, _data, index) => {
  const row = table.row(index).node();
  const { view, arch, group, task } = filters.elements;
  return (
    shownOf(view.value, row) &&
    (!arch.value || arch.value === row.dataset.arch) &&
    (!group?.value || view.value === "published" || group.value === row.dataset.group) &&
    (!task.value || row.dataset.tasks.split(" ").includes(task.value))
  );
});
// Rows of different protocols are never sorted among each other.
table.order.fixed({ pre: [[GROUP_COLUMN, "asc"]] });
table.column(GROUP_COLUMN).visible(false, false);

function applyFilters() {
  const { text, task, group, view, shown } = filters.elements;
  const chosen = new Set([...shown].filter((box) => box.checked).map((box) => box.value));
  table.columns("[data-column]").every(function () {
    const { column, views, task: own } = this.header().dataset;
    const matches = !own || !task.value || own === task.value;
    this.visible(chosen.has(column) && matches && views.split(" ").includes(view.value), false);
  });
  for (const box of shown) {
    const head = heads.get(box.value);
    box.parentElement.hidden = !head.dataset.views.split(" ").includes(view.value);
  }
  table.search(text.value).draw();
  const published = view.value === "published";
  for (const protocols of all("[data-selected-group]")) {
    protocols.hidden = published || protocols.dataset.selectedGroup !== group.value;
  }
  if (group) group.parentElement.hidden = published;
  for (const part of all(".view")) {
    const { view: kind, ofGroup } = part.dataset;
    part.hidden = kind !== view.value || Boolean(!published && ofGroup && group.value && group.value !== ofGroup);
  }
  for (const panel of all(".dots")) panel.hidden = task.value && panel.dataset.task !== task.value;
}

// A published row has scores of few tasks: the tab begins with one task, so that its table has no empty lines.
function changeView() {
  const { view, task } = filters.elements;
  const head = [...heads.values()].find(({ dataset }) => dataset.task && dataset.views.includes("published"));
  task.value = view.value === "published" ? (head?.dataset.task ?? "") : "";
}

// The group's data, above its rows.
function addGroupHeads(rows) {
  for (const head of all(".group-head")) head.remove();
  let previous = "";
  for (const row of rows) {
    const name = row.dataset.group;
    if (!name || name === previous) continue;
    previous = name;
    const head = document.createElement("tr");
    head.className = "group-head";
    const cell = document.createElement("th");
    cell.scope = "rowgroup";
    cell.colSpan = row.cells.length;
    const text = document.createElement("span");
    const option = [...filters.elements.group.options].find((one) => one.value === name);
    text.textContent = option.textContent;
    cell.append(text);
    head.append(cell);
    row.before(head);
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
  addGroupHeads(rows);
  // DataTables marks the first column of the order alone, which is that of the groups.
  for (const head of sortable) {
    const order = ["asc", "desc"].find((name) => head.classList.contains(`dt-ordering-${name}`));
    if (order) head.setAttribute("aria-sort", `${order}ending`);
    else head.removeAttribute("aria-sort");
  }
  const { view } = filters.elements;
  const total = table.rows().nodes().toArray().filter((row) => shownOf(view.value, row)).length;
  one("#count").textContent =
    `${rows.length} of ${total} rows.` +
    (view.value === "published" ? " Their protocols differ, so the order is not a ranking." : "");
}

table.on("draw", updatePlotsAndCount);
// Some fields of the form are outside of it, above the overview.
document.addEventListener("input", (event) => {
  if (event.target.form !== filters) return;
  if (event.target.name === "view") changeView();
  applyFilters();
  if (axes) showPlot();
});
filters.addEventListener("submit", (event) => event.preventDefault());
// The fields still have their old values while the reset event is dispatched.
filters.addEventListener("reset", () => setTimeout(applyFilters));
filters.hidden = false;
document.body.classList.add("ready");
for (const part of all("[data-script]")) part.hidden = false;
// A browser may restore the fields of the form when the page is reloaded.
applyFilters();

const axes = one("#axes");
function showPlot() {
  const { column, cost } = axes.elements;
  let found = false;
  let any = false;
  for (const figure of all("figure.plot")) {
    const inView = figure.dataset.views.split(" ").includes(filters.elements.view.value);
    figure.hidden =
      !inView || figure.dataset.column !== column.value || figure.dataset.cost !== cost.value;
    found ||= !figure.hidden;
    any ||= inView;
  }
  one("#no-plot").hidden = found;
  one("#cost").hidden = !any;
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
  for (const button of all("[data-compare]", body)) {
    button.hidden = !comparable(button.parentElement.dataset.of);
  }
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
  }
  dialog.scrollTop = 0;
}

async function copyText(button, text, shown) {
  for (const other of all("[data-label]", body)) {
    other.textContent = other.dataset.label; // of the button that was used before
    delete other.dataset.label;
  }
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without permission to write to the clipboard, the text is selected for Ctrl+C.
    getSelection().selectAllChildren(shown());
    button.textContent = "Selected";
  }
  button.dataset.label = label;
}

function copyCommand(button) {
  const code = one("code", button.parentElement);
  return copyText(button, code.textContent, () => code);
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
  if (button) copyCommand(button);
  const format = event.target.closest("[data-copy-as]");
  if (format) copyRow(format);
  const compare = event.target.closest("[data-compare]");
  if (compare) compareWith(compare.parentElement.dataset.of);
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
