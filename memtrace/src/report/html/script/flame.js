// What each stack holds at an instant, and the flame graph of it.

// ---- stacks: what each holds at the two instants

const stacks = data.stacks;
const FUNCTION = 0, MODULE = 1, FILE = 2, LINE = 3, KIND = 4;

/// The kept instant that is nearest to one of all.
function kept(instant) {
  let best = 0;
  stacks.instants.forEach((at, i) => { if (Math.abs(at - instant) < Math.abs(stacks.instants[best] - instant)) best = i; });
  return best;
}

const replayed = new Map();
function heldAt(instant) {
  const upto = kept(instant);
  if (replayed.has(upto)) return replayed.get(upto);
  const held = { bytes: new Float64Array(stacks.leaves.length), blocks: new Float64Array(stacks.leaves.length) };
  for (let i = 0; i <= upto && i < stacks.changes.length; i += 1) {
    for (const [leaf, size, blocks] of stacks.changes[i]) { held.bytes[leaf] = size; held.blocks[leaf] = blocks; }
  }
  if (replayed.size > 8) replayed.delete(replayed.keys().next().value);
  replayed.set(upto, held);
  return held;
}

const text = (position) => (position < 0 ? null : stacks.strings[position]);

function framesOf(leaf) {
  const frames = [];
  for (let node = stacks.leaves[leaf].node; node >= 0; node = stacks.nodes[node][0]) frames.push(stacks.frames[stacks.nodes[node][1]]);
  return frames;
}

function lineOf(frame) {
  const file = text(frame[FILE]);
  return file === null ? "" : `${file}${frame[LINE] ? `:${frame[LINE]}` : ""}`;
}

// ---- flame graph

const picture = window.flame.flamegraph();
let root = null;
let here = null;
/// Of the theme, for one drawing: each frame is painted with it.
let paint = null;

/// The tree of calls with what each holds: one node per path, merged by function or by line.
function callTree() {
  const heap = $("flame-heap").value;
  const figure = $("flame-figure").value;
  const byLine = $("flame-merge").value === "line";
  const glue = $("flame-glue").checked;
  const now = heldAt(state.b);
  const before = figure === "growth" ? heldAt(state.a) : null;
  const values = new Float64Array(stacks.nodes.length);
  const blocks = new Float64Array(stacks.nodes.length);
  let shrunk = 0;
  stacks.leaves.forEach((leaf, i) => {
    if (leaf.node < 0 || (heap === "native" && leaf.go) || (heap === "go" && !leaf.go)) return;
    let value = figure === "blocks" ? now.blocks[i] : now.bytes[i];
    if (before) {
      value -= before.bytes[i];
      if (value < 0) { shrunk += value; return; }
    }
    values[leaf.node] += value;
    blocks[leaf.node] += now.blocks[i];
  });
  // Parents stand before children, so that one pass from the end adds up.
  for (let node = stacks.nodes.length - 1; node >= 0; node -= 1) {
    const parent = stacks.nodes[node][0];
    if (parent >= 0) { values[parent] += values[node]; blocks[parent] += blocks[node]; }
  }
  const top = { name: heap === "go" ? "Go heap" : heap === "both" ? "all stacks" : "native", value: 0, blocks: 0, by: new Map(), lines: new Map(), up: null };
  const native = heap === "both" ? child(top, "native", "native", null) : top;
  const places = new Array(stacks.nodes.length);
  for (let node = 0; node < stacks.nodes.length; node += 1) {
    if (values[node] <= 0) continue;
    const [parent, frameAt] = stacks.nodes[node];
    const frame = stacks.frames[frameAt];
    const name = text(frame[FUNCTION]) || "[unknown]";
    const above = parent >= 0 ? places[parent] : frame[KIND] === "note" && name === "Go heap" ? top : native;
    if (parent < 0) {
      if (above === native && native !== top) { native.value += values[node]; native.blocks += blocks[node]; }
      top.value += values[node];
      top.blocks += blocks[node];
      // With the Go heap alone, its own root is the picture's.
      if (above === top && heap === "go") { places[node] = top; continue; }
    }
    if (frame[KIND] === "glue" && !glue) { places[node] = above; continue; }
    const key = byLine ? `${frameAt}` : `${frame[FUNCTION]} ${frame[MODULE]}`;
    const place = child(above, key, name, frame);
    place.value += values[node];
    place.blocks += blocks[node];
    const line = lineOf(frame);
    if (line) place.lines.set(line, (place.lines.get(line) || 0) + values[node]);
    places[node] = place;
  }
  return { top, shrunk, figure };
}

