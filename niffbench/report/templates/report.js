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

for (const table of document.querySelectorAll("table:not(.ranking)")) {
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

// The explorer: its data are worked out; this picks the problem, ranks its operators and draws them.
function element(tag, name, content) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (content !== undefined) made.textContent = content;
  return made;
}

// The problem that has the value just chosen and most of the others.
function nearest(problems, form, chosen) {
  const fits = (problem) => Object.entries(problem.place).reduce(
    (sum, [axis, value]) => sum + (form.elements[axis].value === value) * (axis === chosen ? 100 : 1), 0);
  return problems.reduce((best, problem) => (fits(problem) > fits(best) ? problem : best));
}

function ranked(problem, metric) {
  const value = (row) => row.values[metric.key]?.value;
  const having = problem.rows.filter((row) => value(row) !== undefined);
  having.sort((a, b) => (value(a) - value(b)) * (metric.higher ? -1 : 1));
  return [...having, ...problem.rows.filter((row) => value(row) === undefined)];
}

function draw(box, data, problem, metric) {
  const cells = problem.rows.map((row) => row.values[metric.key]).filter((cell) => cell && cell.value > 0);
  const ends = cells.flatMap((cell) => [cell.value, cell.low ?? cell.value, cell.high ?? cell.value]).filter((end) => end > 0);
  const [low, high] = [Math.log(Math.min(...ends)), Math.log(Math.max(...ends))];
  const at = (value) => `${high > low ? 2 + (96 * (Math.log(Math.max(value, Number.MIN_VALUE)) - low)) / (high - low) : 50}%`;
  const rows = ranked(problem, metric).map((row) => {
    const line = element("tr");
    const name = line.appendChild(element("td"));
    if (row.colour) name.appendChild(element("span", "chip")).style.background = row.colour;
    const cell = row.values[metric.key];
    name.append(row.operator);
    if (row.chosen) name.append(" ", element("span", "quiet", `(${row.chosen})`));
    if (!cell) {
      const why = line.appendChild(element("td", row.status ? "failed" : "quiet", row.status || "not measured"));
      why.colSpan = 2;
      return line;
    }
    if (cell.value > 0) {
      const track = name.appendChild(element("span", "track"));
      track.style.color = row.colour;
      if (cell.low > 0) {
        const band = track.appendChild(element("span", "band"));
        [band.style.left, band.style.right] = [at(cell.low), `${100 - parseFloat(at(cell.high))}%`];
      }
      track.appendChild(element("span", "dot")).style.left = at(cell.value);
    }
    const shown = line.appendChild(element("td", "number"));
    shown.append(element(cell.sign === "★" ? "b" : "span", "", `${cell.sign} ${cell.shown}`.trim()), element("span", "note", cell.ends.replace(/(\d) (?=\D)/g, "$1\u00a0")));
    const [ratio, ...interval] = cell.ratio.split(" ");
    const relative = line.appendChild(element("td", "number"));
    relative.appendChild(element("span", "", ratio || "–"));
    relative.append(element("span", "note", interval.join(" ")));
    return line;
  });
  box.querySelector("tbody").replaceChildren(...rows);
  const said = (problem.crossovers[metric.key] ?? []).map((sentence) => element("li", "", sentence));
  box.querySelector("ul").replaceChildren(...said);
  const alone = ranked(problem, metric)[0];
  const first = alone && alone.values[metric.key];
  box.querySelector(".said").textContent = `${problem.label}, ${metric.title}: ` +
    (!first ? "nothing was measured." : `${problem.rows.filter((row) => row.values[metric.key]).length} operators, least is best; ★ the best, ≈ not told from it; × to ${data.baseline}.`)
      .replace("least", metric.higher ? "most" : "least");
}

for (const box of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(box.querySelector("script").textContent);
  const form = box.querySelector("form");
  if (!data.problems.length || !data.metrics.length) continue;
  const show = (problem) => {
    for (const [axis, value] of Object.entries(problem.place)) form.elements[axis].value = value;
    draw(box, data, problem, data.metrics.find((metric) => metric.key === form.elements.metric.value));
  };
  form.addEventListener("change", (event) => show(nearest(data.problems, form, event.target.name)));
  form.addEventListener("submit", (event) => event.preventDefault());
  box.hidden = false;
  show(data.problems[0]);
}
