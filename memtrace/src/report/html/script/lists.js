// Stacks one by one, tools, ledger, losses.

// ---- list of stacks

let shown = 25;

function drawStacks() {
  const now = heldAt(state.b);
  const before = heldAt(state.a);
  const heap = $("flame-heap").value;
  const rows = stacks.leaves
    .map((leaf, i) => ({ i, bytes: now.bytes[i], blocks: now.blocks[i], grown: now.bytes[i] - before.bytes[i] }))
    .filter((row) => (row.bytes > 0 || row.grown !== 0) && (heap === "both" || stacks.leaves[row.i].go === (heap === "go")));
  const growth = $("flame-figure").value === "growth";
  rows.sort((x, y) => (growth ? y.grown - x.grown : y.bytes - x.bytes) || x.i - y.i);
  $("stacks-about").textContent = `${whole(rows.length)} stacks, ${growth ? "most grown" : "largest"} first; those of the flame graph's heap. Open one for its frames.`;
  const body = $("stacks-body");
  body.replaceChildren(el("div", { className: "head" }, ...["bytes", "blocks", "change", "where"].map((word) => el("span", { textContent: word }))));
  for (const row of rows.slice(0, shown)) {
    const frames = framesOf(row.i);
    const own = frames.filter((frame) => frame[KIND] !== "glue");
    // Below the allocator's own frame stands who called it.
    const names = own.slice(0, 4).map((frame) => text(frame[FUNCTION]) || "[unknown]");
    const item = el("details", { className: "stack" }, el("summary", {},
      el("span", { textContent: bytes(row.bytes), title: `${whole(row.bytes)} B` }),
      el("span", { textContent: whole(row.blocks) }),
      el("span", { textContent: row.grown ? signed(row.grown) : "" }),
      el("span", { textContent: names.join(" ← ") })));
    item.addEventListener("toggle", () => {
      if (!item.open || item.querySelector("ol")) return;
      const ages = stacks.leaves[row.i].ages_s;
      if (ages) item.append(el("p", { className: "about", textContent: `youngest block ${span(ages[0])}, oldest ${span(ages[1])} at the last snapshot` }));
      item.append(el("ol", {}, ...frames.map((frame) => el("li", {},
        text(frame[FUNCTION]) || "[unknown]",
        frame[KIND] === "inlined" ? " (inlined)" : "",
        el("span", { className: "at", textContent: ` ${[text(frame[MODULE]), lineOf(frame)].filter(Boolean).join("  ")}` })))));
    });
    body.append(item);
  }
  $("stacks-more").hidden = rows.length <= shown;
}

// ---- tools, ledger, losses

function drawTools() {
  const body = $("tools-body");
  const memory = last.memory;
  if (!memory) {
    body.append(el("p", { textContent: `Unknown: ${last.memory_reason || "not read"}.` }));
    return;
  }
  const table = el("table", { className: "figures" });
  table.append(el("tr", {}, ...["tool", "shows", "formula", "why"].map((word, i) => el("th", { textContent: word, className: i === 1 ? "n" : "" }))));
  for (const tool of memory.tools) {
    table.append(el("tr", {},
      el("td", { textContent: tool.name }),
      el("td", { className: "n", textContent: bytes(tool.bytes), title: tool.bytes === null ? tool.reason || "" : `${whole(tool.bytes)} B` }),
      el("td", { textContent: tool.formula }),
      el("td", { textContent: tool.bytes === null && tool.reason ? `unknown: ${tool.reason}` : tool.why })));
  }
  body.append(el("div", { className: "scroll" }, table));
}

function tree(row) {
  const line = () => [
    el("span", { textContent: row.label }),
    el("span", { className: "n", textContent: row.bytes === null ? "unknown" : bytes(row.bytes), title: row.bytes === null ? row.reason || "" : `${whole(row.bytes)} B, ${row.known}` }),
    el("span", { className: "source", textContent: row.bytes === null ? row.reason || "" : row.source }),
  ];
  const within = row.kind === "within" ? " within" : "";
  if (!row.rows || !row.rows.length) return el("div", { className: `row${within}`, title: row.note || "" }, ...line());
  return el("details", { open: true }, el("summary", { className: within, title: row.note || "" }, ...line()), el("div", { className: "tree" }, ...row.rows.map(tree)));
}

