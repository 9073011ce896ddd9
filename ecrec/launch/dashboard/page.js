// The page's life: it asks once a second, shows what came, and says since when nothing comes.

const state = { doc: null, series: null, failingSince: null, paused: false, drawn: {} };
const $ = (id) => document.getElementById(id);
const TIMEOUT_MS = 5000;

/** Draw a part only when what it shows has changed: who reads or selects it is not disturbed. */
function when(name, what, draw) {
  const key = JSON.stringify(what);
  if (state.drawn[name] === key) return;
  state.drawn[name] = key;
  draw();
}

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function now() { return Date.now() / 1000; }

function show(doc) {
  const many = doc.groups && doc.groups.length > 1;
  setText("verdict", doc.verdict.text);
  $("verdict").dataset.kind = doc.verdict.kind;
  setText("source", doc.source);
  document.title = `${{ whole: "✓", reduced: "!", lost: "✗" }[doc.verdict.kind] || "…"} ecrec: ${doc.verdict.text}`;
  if (!doc.shards) return;
  setText("cluster", doc.cluster ? `cluster ${doc.cluster.slice(0, 8)}` : "");
  state.series = mergeSeries(state.series, doc.series, SPAN_S);
  const spans = missing(doc.deaths, doc.at);
  const draw = (...figure) => chart(...figure);
  $("charts").replaceChildren(
    draw("Examples a second", [["examples_per_s", ""]], short, state.series, spans, doc.at, true),
    draw("Loss", [["loss", ""]], (v) => fixed(v, 4), state.series, spans, doc.at, false),
    draw("AUC of the last examples", [["auc", ""]], (v) => fixed(v, 4), state.series, spans, doc.at, false),
    draw("Bytes a second, workers", [["pulled_bytes_per_s", "pulled"], ["pushed_bytes_per_s", "pushed"]],
      bytes, state.series, spans, doc.at, true));
  when("datasets", doc.datasets, () => $("datasets").replaceChildren(...doc.datasets.map((data) => el("div", { class: "dataset" },
    progress(`data ${data.name}`, data.end ? data.trained / data.end : 0),
    el("span", { class: "facts" }, `${short(data.trained)} of ${short(data.end)} examples${data.repeated ? `, ${short(data.repeated)} again` : ""}`)))));
  const shards = doc.shards.map((shard) => ({ ...shard, heard_s: 0 }));
  when("groups", [doc.groups, shards], () => $("groups").replaceChildren(...doc.groups.map((group) => groupOf(group, doc, !many))));
  when("spares", doc.spares, () => $("spares").replaceChildren(...spares(doc)));
  $("no-deaths").hidden = doc.deaths.length > 0;
  const open = doc.deaths.some((death) => !death.ended);
  when("deaths", [doc.deaths, open ? doc.at : 0, open ? shards : 0], () => $("deaths").replaceChildren(
    ...doc.deaths.slice().reverse().map((death) => story(death, doc, many))));
  const right = (name) => ({ name, right: true });
  when("workers", doc.workers, () => fill($("workers"), "Workers",
    [{ name: "worker" }, right("examples/s"), right("loss"), right("AUC"), right("steps"), right("examples"), right("waited"), right("longest pause")],
    doc.workers.map((w) => [w.worker, short(w.examples_per_s), fixed(w.loss, 4), fixed(w.auc, 4), short(w.steps), short(w.examples),
      duration(w.waited_s), duration(w.longest_pause_s)]), "No worker is heard."));
  when("tables", doc.tables, () => {
    setText("tables-count", `(${doc.tables_count})`);
    fill($("tables"), "Tables", [{ name: "table" }, right("rows"), right("floats"), { name: "code" }, { name: "optimizer" }],
      doc.tables.map((t) => [t.name, t.rows.toLocaleString("en"), t.dim, t.code, t.optimizer]), "There are no tables yet.");
  });
  when("events", doc.events, () => fill($("events"), "Last events",
    [{ name: "when" }, { name: "server" }, right("life"), { name: "event" }, { name: "why" }],
    doc.events.slice().reverse().map((e) => [clockTime(e.at, doc.at, 2), `ps ${e.shard}`, e.epoch, e.event, e.reason]), "Nothing has happened."));
  const saved = doc.checkpoint;
  setText("checkpoint", saved ? `Checkpoint ${saved.checkpoint} to ${saved.url}: ${saved.state}${saved.error ? `: ${saved.error}` : ""}`
    : "No checkpoint was asked for.");
}

/** How old what is shown is. What a screen reader is told changes only when that begins or ends. */
function tell() {
  const trouble = silence(state.doc, state.failingSince, now());
  setText("silence", trouble);
  const since = state.failingSince ?? (trouble && state.doc ? state.doc.heard_at : null);
  setText("silent-for", since === null ? "" : `for ${duration(now() - since)}`);
  document.body.dataset.live = state.paused ? "paused" : trouble ? "silent" : "live";
  if (state.doc) {
    const at = clockTime(state.doc.heard_at ?? state.doc.at, now());
    setText("as-of", state.paused ? `paused at ${at}` : trouble ? `as of ${at}` : `live, ${at}`);
  } else if (state.failingSince !== null) setText("as-of", "no answer");
}

async function look() {
  const asked = now();
  try {
    const answer = await fetch("dashboard.json", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const doc = await answer.json();
    state.failingSince = null;
    if (state.paused) return;
    state.doc = doc;
    if (doc.version === VERSION) show(doc);
  } catch (error) {
    state.failingSince ??= state.doc ? state.answered : asked;
    return;
  } finally {
    tell();
  }
  state.answered = now();
}

async function live() {
  for (;;) {
    if (!state.paused) await look();
    tell();
    await new Promise((done) => setTimeout(done, 1000 * (state.doc ? state.doc.every_s : 1)));
  }
}

$("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  $("pause").setAttribute("aria-pressed", String(state.paused));
  tell();
});
live();
