"use strict";
// The page is whole without this: it copies commands, filters and sorts weights, and unfolds.
for (const button of document.querySelectorAll("button.copy")) {
  const source = document.getElementById(button.dataset.copies);
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const box = input.closest(".filter");
  box.hidden = false;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    box.querySelector("[role=status]").textContent = wanted ? `${shown} of ${rows.length}` : "";
  });
}
function worth(cell) {
  const shown = cell.textContent.trim();
  const number = Number.parseFloat(shown.replaceAll(",", ""));
  return /^[0-9]/.test(shown) && !Number.isNaN(number) ? number : shown === "" || shown === "–" ? -1 : shown.toLowerCase();
}
for (const table of document.querySelectorAll("table[data-sorts]")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [worth(row.cells[column]), row]);
      rows.sort(([one], [other]) => {
        if (typeof one === typeof other) return sign * (one < other ? -1 : one > other ? 1 : 0);
        return typeof one === "string" ? -1 : 1;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
function unfold() {
  const aim = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (aim instanceof HTMLDetailsElement) {
    aim.open = true;
    aim.scrollIntoView();
  }
}
addEventListener("hashchange", unfold);
unfold();
for (const button of document.querySelectorAll("button.unfold")) {
  const section = button.closest("section");
  button.hidden = false;
  button.addEventListener("click", () => {
    const opens = button.getAttribute("aria-pressed") !== "true";
    for (const each of section.querySelectorAll("details")) each.open = opens;
    button.setAttribute("aria-pressed", String(opens));
    button.textContent = opens ? "Fold all" : "Unfold all";
  });
}
