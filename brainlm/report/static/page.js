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

// ---- tables of any length: the rows are in a script file, a hundred are in the page at a time

const PAGE = 100;

function readFlags(key) {
  try {
    return new Map(JSON.parse(localStorage.getItem(key) ?? "[]"));
  } catch {
    return new Map(); // storage is switched off: flags last as long as the page
  }
}

function keepFlags(key, flags) {
  try {
    localStorage.setItem(key, JSON.stringify([...flags]));
  } catch {
    /* as above */
  }
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function flagCell(name, flags, changed) {
  const box = element("input", { type: "checkbox", checked: flags.has(name), ariaLabel: `flag ${name}` });
  const note = element("input", { type: "text", value: flags.get(name) ?? "", hidden: !flags.has(name),
    placeholder: "reason", ariaLabel: `reason for ${name}` });
  box.addEventListener("change", () => {
    if (box.checked) flags.set(name, note.value); else flags.delete(name);
    note.hidden = !box.checked;
    changed();
  });
  note.addEventListener("input", () => { flags.set(name, note.value); changed(); });
  return element("td", { className: "flag" }, box, " ", note);
}

function exportFlags(flags, cohort) {
  // no quoting: in our tables a quotation mark is a character like any other
  const plain = (text) => text.replace(/[\t\r\n]+/g, " ");
  const lines = ["recording_id\treason", ...[...flags].map(([name, note]) => `${name}\t${plain(note)}`)];
  const blob = new Blob([lines.join("\n") + "\n"], { type: "text/tab-separated-values" });
  const link = element("a", { href: URL.createObjectURL(blob), download: `${cohort}-exclude.tsv` });
  link.click();
  URL.revokeObjectURL(link.href);
}

function makePaged(holder) {
  const { rows, links } = window.brainlmTables[holder.dataset.paged];
  const [table, cohort] = [holder.querySelector("table"), holder.dataset.cohort];
  const [key, body] = [`brainlm-flags-${cohort}`, table.tBodies[0]];
  const flags = readFlags(key);
  const texts = rows.map((row) => row.join("\n").toLowerCase());
  let [order, first] = [rows.map((_, index) => index), 0];

  const input = element("input", { type: "search" });
  const onlyFlagged = element("input", { type: "checkbox" });
  const save = element("button", { type: "button" }, "Export flagged as TSV");
  const [previous, next] = ["Previous", "Next"].map((text) => element("button", { type: "button" }, text));
  const where = element("output");

  function render() {
    const wanted = input.value.toLowerCase();
    const kept = order.filter((i) => texts[i].includes(wanted) && (!onlyFlagged.checked || flags.has(rows[i][0])));
    first = Math.min(first, Math.max(0, Math.floor((kept.length - 1) / PAGE) * PAGE));
    body.replaceChildren(...kept.slice(first, first + PAGE).map((i) => {
      const cells = rows[i].map((cell, column) => element("td", { dir: "auto" },
        column === 0 && links[i] ? element("a", { href: links[i] }, cell) : cell));
      return element("tr", {}, cells[0], flagCell(rows[i][0], flags, changed), ...cells.slice(1));
    }));
    const last = Math.min(first + PAGE, kept.length);
    where.textContent = kept.length ? `${first + 1} to ${last} of ${kept.length}` : "no row";
    previous.disabled = first === 0;
    next.disabled = last >= kept.length;
  }
  function changed() {
    keepFlags(key, flags);
    save.disabled = flags.size === 0;
    save.textContent = flags.size ? `Export ${flags.size} flagged as TSV` : "Export flagged as TSV";
  }

  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((header, column) => {
    const button = element("button", { type: "button" }, header.textContent);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
      order.sort((a, b) => down * compare(rows[a][column], rows[b][column]));
      first = 0;
      render();
    });
    header.replaceChildren(button);
  });
  heads[0].after(element("th", { scope: "col", className: "flag" }, "flag"));
  const label = element("label", { className: "filter" }, "Show rows with", input);
  const flagged = element("label", { className: "filter" }, onlyFlagged, " flagged only");
  holder.prepend(element("div", { className: "tools" }, label, flagged, save));
  holder.querySelector(".scroll").after(element("div", { className: "pager" }, previous, where, next));
  input.addEventListener("input", () => { first = 0; render(); });
  onlyFlagged.addEventListener("change", () => { first = 0; render(); });
  previous.addEventListener("click", () => { first -= PAGE; render(); });
  next.addEventListener("click", () => { first += PAGE; render(); });
  save.addEventListener("click", () => exportFlags(flags, cohort));
  changed();
  render();
}

// ---- two images in one place: a slider fades the upper one, a button flickers between them

function makeFade(figure) {
  const layers = figure.querySelectorAll('[id$="-over"]');
  const slider = element("input", { type: "range", min: 0, max: 100, value: 100 });
  const flicker = element("button", { type: "button" }, "Flicker");
  flicker.setAttribute("aria-pressed", "false");
  let timer = 0;
  function show() {
    for (const layer of layers) layer.style.opacity = slider.value / 100;
  }
  slider.addEventListener("input", show);
  flicker.addEventListener("click", () => {
    clearInterval(timer);
    timer = timer ? 0 : setInterval(() => { slider.value = slider.value > 50 ? 0 : 100; show(); }, 700);
    flicker.setAttribute("aria-pressed", String(timer !== 0));
  });
  figure.prepend(element("div", { className: "tools" },
    element("label", { className: "filter" }, figure.dataset.fade, " ", slider), flicker));
}

// ---- figures of which one is chosen

function makeChoice(holder) {
  const options = [...holder.children];
  const select = element("select", {}, ...options.map((o) => element("option", {}, o.dataset.option)));
  const show = () => options.forEach((option, i) => { option.hidden = i !== select.selectedIndex; });
  select.addEventListener("change", show);
  holder.prepend(element("label", { className: "filter" }, holder.dataset.choice, " ", select));
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    makeSortable(table);
    if (table.tBodies[0].rows.length > 8) makeFilter(table);
  }
  for (const holder of document.querySelectorAll("[data-paged]")) makePaged(holder);
  for (const holder of document.querySelectorAll("[data-choice]")) makeChoice(holder);
  for (const figure of document.querySelectorAll("[data-fade]")) makeFade(figure);
});
