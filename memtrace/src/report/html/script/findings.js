// What the recording says first.

// ---- findings

function finding(alarm, title, ...lines) {
  return el("div", { className: `finding${alarm ? " alarm" : ""}` }, el("p", {}, el("b", { textContent: title })), ...lines.map((line) => el("p", { textContent: line })));
}

function place(frame) {
  if (!frame) return "no frame of the program itself";
  const inModule = () => `${frame.module.split("/").pop()}${frame.module_offset ? `+${frame.module_offset}` : ""}`;
  const label = frame.function || (frame.module ? inModule() : frame.address) || "[unknown]";
  return frame.file ? `${label} ${frame.file.split("/").pop()}:${frame.line || "?"}` : label;
}

function figureOf(figure) {
  const { value, unit } = figure;
  const told = {
    bytes: () => bytes(value),
    bytes_per_second: () => `${signed(value)}/s`,
    share: () => `${(100 * value).toFixed(1)} %`,
    probability: () => (value < 0.001 ? "p < 0.001" : `p = ${value.toFixed(3)}`),
    seconds: () => span(value),
  }[unit];
  return `${figure.label}: ${told ? told() : whole(value)} (${figure.known})`;
}

function drawVerdict(body) {
  if (!data.verdict) {
    body.append(el("p", { className: "about", textContent: `No verdict over time: ${data.verdict_reason}.` }));
    return;
  }
  const { findings, doubts } = data.verdict;
  if (!findings.length) body.append(finding(false, "Over time: nothing grows that is worth acting on."));
  for (const it of findings) {
    const site = it.site;
    const box = finding(true, it.what);
    if (site && site.frame) box.append(el("p", { textContent: `at ${place(site.frame)}${site.go_caller ? `, called by ${place(site.go_caller)}` : ""}` }));
    box.append(
      el("p", {}, el("b", { textContent: "What to do: " }), it.remedy),
      el("details", {}, el("summary", { textContent: "Evidence, and what would refute it" }),
        el("ul", {}, ...it.figures.map((figure) => el("li", { textContent: figureOf(figure) }))),
        el("p", { textContent: `Refuted by: ${it.refuted_by}` })),
    );
    body.append(box);
  }
  for (const doubt of doubts) body.append(el("p", { className: "about", textContent: `Doubt: ${doubt}` }));
}

function drawFindings() {
  const body = $("findings-body");
  drawVerdict(body);
  if (data.torn) body.append(finding(true, "The recording is torn", data.torn));
  for (const caller of last.callers.slice(0, 3)) {
    const growth = caller.growth && count > 1
      ? `${signed(caller.growth.bytes)} since the first snapshot (${signed(Math.round(caller.growth.bytes_per_second))}/s)`
      : "one snapshot: growth is not known";
    body.append(finding(
      false,
      `${bytes(caller.bytes)} in ${whole(caller.blocks)} blocks not freed: ${place(caller.frame)}`,
      caller.go_caller ? `called by ${place(caller.go_caller)}` : "",
      `${growth}; ${whole(caller.stacks)} stack${caller.stacks === 1 ? "" : "s"}; measured at the allocator's calls`,
    ));
  }
  const memory = last.memory;
  if (memory) {
    for (const advice of memory.advice || []) {
      body.append(finding(false, advice.what, `${advice.arithmetic} (${advice.known || advice.how})`, advice.evidence));
    }
  }
  if (!body.childNodes.length) body.append(el("p", { textContent: "Nothing is outstanding, and nothing is advised." }));
}
