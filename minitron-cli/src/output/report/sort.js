for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, idx) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const key = (row) => row.cells[idx]?.dataset.v;
      const text = (row) => row.cells[idx]?.textContent ?? "";
      const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("reference")).sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if ((x === undefined) !== (y === undefined)) return x === undefined ? 1 : -1;
        const order = x === undefined ? text(a).localeCompare(text(b), "en", { numeric: true }) : x - y;
        return up ? order : -order;
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
