// Memory over time by owner, the two instants, and the steps from pprof to the container.

// ---- over time

let chart = null;

function drawChart() {
  const times = data.instants.map((instant) => instant.elapsed_s);
  const owners = data.owners.filter((owner) => !state.hidden.has(owner.key));
  // Upper edges of the bands: each is the sum of those below. What is negative is drawn as nothing.
  const edges = [];
  let below = times.map(() => 0);
  for (const owner of owners) {
    below = below.map((sum, i) => (owner.bytes[i] === null ? null : sum === null ? null : sum + Math.max(0, owner.bytes[i])));
    edges.push(below);
  }
  const known = data.owners.length > 0 && data.whole.bytes.some((value) => value !== null);
  $("over-time-about").textContent = known
    ? `${data.whole.label} (${data.whole.source}), measured; its parts add up to it at every instant. Dashed lines: what pprof shows (sampled by the Go runtime) and the C blocks not freed since the attach (measured).`
    : `The container's memory is not in this recording: ${data.instants.length ? data.instants[0].reason : "no snapshot"}.`;
  if (chart) { chart.destroy(); chart = null; }
  if (!count) return;
  if (count === 1) {
    $("over-time-about").textContent += " One snapshot is no course of time: `memtrace record --interval 1s` takes more.";
    $("chart").hidden = true;
    $("instants").hidden = true;
    return;
  }
  const series = [{ label: "time", value: (_, value) => (value === null ? "" : span(value)) }];
  const columns = [times];
  const add = (values, options) => { columns.push(values); series.push(options); };
  const told = (values) => (_, __, ___, index) => (index === null || index === undefined ? "" : bytes(values[index]));
  for (let i = owners.length - 1; i >= 0; i -= 1) {
    add(edges[i], { label: owners[i].label, stroke: colour(owners[i].key), fill: colour(owners[i].key), width: 1, points: { show: false }, value: told(owners[i].bytes) });
  }
  const all = owners.length === data.owners.length;
  if (known && all) add(data.whole.bytes, { label: data.whole.label, stroke: colour("ink"), width: 2, points: { show: false }, value: told(data.whole.bytes) });
  if (all && data.limit.some((value) => value !== null)) {
    const most = Math.max(...data.whole.bytes.map((value) => value || 0));
    const near = data.limit.some((value) => value !== null && value < most * 4);
    add(near ? data.limit : data.limit.map(() => null), { label: near ? "limit" : "limit (beyond the picture)", stroke: colour("bad"), width: 2, points: { show: false }, value: told(data.limit) });
  }
  if (data.pprof.some((value) => value !== null)) add(data.pprof, { label: "pprof (inuse_space)", stroke: colour("ink"), dash: [3, 4], width: 2, points: { show: false }, value: told(data.pprof) });
  add(data.outstanding, { label: "C blocks not freed", stroke: colour("bad"), dash: [8, 4], width: 2, points: { show: false }, value: told(data.outstanding) });
  const axis = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") } };
  chart = new uPlot({
    width: $("chart").clientWidth,
    height: 360,
    scales: { x: { time: false }, y: { range: (_, __, max) => [0, (max || 1) * 1.05] } },
    axes: [
      { ...axis, values: (_, ticks) => ticks.map(span) },
      { ...axis, size: 80, incrs: Array.from({ length: 50 }, (_, power) => 2 ** power), values: (_, ticks) => ticks.map(bytes) },
    ],
    series,
    cursor: { drag: { x: false, y: false } },
    hooks: {
      draw: [(u) => {
        const { ctx } = u;
        ctx.save();
        const rule = (instant, text) => {
          const x = u.valToPos(times[instant], "x", true);
          ctx.strokeStyle = colour("accent");
          ctx.fillStyle = colour("accent");
          ctx.lineWidth = 2;
          ctx.beginPath();
          ctx.moveTo(x, u.bbox.top);
          ctx.lineTo(x, u.bbox.top + u.bbox.height);
          ctx.stroke();
          const left = x + ctx.measureText(text).width + 8 < u.bbox.left + u.bbox.width;
          ctx.textAlign = left ? "left" : "right";
          ctx.fillText(text, left ? x + 4 : x - 4, u.bbox.top + 14);
          ctx.textAlign = "left";
        };
        rule(state.a, "from");
        rule(state.b, "to");
        data.instants.forEach((instant) => {
          if (!instant.mark) return;
          const x = u.valToPos(instant.elapsed_s, "x", true);
          ctx.fillStyle = colour("ink");
          ctx.fillRect(x, u.bbox.top, 1, u.bbox.height);
          ctx.fillText(instant.mark, x + 4, u.bbox.top + u.bbox.height - 6);
        });
        ctx.restore();
      }],
    },
  }, columns, $("chart"));
  chart.over.addEventListener("click", (event) => {
    const index = chart.cursor.idx;
    if (index === null || index === undefined) return;
    if (event.shiftKey) state.a = Math.min(index, state.b);
    else { state.b = index; state.a = Math.min(state.a, index); }
    moved();
  });
}

