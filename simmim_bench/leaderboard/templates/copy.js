// A row as a text for other documents: its address, BibTeX, Markdown or CSV. It follows leaderboard.js in one script.
const rowsById = new Map(table.rows().nodes().toArray().map((row) => [row.dataset.row, row]));

// The scores of a row: title, score with its marks, and the lines of its uncertainty.
function scoresOf(name) {
  return table
    .columns("[data-task]")
    .indexes()
    .toArray()
    .map((index) => {
      const cell = table.cell(rowsById.get(name), index).node();
      const [score, ...others] = cell.cloneNode(true).childNodes;
      const spread = all(".spread", cell).map((line) => line.textContent);
      const marks = all(".mark", cell).map((mark) => mark.textContent).join("");
      return { title: table.column(index).header().dataset.heading, score, spread, marks, others };
    })
    .filter(({ score }) => /^\d/.test(score.textContent.trim()))
    .map(({ title, score, spread, marks }) => ({ title, score: score.textContent.trim() + marks, spread }));
}

const bibtex = (text) => text.replace(/[\\{}]/g, "").replace(/[&%$#_]/g, "\\$&").replace(/±/g, "$\\pm$");
const markdown = (text) => text.replace(/[\\|`*_[\]<>]/g, "\\$&");
// A spreadsheet would run a text that begins with one of these signs.
const csv = (text) => `"${(/^\s*[=+\-@]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;

const FORMATS = {
  link: (name) => new URL(`#${encodeURIComponent(name)}`, location.href).href,
  bibtex(name) {
    const { label, checkpoint, arch } = rowsById.get(name).dataset;
    const source = one("#detail-body [data-source]")?.textContent;
    const found = scoresOf(name).map(({ title, score, spread }) => [`${title} ${score}`, ...spread].join(", "));
    const about = source ? `Published: ${source}` : `checkpoint ${arch}, SHA-256 ${checkpoint || "of several pretrainings"}`;
    return [
      `@misc{simmim-bench-${name.replace(/[^a-z0-9-]/gi, "")},`,
      `  title = {{${bibtex(label)}: transfer scores}},`,
      `  howpublished = {Leaderboard of simmim-bench ${bibtex(document.body.dataset.version)}},`,
      `  note = {${bibtex(`${found.join("; ")}. ${about}`)}},`,
      "}",
    ].join("\n");
  },
  markdown(name) {
    const found = scoresOf(name);
    const line = (cells) => `| ${cells.join(" | ")} |`;
    return [
      line(["checkpoint", ...found.map(({ title }) => markdown(title))]),
      line(["---", ...found.map(() => "---:")]),
      line([
        markdown(rowsById.get(name).dataset.label),
        ...found.map(({ score, spread }) => [markdown(score), ...spread].join("<br>")),
      ]),
    ].join("\n");
  },
  csv(name) {
    const { label, checkpoint } = rowsById.get(name).dataset;
    const lines = scoresOf(name).map(({ title, score, spread }) =>
      [label, checkpoint, title, score, spread.join(", ")].map(csv).join(","),
    );
    return ["checkpoint,sha256,column,score,uncertainty", ...lines].join("\n");
  },
};

function copyRow(button) {
  const name = button.parentElement.dataset.of;
  const text = FORMATS[button.dataset.copyAs](name);
  return copyText(button, text, () => {
    const shown = one(".copied", body) ?? document.createElement("pre");
    shown.className = "copied";
    shown.textContent = text;
    button.parentElement.after(shown);
    return shown;
  });
}
