// The differences of two rows: a table with one interval per line, on a common scale. It follows leaderboard.js in one
// script, whose table and filters it reads.
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
      found: differences.map(([column, points, low, high, p, holm, images, ours, theirs, ofMethodA, ofMethodB, alone]) => ({
        column,
        points: swapped ? -points : points,
        low: swapped ? -high : low,
        high: swapped ? -low : high,
        p: alone ? null : p,
        holm,
        images,
        units: swapped ? [theirs, ours] : [ours, theirs],
        kinds: (swapped ? [ofMethodB, ofMethodA] : [ofMethodA, ofMethodB]).map((yes) => (yes ? "pretraining" : "seed")),
        alone: Boolean(alone),
      })),
    };
  }

  function lineOf(one, scale, i, j) {
    const verdict = verdictOf(one);
    const row = cellOf("tr", "", verdict.replace(" ", "-"));
    const { scores } = group();
    const [ours, theirs] = one.units;
    const [kind, other] = one.kinds;
    const over =
      kind !== other
        ? `${plural(ours, kind)} and ${plural(theirs, other)}`
        : ours === theirs
          ? plural(ours, kind)
          : `${ours} and ${theirs} ${kind}s`;
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
      cellOf("td", one.alone ? "one seed: images alone" : over, "over"),
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
  const placeOf = (name) => {
    const number = groups.findIndex(({ rows, compared }) => rows.indexOf(name) >= 0 && rows.indexOf(name) < compared);
    return number < 0 ? null : [number, groups[number].rows.indexOf(name)];
  };
  comparable = (name) => placeOf(name) !== null;
  compareWith = (name) => {
    const [number, i] = placeOf(name);
    if (form.elements.protocols) form.elements.protocols.value = number;
    showGroup(i, i ? 0 : 1);
    opener = b; // which the closing dialog returns the focus to
    dialog.close();
    comparison.scrollIntoView();
  };
  comparison.hidden = false;
  const [number, i, j] = shown ?? [0, 0, 1];
  if (form.elements.protocols) form.elements.protocols.value = number;
  showGroup(i, j);
}
if (comparison) {
  startComparison();
}
if (location.hash) {
  showDetails();
}
