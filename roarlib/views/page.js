"use strict";
// A click on a column's head sorts its table: rising, falling, then as it was. Cells without a value stay last.
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
const EMPTY = ["", "–", "nan"];

function compare(one, other, sign) {
  if (EMPTY.includes(one) || EMPTY.includes(other)) return EMPTY.includes(one) - EMPTY.includes(other);
  const numbers = [one, other].map((text) => Number(text.replace("−", "-").replace(/[,%]/g, "")));
  if (!numbers.some(Number.isNaN)) return sign * (numbers[0] - numbers[1]);
  return sign * one.localeCompare(other, "en", { numeric: true });
}

for (const table of document.querySelectorAll(".scroll table")) {
  const body = table.tBodies[0];
  const first = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.firstElementChild.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((each) => each.setAttribute("aria-sort", each === head ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const text = (row) => row.cells[column].textContent.trim();
      const rows = order === "none" ? first : [...first].sort((a, b) => compare(text(a), text(b), sign));
      body.append(...rows);
    });
  });
}

// Chapters are folded but for the first; a link into one opens it, and paper has no folds.
function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target) { target.closest("details")?.setAttribute("open", ""); target.scrollIntoView(); }
}
addEventListener("hashchange", unfold);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
unfold();
