"use strict";
// Sort a table by a column: numbers by the cells' exact values, text alphabetically; cells without a value go last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      // The first click puts the largest number, or the letter A, first.
      const ascending = before ? before === "descending" : !numeric;
      const key = row => numeric ? parseFloat(row.cells[column].dataset.value) : row.cells[column].textContent.trim();
      const compare = (a, b) => numeric ? a - b : a.localeCompare(b);
      const rows = [...body.rows].map(row => [key(row), row]);
      const missing = value => Number.isNaN(value);
      rows.sort(([a], [b]) => missing(a) || missing(b) ? missing(a) - missing(b) : (ascending ? 1 : -1) * compare(a, b));
      body.append(...rows.map(([, row]) => row));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    });
  });
}
// Copy a table: exact values where cells have them, without the intervals in brackets.
const field = cell => {
  const text = cell.dataset.value ?? cell.textContent.trim().replace(/\s+/g, " ");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
for (const button of document.querySelectorAll("button.copy")) {
  const table = button.parentElement.previousElementSibling.querySelector("table");
  const words = button.textContent;
  button.addEventListener("click", async () => {
    const text = [...table.rows].map(row => [...row.cells].map(field).join(",")).join("\n") + "\n";
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow copying here";
    }
    setTimeout(() => { button.textContent = words; }, 2000);
  });
}
// Read the heat map of all jumps at all levels, with the pointer or the arrow keys.
for (const drawing of document.querySelectorAll("[data-grid]")) {
  const grid = JSON.parse(drawing.dataset.grid);
  const area = drawing.querySelector("[data-part=grid]");
  const readout = drawing.closest("figure").querySelector(".readout");
  const cell = document.createElement("div");
  cell.className = "cell";
  let at = [0, 0];
  const show = (jump, level) => {
    at = [jump, level];
    const inner = area.getBoundingClientRect(), outer = drawing.getBoundingClientRect();
    const width = inner.width / grid[0].length, height = inner.height / grid.length;
    cell.style.cssText = `left:${inner.left - outer.left + level * width}px;top:${inner.top - outer.top + jump * height}px;width:${width}px;height:${height}px`;
    drawing.append(cell);
    readout.textContent = `Jump ${jump} at level ${level}: precision ${grid[jump][level].toFixed(3)}`;
  };
  drawing.addEventListener("pointermove", event => {
    const inner = area.getBoundingClientRect();
    const level = Math.floor((event.clientX - inner.left) / inner.width * grid[0].length);
    const jump = Math.floor((event.clientY - inner.top) / inner.height * grid.length);
    if (grid[jump]?.[level] !== undefined) show(jump, level);
  });
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  drawing.addEventListener("keydown", event => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [jump, level] = [at[0] + move[0], at[1] + move[1]];
    if (grid[jump]?.[level] !== undefined) show(jump, level);
  });
  drawing.addEventListener("blur", () => cell.remove());
}
