"""Style and script of a report; all that makes it look and move."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { --ink: #1c1e21; --soft: #5b6168; --line: #d8dce0; --blue: #0062a3; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
a { color: var(--blue); }
h1, h2, h3, p, dd, li, summary, figcaption { overflow-wrap: anywhere; }
h1 { margin: 0.2rem 0 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 0; padding-top: 1rem; border-top: 3px solid var(--ink); font-size: 1.45rem;
  line-height: 1.25; }
h3 { margin: 2rem 0 0.5rem; font-size: 1.15rem; }
.subtitle { margin: 0.2rem 0 1rem; color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.8rem 0; padding: 0;
  list-style: none; }
nav li { max-width: 100%; }
.warning { margin: 0.7rem 0; padding: 0.5rem 0.8rem; border-left: 4px solid #c55a00;
  background: #fff5ea; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr));
  gap: 0.8rem; margin: 1rem 0; }
.facts div { padding: 0.6rem 0.8rem; border: 1px solid var(--line); border-radius: 6px; }
.facts dt { color: var(--soft); font-size: 0.85rem; }
.facts dd { margin: 0; font-size: 0.85rem; }
.facts dd.figure { font-size: 1.6rem; font-weight: 600; line-height: 1.3; }
.scroll { overflow-x: auto; margin: 0.8rem 0 1.4rem; }
:focus-visible { outline: 3px solid var(--blue); }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { padding: 0 0 0.3rem; font-weight: 600; text-align: left; }
caption span { display: block; max-width: calc(100vw - 2rem); }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
/* Unlike anywhere, break-word breaks a word only where it is longer than a cell may be. */
th, td { max-width: 30rem; overflow-wrap: break-word; }
.wide th, .wide td { min-width: 4.2rem; max-width: 14rem; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.wide th:first-child { position: sticky; left: 0; background: #fff; }
th button { padding: 0; border: 0; background: none; color: inherit; font: inherit;
  text-align: inherit; cursor: pointer; }
th button::after { content: "\\a0\\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
figure { margin: 0.8rem 0; max-width: 100%; }
figure .scroll { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: 0.9rem; font-weight: 600; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; color: var(--blue); }
pre { margin: 0.4rem 0; padding: 0.7rem; overflow-x: auto; border: 1px solid var(--line);
  border-radius: 6px; background: #f6f7f8; font-size: 0.85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 40rem) {
  th, td { padding: 0.3rem 0.35rem; }
  table { font-size: 0.85rem; }
}
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .run { break-before: page; }
  h2, h3, caption, figcaption, thead { break-after: avoid; }
  tbody tr:first-child { break-before: avoid; }
  figure, .facts div, tr, .warning { break-inside: avoid; }
  .figures { display: block; }
  figure { display: inline-block; width: 49% !important; padding-right: 2%; vertical-align: top; }
  figure.broad { width: 100% !important; }
  figure svg { min-width: 0 !important; max-height: 240mm; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  .wide { font-size: 6pt; }
  .wide th, .wide td { min-width: 0; padding: 0.15rem 0.25rem; }
  .wide th:first-child { position: static; }
  th button::after { content: none !important; }
  nav, summary { display: none; }
  pre { border: 0; padding: 0; }
  details pre { columns: 3; font-size: 7pt; }
  a { color: inherit; text-decoration: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const key = (row) => row.cells[head.cellIndex].dataset.key;
    const rows = [...body.rows].sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      // What is not known comes last, whichever way.
      if (left === "" || right === "") return (left === "") - (right === "");
      if (head.className === "number") return sign * (Number(left) - Number(right));
      return sign * left.localeCompare(right, undefined, { numeric: true });
    });
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    body.append(...rows);
  });
}
// Paper has nothing to press.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
});
"""
"""Sorts tables by the heading that is pressed; opens what is folded for printing."""
