// Long tables can be sorted and filtered. Without scripts the page is complete, only not sortable.
"use strict";

const collator = new Intl.Collator(undefined, { numeric: true });

function numberIn(text) {
  const value = Number.parseFloat(text.replace("−", "-"));
  return Number.isNaN(value) ? null : value;
}

function compare(first, second) {
  const [a, b] = [numberIn(first), numberIn(second)];
  if (a !== null && b !== null && a !== b) return a - b;
  if ((a === null) !== (b === null)) return a === null ? 1 : -1;
  return collator.compare(first, second);
}

function sortBy(table, column, header) {
  const body = table.tBodies[0];
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [row.cells[column].textContent, row]);
  rows.sort((first, second) => compare(first[0], second[0]) * (down ? -1 : 1));
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(table, column, header));
    header.replaceChildren(button);
  });
}

function makeFilter(table) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  label.className = "filter";
  input.type = "search";
  label.append("Show rows with", input);
  table.closest(".table").prepend(label);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  makeSortable(table);
  if (table.tBodies[0].rows.length > 8) makeFilter(table);
}
