// What is drawn when: the order of the first drawing, and what a change draws again.

// ---- together

  function drawInstants() {
    for (const [id, key] of [["instant-a", "a"], ["instant-b", "b"]]) {
      $(id).value = String(state[key]);
      $(`${id}-told`).textContent = count ? at(state[key]) : "";
    }
    drawOwners();
    drawFalls();
    drawFlame(false);
    drawStacks();
  }

  let waiting = false;
  function moved() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (chart) chart.redraw();
      drawInstants();
    });
  }

  for (const id of ["flame-heap", "flame-figure", "flame-merge", "flame-glue"]) {
    $(id).addEventListener("change", () => { drawFlame(false); drawStacks(); });
  }
  $("flame-search").addEventListener("input", search);
  $("stacks-more").addEventListener("click", () => { shown *= 2; drawStacks(); });
  let resizing = 0;
  window.addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => { drawChart(); drawFlame(true); }, 150);
  });

  drawFindings();
  sliders();
  drawChart();
  if (count) drawInstants();
  drawTools();
  drawLedger();
  drawLosses();
  document.documentElement.dataset.ready = "yes";
