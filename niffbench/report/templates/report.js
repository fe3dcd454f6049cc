"use strict";
// Sort and filter tables in place; nothing is fetched and nothing is stored.

function sortBy(table, index, direction) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[index];
    const value = cell.dataset.v;
    return value === undefined ? cell.textContent.trim() : Number(value);
  };
  const numeric = table.tHead.rows[0].cells[index].classList.contains("number");
  const rows = Array.from(body.rows, (row) => [key(row), row]);
  const missing = (value) => numeric && typeof value !== "number";
  rows.sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return direction * order;
  });
  body.append(...rows.map(([, row]) => row));
}

function filter(box, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = Array.from(box.querySelector("table").tBodies[0].rows);
  let shown = 0;
  for (const row of rows) {
    row.dataset.text ??= row.textContent.toLowerCase();
    const fits = words.every((word) => row.dataset.text.includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  const count = box.querySelector(".count");
  if (count) count.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
}

for (const table of document.querySelectorAll("table")) {
  for (const [index, head] of Array.from(table.tHead.rows[0].cells).entries()) {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      sortBy(table, index, direction);
    });
  }
}

for (const box of document.querySelectorAll(".table")) {
  const search = box.querySelector("input[type=search]");
  if (search) search.addEventListener("input", () => filter(box, search.value));
}

for (const link of document.querySelectorAll("a[data-find]")) {
  link.addEventListener("click", () => {
    const box = document.querySelector(link.getAttribute("href"));
    const search = box && box.querySelector("input[type=search]");
    if (!search) return;
    search.value = link.dataset.find;
    filter(box, search.value);
  });
}

// A link into a closed part opens it first.
function open(target) {
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
}
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", () => open(document.getElementById(link.getAttribute("href").slice(1))));
}
