// Tables are sorted by a click on a heading: numbers by data-key, text by its letters; what is undefined stays last.
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function sortTable(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const heading = headings[column];
  const isNumber = heading.classList.contains("n");
  const before = heading.getAttribute("aria-sort");
  // Numbers begin with the largest, text with the first letter.
  const next = before === null ? (isNumber ? "descending" : "ascending") : before === "ascending" ? "descending" : "ascending";
  headings.forEach((one) => one.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", next);
  const sign = next === "ascending" ? 1 : -1;
  const valueOf = (row) => isNumber ? row.cells[column].dataset.key : row.cells[column].textContent;
  const isUndefined = (value) => value === undefined || value === "-" || value === "";
  const compare = (a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (isUndefined(x) || isUndefined(y)) return isUndefined(x) - isUndefined(y);
    return sign * (isNumber ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.firstElementChild.addEventListener("click", () => sortTable(table, column));
    });
  }
  for (const button of document.querySelectorAll("figure > button")) {
    button.addEventListener("click", () => button.parentElement.classList.toggle("large"));
  }
}