function sliders() {
  for (const [id, key] of [["instant-a", "a"], ["instant-b", "b"]]) {
    const input = $(id);
    input.max = String(Math.max(0, count - 1));
    input.addEventListener("input", () => {
      state[key] = Number(input.value);
      if (key === "a") state.b = Math.max(state.a, state.b);
      else state.a = Math.min(state.a, state.b);
      moved();
    });
  }
}

// ---- what depends on the two instants

function drawOwners() {
  const { a, b } = state;
  const table = $("owners");
  table.replaceChildren();
  if (!data.owners.length) return;
  table.append(el("tr", {}, ...["owner", `at ${at(a)}`, `at ${at(b)}`, "change"].map((text, i) => el("th", { textContent: text, className: i ? "n" : "" }))));
  const drawnOrNot = (key, label) => {
    const box = el("input", { type: "checkbox", checked: !state.hidden.has(key), title: "draw it in the picture" });
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(key);
      else state.hidden.add(key);
      drawChart();
    });
    return el("label", {}, box, el("span", { className: "swatch", style: { background: colour(key) } }), label);
  };
  const row = (label, key, values, className) => table.append(el("tr", { className },
    el("td", {}, key ? drawnOrNot(key, label) : label),
    el("td", { className: "n", textContent: bytes(values[a]) }),
    el("td", { className: "n", textContent: bytes(values[b]) }),
    el("td", { className: "n", textContent: values[a] === null || values[b] === null ? "" : signed(values[b] - values[a]) })));
  for (const owner of data.owners) row(owner.label, owner.key, owner.bytes, "");
  row(data.whole.label, null, data.whole.bytes, "sum");
}

function drawFalls() {
  const table = $("falls");
  table.replaceChildren();
  const fall = data.waterfalls[state.b];
  if (!fall) return;
  if (fall.reason) {
    $("waterfall-about").textContent = `Unknown: ${fall.reason}.`;
    return;
  }
  $("waterfall-about").textContent = `At ${at(state.b)}. Every step has its sign, and they add up to the last line without a rest.`;
  let sum = 0;
  const reached = fall.steps.map((step) => { const from = sum; sum += step.bytes; return [from, sum]; });
  const lowest = Math.min(0, ...reached.map(([, to]) => to));
  const most = Math.max(1, ...reached.map(([, to]) => to));
  const scale = (value) => (100 * (value - lowest)) / (most - lowest);
  const bar = (from, to, key) => el("td", { className: "bar" }, el("div", {}, el("i", { style: { left: `${scale(Math.min(from, to))}%`, width: `${scale(Math.max(from, to)) - scale(Math.min(from, to))}%`, background: colour(key) } })));
  const COLOURS = { pprof: "go_heap", go_rest: "go_runtime", go_heap: "go_heap", go_runtime: "go_runtime", outstanding: "c_heap", native_rest: "allocator", programs: "programs", late: "kernel" };
  table.append(el("tr", {}, el("th", { textContent: "step" }), el("th", { className: "n", textContent: "bytes" }), el("th", { textContent: "known" }), el("th", {})));
  fall.steps.forEach((step, i) => table.append(el("tr", {},
    el("td", { textContent: step.label }),
    el("td", { className: "n", textContent: i ? signed(step.bytes) : bytes(step.bytes), title: `${whole(step.bytes)} B` }),
    el("td", { className: "known", textContent: step.how }),
    bar(reached[i][0], reached[i][1], COLOURS[step.key] || step.key))));
  table.append(el("tr", { className: "sum" }, el("td", { textContent: data.whole.label }), el("td", { className: "n", textContent: bytes(sum), title: `${whole(sum)} B` }), el("td", { className: "known", textContent: "measured" }), bar(0, sum, "ink")));
}
