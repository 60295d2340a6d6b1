// What the recording says first.

// ---- findings

function finding(alarm, title, ...lines) {
  return el("div", { className: `finding${alarm ? " alarm" : ""}` }, el("p", {}, el("b", { textContent: title })), ...lines.map((line) => el("p", { textContent: line })));
}

function place(frame) {
  if (!frame) return "no frame of the program itself";
  return frame.file ? `${frame.label} ${frame.file.split("/").pop()}:${frame.line || "?"}` : frame.label;
}

function drawFindings() {
  const body = $("findings-body");
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
