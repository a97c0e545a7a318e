// Without this script the page shows its pictures side by side; with it they can be compared by a
// divider, faded and put in order.
"use strict";
document.documentElement.classList.add("js");

for (const gallery of document.querySelectorAll(".gallery")) {
  const grid = gallery.querySelector(".cards");
  const cards = [...grid.children];
  const dividers = gallery.querySelectorAll(".compare input");
  const chosen = (name) => gallery.querySelector(`[name=${name}]:checked`)?.value;

  const move = (divider, value) => {
    divider.value = value;
    divider.setAttribute("aria-valuetext", `${value} % original`);
    divider.parentElement.style.setProperty("--split", `${value}%`);
  };

  const sort = () => {
    const sign = { best: 1, worst: -1 }[chosen("order")];
    const rank = (card) => card.dataset.ranks.split(",")[Number(chosen("view"))].trim();
    const key = (card) => (rank(card) === "" ? Infinity : sign * Number(rank(card)));
    grid.append(...(sign ? cards.toSorted((a, b) => key(a) - key(b) || 0) : cards));
  };

  gallery.addEventListener("input", ({ target }) => {
    if (target.name === "split") dividers.forEach((divider) => move(divider, target.value));
    else if (target.name === "opacity") gallery.style.setProperty("--opacity", target.value / 100);
    else if (target.type === "range") move(target, target.value);
    else sort();
  });
  gallery.querySelector(".more")?.addEventListener("click", ({ target }) => {
    grid.classList.add("all");
    target.remove();
  });
  dividers.forEach((divider) => move(divider, divider.value));
}