function drawLedger() {
  const body = $("ledger-body");
  const memory = last.memory;
  if (!memory) {
    body.append(el("p", { textContent: `Unknown: ${last.memory_reason || "not read"}.` }));
    return;
  }
  const box = el("div", { className: "tree" });
  if (memory.charge) box.append(tree(memory.charge));
  else box.append(el("p", { textContent: `The container's charge is unknown: ${memory.charge_reason}.` }));
  for (const process of memory.processes) if (process.resident) box.append(tree({ ...process.resident, label: `${process.comm} (pid ${process.pid}): ${process.resident.label}` }));
  for (const row of memory.beside || []) box.append(tree(row));
  body.append(box);
  const broken = memory.checks.filter((check) => check.holds === false);
  body.append(el("p", { className: broken.length ? "bad" : "good", textContent: broken.length ? `${broken.length} of the ledger's laws do not hold:` : `${memory.checks.filter((check) => check.holds).length} of the ledger's laws hold, none is broken.` }));
  for (const check of broken) body.append(el("p", { textContent: `${check.name}: ${check.law}: ${bytes(check.left)} against ${bytes(check.right)}` }));
}

function drawLosses() {
  const body = $("losses-body");
  const lost = last.losses.filter((line) => line.count > 0);
  body.append(el("p", { className: lost.length ? "bad" : "good", textContent: lost.length ? "Something was lost:" : "No call was lost: every counter of losses is 0." }));
  const list = (lines) => el("ul", {}, ...lines.map((line) => el("li", { textContent: `${line.label}: ${whole(line.count)}${line.hint ? ` (${line.hint})` : ""}` })));
  if (lost.length) body.append(list(lost));
  const told = last.tallies.filter((line) => line.count > 0);
  if (told.length) body.append(el("details", {}, el("summary", { textContent: "What else was counted" }), list(told)));
  const broken = last.checks.filter((check) => !check.holds);
  body.append(el("p", { className: broken.length ? "bad" : "good", textContent: broken.length ? "The books do not balance:" : `The books balance: ${last.checks.length} of ${last.checks.length} laws hold.` }));
  for (const check of broken) body.append(el("p", { textContent: `${check.name}: ${check.law}: ${whole(check.left)} against ${whole(check.right)}` }));
  if (last.truncated.bytes) body.append(el("p", { textContent: `${bytes(last.truncated.bytes)} in ${whole(last.truncated.blocks)} blocks have a stack that is not whole; its last frame says why.` }));
  if (data.not_probed.length) {
    const words = (it) => Object.values(it).filter((value) => typeof value === "string" || typeof value === "number").join(" · ");
    body.append(el("details", {}, el("summary", { textContent: `${data.not_probed.length} functions were not probed` }), el("ul", {}, ...data.not_probed.map((it) => el("li", { textContent: words(it) })))));
  }
  if (last.go_reason) body.append(el("p", { textContent: `Go's books: ${last.go_reason}` }));
  const own = last.self;
  body.append(el("p", { className: "about", textContent: `memtrace's own cost: ${whole(own.probe_hits)} probe hits${own.bpf_time_ns ? `, ${(own.bpf_time_ns / 1e9).toFixed(2)} s in BPF` : ""}, ${bytes(own.kernel_memory_bytes)} in the kernel, ${bytes(own.user_memory_bytes)} of its own, ${(own.user_cpu_ns / 1e9).toFixed(2)} s of CPU.` }));
  const ended = count ? data.instants[count - 1].ended : null;
  if (ended) body.append(el("p", { textContent: `The recording ended: ${ended}` }));
}
