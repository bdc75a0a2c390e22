"use strict";
// Read a cell of a table, with the pointer or the arrow keys: all methods and the final prediction at its token and level.
const { tokens, levels, readings } = JSON.parse(document.getElementById("data").textContent);
const { model, ...exits } = readings;
const readout = document.querySelector(".readout");
const tell = ([token, probability, kl, entropy]) =>
  `“${token}” ${probability.toFixed(3)}, KL ${kl.toFixed(2)}, entropy ${entropy.toFixed(2)}`;
for (const region of document.querySelectorAll(".lens")) {
  const rows = [...region.querySelectorAll("tbody tr")];
  let at = null;
  const show = (row, column) => {
    at?.classList.remove("at");
    at = rows[row].cells[column + 1];
    at.classList.add("at");
    const level = levels - row, [token, probability, , entropy] = model[column];
    const told = level < levels
      ? Object.entries(exits).map(([method, cells]) => `${method} ${tell(cells[level][column])}`) : [];
    readout.textContent = [`After “${tokens[column]}”, level ${level}`, ...told,
      `full model “${token}” ${probability.toFixed(3)}, entropy ${entropy.toFixed(2)}`].join(" · ");
  };
  region.addEventListener("pointermove", event => {
    const cell = event.target.closest("td");
    if (cell) show(rows.indexOf(cell.parentElement), cell.cellIndex - 1);
  });
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  region.addEventListener("keydown", event => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = at ? [rows.indexOf(at.parentElement) + move[0], at.cellIndex - 1 + move[1]] : [0, 0];
    if (rows[row] && column >= 0 && column < tokens.length) {
      show(row, column);
      at.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  });
  region.addEventListener("blur", () => { at?.classList.remove("at"); at = null; });
}
