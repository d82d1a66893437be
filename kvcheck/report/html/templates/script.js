"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.tHead.rows[0].cells;
  [...heads].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.value || cell.textContent.trim();
        const number = parseFloat(text.replace(/,/g, ""));
        return Number.isNaN(number) ? text : number;
      };
      const order = (one, two) => {
        const a = value(one), b = value(two);
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        const sign = a < b ? -1 : a > b ? 1 : 0;
        return down ? -sign : sign;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(order));
    });
  });
}
const unfold = () => { for (const one of document.querySelectorAll("details")) one.open = true; };
window.addEventListener("beforeprint", unfold);
const reach = () => {
  const found = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  for (let one = found; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  if (found) found.scrollIntoView();
};
window.addEventListener("hashchange", reach);
reach();
