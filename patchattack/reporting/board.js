"use strict";
const bar = document.querySelector(".filters");
const choices = [...bar.querySelectorAll("select")];
const tables = [...document.querySelectorAll("table.board")];

function filter() {
  const wanted = choices.filter((one) => one.value !== "").map((one) => [one.name, one.value]);
  for (const table of tables) {
    const lines = [...table.tBodies[0].rows];
    for (const line of lines) line.hidden = wanted.some(([name, value]) => line.dataset[name] !== value);
    const shown = lines.filter((line) => !line.hidden).length;
    document.getElementById(table.dataset.count).textContent = `${shown} of ${lines.length} lines`;
  }
}

function valueOf(line, column) {
  const text = line.cells[column].dataset.value;
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

function sort(table, head) {
  const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  const lines = [...table.tBodies[0].rows].map((line) => [valueOf(line, head.cellIndex), line]);
  // What is not known comes last, whatever the way.
  lines.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : way * compare(a, b)));
  table.tBodies[0].append(...lines.map(([, line]) => line));
}

for (const table of tables)
  for (const button of table.tHead.querySelectorAll("button")) {
    button.disabled = false;
    button.addEventListener("click", () => sort(table, button.closest("th")));
  }
for (const choice of choices) choice.addEventListener("change", filter);
bar.hidden = false;
filter();
