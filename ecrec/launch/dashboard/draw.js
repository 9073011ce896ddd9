// Elements. All text goes in as text: names of tables and reasons of deaths are other people's words.

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

const ICONS = {
  up: [["path", { d: "M3 8.5 6.5 12 13 4.5" }]],
  recovering: [["path", { d: "M13 8a5 5 0 1 1-1.6-3.7" }], ["path", { d: "M13.2 1.8v3.4H9.8" }]],
  down: [["path", { d: "M4 4l8 8M12 4l-8 8" }]],
  suspected: [["path", { d: "M8 3v6" }], ["path", { d: "M8 12.2v.1" }]],
  leaving: [["path", { d: "M3 8h9M8.5 4.5 12 8l-3.5 3.5" }]],
  spare: [["circle", { cx: 8, cy: 8, r: 5, "stroke-dasharray": "2.6 2.6" }]],
};
ICONS.reseeding = ICONS.recovering;
ICONS["not started"] = ICONS.spare;

function icon(kind) {
  const shapes = (ICONS[kind] || ICONS.suspected).map(([name, attributes]) => svg(name, attributes));
  return svg("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true", focusable: "false" }, ...shapes);
}

function progress(label, part) {
  const percent = Math.floor(Math.min(1, Math.max(0, part)) * 100);
  const fill = el("span", { class: "fill" });
  fill.style.width = `${percent}%`;
  const bar = el("span", {
    class: "track", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-valuenow": percent,
  }, fill);
  return el("div", { class: "progress" }, el("span", {}, label), bar, el("span", { class: "number" }, `${percent} %`));
}

function tile(shard) {
  const kind = condition(shard);
  const facts = [`life ${shard.epoch}`];
  if (shard.rows !== null) facts.push(`${short(shard.rows)} rows`);
  if (shard.memory_bytes !== null) facts.push(bytes(shard.memory_bytes));
  const together = facts.map((fact) => fact.replaceAll(" ", "\u00a0")).join(" · ");
  const notes = [];
  if (shard.suspected) notes.push(`suspected: ${shard.suspected}`);
  if (shard.leaving) notes.push(`told to end: ${shard.leaving}`);
  if (shard.unheard_by.length) notes.push(`not heard by worker ${shard.unheard_by.join(", ")}`);
  const bars = [];
  if (shard.state === "recovering" || shard.state === "reseeding") {
    if (shard.rows_repaired !== null) bars.push(progress("rows", shard.rows_repaired));
    if (shard.parity_seeded !== null) bars.push(progress("parity", shard.parity_seeded));
  }
  return el("li", { class: "tile", "data-state": kind },
    el("p", { class: "head" }, icon(kind), el("b", {}, `ps ${shard.shard}`), el("span", { class: "state" }, kind)),
    shard.epoch ? el("p", { class: "facts" }, together) : null,
    shard.endpoint && shard.state !== "down" ? el("p", { class: "facts where", title: shard.endpoint }, endpointText(shard.endpoint, 24)) : null,
    ...bars, ...notes.map((note) => el("p", { class: "note" }, note)));
}

function tolerance(group) {
  if (group.tolerates === null) return ["", "no tables yet"];
  if (group.tolerates < 0) return ["lost", "data is lost"];
  if (group.tolerates === 0) return ["none", "another death would lose data"];
  return ["some", `${group.tolerates} more ${group.tolerates === 1 ? "death is" : "deaths are"} tolerated`];
}

function groupOf(group, doc, only) {
  const [kind, words] = tolerance(group);
  const shards = doc.shards.filter((shard) => shard.group === group.group);
  const name = only ? "Redundancy left" : `Group ${group.group}`;
  const dots = [];
  for (let i = 0; i < Math.min(Math.max(group.tolerates || 0, 0), 8); i += 1) dots.push(el("i", {}));
  return el("div", { class: "group" },
    el("h3", {}, name, " ", el("span", { class: "tolerance", "data-kind": kind },
      el("span", { class: "dots", "aria-hidden": "true" }, ...dots), words)),
    el("ul", { class: "tiles plain" }, ...shards.map(tile)));
}

function spares(doc) {
  if (!doc.spares.length) {
    return [el("h3", {}, "Spares"), el("p", { class: "facts" }, "No spare waits: a server that dies is missing until another is started.")];
  }
  return [el("h3", {}, "Spares ", el("span", { class: "tolerance" }, `${doc.spares.length} ${doc.spares.length === 1 ? "waits" : "wait"} for a place`)),
    el("ul", { class: "tiles plain" }, ...doc.spares.map((spare) => el("li", { class: "tile", "data-state": "spare" },
      el("p", { class: "head" }, icon("spare"), el("b", {}, "spare"), el("span", { class: "state" }, spare.reached ? "waits" : "not reached")),
      el("p", { class: "facts where", title: spare.endpoint }, endpointText(spare.endpoint, 24)))))];
}

const WIDTH = 600, HEIGHT = 90;

