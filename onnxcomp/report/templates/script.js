"use strict";
// The page is whole without this: it copies commands, filters the weights, unfolds all, and what a link leads to.
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