function child(above, key, name, frame) {
  let found = above.by.get(key);
  if (!found) {
    found = { name, value: 0, blocks: 0, by: new Map(), lines: new Map(), up: above, frame };
    above.by.set(key, found);
  }
  return found;
}

/// What d3-flame-graph draws: parts too narrow to be seen are summed up under their parent.
function drawn(node, least) {
  const children = [];
  let narrow = 0;
  for (const part of node.by.values()) {
    if (part.value >= least) children.push(drawn(part, least));
    else narrow += 1;
  }
  children.sort((x, y) => y.value - x.value);
  return { name: node.name, value: node.value, node, children, narrow };
}

function tone(node) {
  let hash = 0;
  for (let i = 0; i < node.name.length; i += 1) hash = (hash * 31 + node.name.charCodeAt(i)) % 997;
  const kind = node.frame ? node.frame[KIND] : "note";
  const hue = kind === "go" ? 195 + (hash % 30) : kind === "glue" || kind === "note" ? 0 : 12 + (hash % 38);
  const saturation = kind === "glue" || kind === "note" ? 0 : 70;
  return `hsl(${hue} ${saturation}% ${paint.lightness})`;
}

function matcher() {
  const wanted = $("flame-search").value.trim();
  if (!wanted) return null;
  const lower = wanted.toLowerCase();
  return (node) => {
    if (node.name.toLowerCase().includes(lower)) return true;
    const module = node.frame ? text(node.frame[MODULE]) : null;
    if (module && module.toLowerCase().includes(lower)) return true;
    for (const line of node.lines.keys()) if (line.toLowerCase().includes(lower)) return true;
    return false;
  };
}

const figureText = (value) => (root.figure === "blocks" ? `${whole(value)} blocks` : bytes(value));

function detail(node) {
  const lines = [...node.lines.entries()].sort((x, y) => y[1] - x[1]);
  const module = node.frame ? text(node.frame[MODULE]) : null;
  return [
    `${node.name}${node.frame && node.frame[KIND] === "inlined" ? " (inlined)" : ""}${module ? `  in ${module}` : ""}`,
    `${figureText(node.value)} (${ratio(node.value, root.top.value)} of ${figureText(root.top.value)}), ${whole(node.blocks)} blocks in use`,
    lines.slice(0, 4).map(([line, value]) => `${line} (${figureText(value)})`).join("\n") + (lines.length > 4 ? `\nand ${lines.length - 4} more lines` : ""),
  ].join("\n");
}

picture
  .transitionDuration(0)
  .cellHeight(20)
  .inverted(true)
  .resetHeightOnZoom(true)
  .minHeight(60)
  .label(() => "")
  .setColorMapper((d) => (d.highlight ? paint.found : tone(d.data.node)))
  .onHover((d) => { $("flame-detail").textContent = detail(d.data.node); })
  .onClick((d) => zoomTo(d.data.node));

function zoomTo(node) {
  const path = [];
  for (let up = node; up; up = up.up) path.unshift(up.name);
  state.zoom = path.slice(1);
  drawFlame(true);
}

/// Follows the zoom's names as far as they lead: another instant may lack the rest.
function zoomed(top) {
  let node = top;
  for (const name of state.zoom) {
    const next = [...node.by.values()].filter((part) => part.name === name).sort((x, y) => y.value - x.value)[0];
    if (!next) break;
    node = next;
  }
  return node;
}