/** One figure: its value now, and a line of the last minutes. `lines`: [name in the series, label]. */
function chart(title, lines, show, series, spans, now, fromZero) {
  const at = series.at || [];
  const span = spanOf(at, now), from = now - span;
  const found = extent(lines.flatMap(([name]) => series[name] || [])), known = found !== null;
  const [low, high] = range(found, fromZero);
  const x = (time) => ((time - from) / span) * WIDTH;
  const y = (value) => HEIGHT - 4 - ((value - low) / (high - low)) * (HEIGHT - 8);
  const bands = spans.filter(([, to]) => to > from).map(([begin, end]) => svg("rect", {
    x: Math.max(0, x(begin)).toFixed(1), width: Math.max(2, x(end) - Math.max(0, x(begin))).toFixed(1),
    y: 0, height: HEIGHT, class: "band",
  }));
  const paths = lines.flatMap(([name], index) => pieces(at, series[name] || [], 5).map((piece) => svg("polyline", {
    points: (piece.length > 1 ? piece : [piece[0], piece[0]]).map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
    class: `line line-${index}`,
  })));
  const label = known ? `${title}, last ${duration(span)}: from ${show(found[0])} to ${show(found[1])}` : `${title}: nothing was reported yet`;
  const last = (name) => (series[name] && series[name].length ? series[name][series[name].length - 1] : null);
  const values = lines.map(([name, what], index) => el("span", { class: "value" },
    what ? el("span", { class: `key line-${index}`, "aria-hidden": "true" }) : null,
    el("b", {}, show(last(name))), what ? ` ${what}` : null));
  return el("figure", { class: "chart" },
    el("figcaption", { class: lines.length > 1 ? "several" : null }, el("span", { class: "title" }, title), ...values),
    el("div", { class: "plot" },
      svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, ...bands, ...paths),
      known && high === found[1] ? el("span", { class: "high", "aria-hidden": "true" }, show(high)) : null,
      known && (fromZero || low === found[0]) ? el("span", { class: "low", "aria-hidden": "true" }, show(low)) : null),
    el("p", { class: "axis", "aria-hidden": "true" }, el("span", {}, `${duration(span)} ago`), el("span", {}, "now")));
}

function story(death, doc, many) {
  const told = storyOf(death, doc.at);
  const name = `ps ${death.shard}${many ? ` of group ${death.group}` : ""}`;
  const total = told.total === null ? "" : duration(told.total);
  const shard = doc.shards.find((each) => each.shard === death.shard);
  const outcome = {
    whole: `whole again after ${total}`, again: `its replacement died after ${total}`, lost: "data was lost",
  }[death.ended] || `going on for ${total}`;
  const pieces = told.steps.filter((step) => step.took !== null).map((step) => {
    const piece = el("span", { class: "piece", "data-step": step.name });
    piece.style.flexGrow = String(Math.max(step.took, 0));
    return piece;
  });
  if (told.open && told.going !== null) {
    const piece = el("span", { class: "piece going" });
    piece.style.flexGrow = String(told.going);
    pieces.push(piece);
  }
  const steps = told.steps.map((step, index) => el("li", { "data-step": step.name },
    el("span", { class: "what" }, step.name === "replaced" && death.reason === "it was told to end" ? "another took over" : step.label),
    el("time", {}, clockTime(step.at, doc.at, 2)),
    el("span", { class: "since" }, step.since === null ? "" : index === 0 ? "" : `+${duration(step.since)}`)));
  if (told.open && shard) {
    const waits = shard.state === "down" ? (doc.spares.length ? "waits for the others" : "waits for a server") : "rebuilds";
    steps.push(el("li", { class: "going" }, el("span", { class: "what" }, waits),
      shard.rows_repaired !== null && shard.state !== "down" ? progress("rows", shard.rows_repaired) : null,
      shard.parity_seeded !== null && shard.state !== "down" ? progress("parity", shard.parity_seeded) : null));
  }
  return el("li", { class: "story", "data-ended": death.ended || "open" },
    el("h3", {}, icon(death.ended === "whole" ? "up" : death.ended ? "down" : "recovering"), `${name} `,
      el("span", { class: "outcome" }, outcome)),
    death.reason ? el("p", { class: "facts" }, death.reason) : null,
    el("div", { class: "pieces", "aria-hidden": "true" }, ...pieces),
    el("ol", { class: "steps plain" }, ...steps));
}

function fill(table, caption, head, rows, empty) {
  const cells = (names, row) => row.map((value, i) => el(i === 0 ? "th" : "td",
    { scope: i === 0 ? "row" : null, class: names[i].right ? "number" : null }, String(value)));
  table.replaceChildren(el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col", class: h.right ? "number" : null }, h.name)))),
    el("tbody", {}, ...(rows.length ? rows.map((row) => el("tr", {}, ...cells(head, row)))
      : [el("tr", {}, el("td", { colspan: head.length }, empty))])));
}
