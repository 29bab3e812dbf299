"""What is wrong with a page's figures, as JavaScript that runs in the page: a list of sentences."""

from __future__ import annotations

FIGURES = r"""() => {
  // Plotly's figures: text at 4.5:1 against the page, lines, markers and bars at 3:1, nothing cut off, no legend that
  // scrolls. Grids and the fill of bands are decoration; a band's outline is not.
  const colour = text => {
    const n = (text.match(/[\d.]+/g) || []).map(Number);
    return text === "none" || text.startsWith("url") || n.length < 3 ? null : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const page = colour(getComputedStyle(document.body).backgroundColor);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => c.slice(0, 3).map(v => linear(v / 255))
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (c, alpha) => {
    const over = c.slice(0, 3).map((v, i) => alpha * c[3] * v + (1 - alpha * c[3]) * page[i]);
    const [low, high] = [light(over), light(page)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const best = (e, what) => {
    const style = getComputedStyle(e);
    let alpha = 1;
    for (let at = e; at && at.tagName !== "DIV"; at = at.parentElement) alpha *= Number(getComputedStyle(at).opacity);
    return Math.max(...what.map(k => {
      const c = colour(style[k]);
      const thin = k === "stroke" && parseFloat(style.strokeWidth) === 0;
      return c === null || thin ? 0 : contrast(c, alpha * Number(style[`${k}Opacity`]));
    }));
  };
  const found = new Set();
  for (const plot of document.querySelectorAll(".plot")) {
    const box = plot.getBoundingClientRect();
    const drawn = s => [...plot.querySelectorAll(s)].filter(e => {
      const b = e.getBoundingClientRect();
      return b.width + b.height > 0;
    });
    for (const e of drawn("svg text")) {
      if (e.closest(".hoverlayer, .modebar-container") || !e.textContent.trim()) continue;
      const c = best(e, ["fill"]);
      if (c < 4.5) found.add(`${plot.id}: text "${e.textContent}" at ${c.toFixed(2)}:1`);
      const b = e.getBoundingClientRect();
      if (b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1)
        found.add(`${plot.id}: text "${e.textContent}" is cut off`);
    }
    const marks = ".js-line, .points path.point, .bars .point path, .shapelayer path, .yerror, .xerror, " +
      ".legendlines path, .legendsymbols path";
    for (const e of drawn(`.cartesianlayer ${marks.split(", ").join(", .cartesianlayer ")}, .layer-above ${marks
      .split(", ").join(", .layer-above ")}, .infolayer ${marks.split(", ").join(", .infolayer ")}`)) {
      const c = best(e, ["fill", "stroke"]);
      if (c < 3) found.add(`${plot.id}: ${e.getAttribute("class") || e.tagName} at ${c.toFixed(2)}:1`);
    }
    if (drawn(".legend .scrollbar").length) found.add(`${plot.id}: the legend scrolls`);
  }
  return [...found];
}"""
