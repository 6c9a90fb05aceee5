/* Sort a table by the column whose heading is pressed; press again to turn the order round. */
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].innerText;
      const rows = [...body.rows].sort((a, b) => {
        const one = key(a), two = key(b);
        if (one === "" || two === "") return (one === "") - (two === ""); /* empty cells stay at the end */
        const order = isNaN(one) || isNaN(two) ? one.localeCompare(two) : one - two;
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}
/* Print what is folded away, and fold it again. */
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((part) => { part.open = true; });
});
addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