function drawFlame(keepTree) {
  if (!root || !keepTree) root = callTree();
  const node = zoomed(root.top);
  const path = $("flame-path");
  path.replaceChildren();
  const chain = [];
  for (let up = node; up; up = up.up) chain.unshift(up);
  if (chain.length > 1) for (const link of chain) path.append(el("button", { type: "button", textContent: link.name, title: link.name, onclick: () => zoomTo(link) }));
  const about = [`At ${at(stacks.instants[kept(state.b)])}`];
  if (root.figure === "growth") about.push(`grown since ${at(stacks.instants[kept(state.a)])}; stacks that shrank (${bytes(root.shrunk)}) are not drawn`);
  if (stacks.instants.length < stacks.of) about.push(`stacks are kept at ${stacks.instants.length} of ${stacks.of} snapshots`);
  about.push($("flame-heap").value === "native" ? "bytes asked for and not freed, measured" : "Go's figures are sampled by its runtime, as of its last collection");
  $("flame-about").textContent = `${about.join("; ")}. The outermost call is on top.`;
  const width = $("flame-graph").clientWidth;
  const box = window.flame.select("#flame-graph");
  if (!(node.value > 0)) {
    box.selectAll("svg").remove();
    $("flame-detail").textContent = root.figure === "growth" ? "Nothing grew between the two instants." : "Nothing is in use.";
    $("flame-found").textContent = "";
    here = null;
    return;
  }
  // Narrower than a pixel is not drawn.
  const tree = drawn(node, node.value / width);
  picture.width(width);
  box.selectAll("svg").remove();
  paint = { lightness: colour("flame-lightness"), found: colour("bad") };
  box.datum(tree).call(picture);
  here = null;
  // What has just been drawn highlights nothing yet.
  if ($("flame-search").value) search();
  else $("flame-found").textContent = "";
  $("flame-detail").textContent = detail(node);
}

function search() {
  const matches = matcher();
  const found = $("flame-found");
  if (!root || !$("flame-graph").querySelector("svg")) return;
  if (!matches) { found.textContent = ""; picture.clear(); return; }
  picture.setSearchMatch((d) => matches(d.data.node));
  picture.setSearchHandler(() => {});
  picture.search("x");
  // Over the whole tree, drawn or not; a match inside a match counts once.
  let sum = 0;
  const pending = [zoomed(root.top)];
  while (pending.length) {
    const node = pending.pop();
    if (matches(node)) sum += node.value;
    else pending.push(...node.by.values());
  }
  found.textContent = sum ? `${figureText(sum)} (${ratio(sum, zoomed(root.top).value)}) below matches` : "no match";
}

function focusOn(datum) {
  const groups = $("flame-graph").querySelectorAll("g.frame");
  groups.forEach((group) => group.classList.toggle("here", group.__data__ === datum));
  here = datum;
  $("flame-detail").textContent = detail(datum.data.node);
}

$("flame-graph").addEventListener("keydown", (event) => {
  const first = $("flame-graph").querySelector("g.frame");
  if (!first) return;
  let top = first.__data__;
  while (top.parent) top = top.parent;
  if (!here) here = top;
  const beside = (step) => {
    const all = here.parent ? here.parent.children : [here];
    return all[all.indexOf(here) + step] || here;
  };
  const moves = {
    ArrowDown: () => (here.children || [])[0] || here,
    ArrowUp: () => here.parent || here,
    ArrowLeft: () => beside(-1),
    ArrowRight: () => beside(1),
    Home: () => top,
  };
  if (moves[event.key]) focusOn(moves[event.key]());
  else if (event.key === "Enter") zoomTo(here.data.node);
  else if (event.key === "Escape") zoomTo(zoomed(root.top).up || root.top);
  else return;
  event.preventDefault();
});
