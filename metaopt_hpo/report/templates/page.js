"use strict";
(() => {
  const config = {
    responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  };
  const plots = [...document.querySelectorAll(".plot")];
  for (const plot of plots) {
    const figure = JSON.parse(document.getElementById(plot.id.replace("plot-", "data-")).textContent);
    Plotly.newPlot(plot, wrapped(figure).data, figure.layout, config).then(() => makeRoom(plot));
  }
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    for (const plot of plots) {
      plot.style.height = "";
      Plotly.Plots.resize(plot).then(() => makeRoom(plot));
    }
  });

  // On a narrow screen a long title of an axis takes two lines.
  function wrapped(figure) {
    if (innerWidth > 600) return figure;
    for (const axis of [figure.layout.xaxis, figure.layout.yaxis]) {
      const text = axis?.title?.text;
      if (!text || text.length <= 30 || text.includes("<br>")) continue;
      const space = text.lastIndexOf(" ", Math.ceil(text.length / 2) + 4);
      if (space > 0) axis.title.text = `${text.slice(0, space)}<br>${text.slice(space + 1)}`;
    }
    return figure;
  }

  // Beside a tall legend, as on a phone, the figure grows, so that what is drawn keeps its height.
  function makeRoom(plot) {
    const legend = plot.querySelector("svg .legend");
    if (!legend) return;
    const entries = [...legend.querySelectorAll(".traces")].map(e => e.getBoundingClientRect());
    const needed = Math.max(...entries.map(e => e.bottom)) - Math.min(...entries.map(e => e.top)) + 16;
    const grown = Math.ceil(needed + Math.min(260, plot.clientHeight - 30));
    if (grown <= plot.clientHeight) return;
    plot.style.height = `${grown}px`;
    return Plotly.Plots.resize(plot);
  }

  // Paper is narrower than most windows: figures are laid out anew for 180 mm at 96 dots an inch.
  const PAPER = 670;
  addEventListener("beforeprint", () => {
    for (const plot of plots) {
      const height = { "plot-cost": 225, "plot-importance": 170 }[plot.id] ?? 310;
      Plotly.relayout(plot, { autosize: false, width: PAPER, height });
    }
  });
  addEventListener("afterprint", () => {
    for (const plot of plots) Plotly.relayout(plot, { autosize: true, width: null, height: null });
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        body.append(...[...original].sort((a, b) => order(a.cells[column], b.cells[column], descending ? -1 : 1)));
      });
    });
  }

  // Cells without a number come last whichever way the others are sorted.
  function order(a, b, sign) {
    if (!("value" in a.dataset)) return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
    const [x, y] = [a.dataset.value, b.dataset.value];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (Number(x) - Number(y));
  }
})();
