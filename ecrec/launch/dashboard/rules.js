"use strict";
// What the page computes, without a document: tests call these by their names.

const VERSION = 1;
const SPAN_S = 600;

/** Points of before, and those of now: a scheduler that was started again begins its series anew. */
function mergeSeries(before, now, span) {
  const out = {};
  for (const name of Object.keys(now)) out[name] = [];
  if (!now.at || !now.at.length) return before && before.at ? before : now;
  const first = now.at[0], last = now.at[now.at.length - 1];
  const add = (from, keep) => from.at.forEach((at, i) => {
    if (keep(at)) for (const name of Object.keys(out)) out[name].push(from[name] ? from[name][i] : null);
  });
  if (before && before.at) add(before, (at) => at < first && at >= last - span);
  add(now, (at) => at >= last - span);
  return out;
}

/** 1234567 -> "1.23 M"; three digits that count. */
function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  for (const [unit, factor] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (size >= factor * 0.9995) return `${digits(value / factor)} ${unit}`;
  }
  if (Number.isInteger(value)) return String(value);
  return size < 0.001 ? value.toExponential(1) : digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
}

/** 1536 -> "1.5 KiB" */
function bytes(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  let unit = 0;
  while (Math.abs(value) >= 1023.95 && unit < 5) { value /= 1024; unit += 1; }
  return `${unit ? value.toFixed(1) : value.toFixed(0)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

function fixed(value, places) {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(places);
}

/** 0.0421 -> "42 ms", 4.21 -> "4.2 s", 75 -> "1 min 15 s" */
function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  seconds = Math.max(0, seconds);
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 2880) return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
  return `${Math.round(minutes / 1440)} days`;
}

/** The time of a day; of another day than `now`, with its date. `places`: digits behind the second. */
function clockTime(at, now, places = 0) {
  if (at === null || at === undefined) return "time not known";
  const date = new Date(at * 1000), two = (n) => String(n).padStart(2, "0");
  let text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (places) text += `.${String(date.getMilliseconds()).padStart(3, "0").slice(0, places)}`;
  const same = date.toDateString() === new Date(now * 1000).toDateString();
  return same ? text : `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${text}`;
}

const STEPS = {
  heard: "last heard", noticed: "declared down", settled: "survivors agreed",
  replaced: "a spare took over", rows: "all rows rebuilt", whole: "whole again",
  again: "died again", lost: "data lost", reinitialised: "lost rows began anew",
};

/** The steps of a death with the time since the first known one, and since the step before; a step that is going on. */
function storyOf(death, now) {
  const known = death.steps.filter((step) => step.at !== null);
  const begin = known.length ? known[0].at : null;
  let before = null;
  const steps = death.steps.map((step) => {
    const out = {
      name: step.step, label: STEPS[step.step] || step.step, at: step.at,
      since: step.at === null || begin === null ? null : Math.max(0, step.at - begin),
      took: step.at === null || before === null ? null : Math.max(0, step.at - before),
    };
    if (step.at !== null) before = step.at;
    return out;
  });
  const open = !death.ended;
  const end = open ? now : before;
  return {
    steps, open, begin,
    total: begin === null || end === null ? null : Math.max(0, end - begin),
    going: open && before !== null ? Math.max(0, now - before) : null,
  };
}

/** When a server was missing: [from, to] of each story whose times are known. */
function missing(deaths, now) {
  return deaths.map((death) => {
    const known = death.steps.filter((step) => step.at !== null).map((step) => step.at);
    return known.length ? [known[0], death.ended ? known[known.length - 1] : now] : null;
  }).filter((span) => span !== null);
}

/** Lowest and highest of what is known; null for nothing. */
function extent(values) {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  return known.length ? [Math.min(...known), Math.max(...known)] : null;
}

/** What a plot reaches over: never flat, so that there is room for a line. */
function range(found, fromZero) {
  if (found === null) return [0, 1];
  let [low, high] = found;
  if (fromZero) low = Math.min(0, low);
  const room = Math.max(Math.abs(low), Math.abs(high), 1e-9) * 0.05;
  return high - low > room * 0.02 ? [low, high] : [fromZero ? low : low - room, high + room];
}

/** Seconds that a line shows: all there is, in steps, so that a short run is not a spike at the edge. */
function spanOf(at, now) {
  const age = at && at.length ? now - at[0] : 0;
  return [60, 120, 300].find((span) => age <= span) || SPAN_S;
}

/** The end of an endpoint is what tells it from others. */
function endpointText(endpoint, most) {
  const plain = endpoint.replace(/^(tcp|ipc):\/\//, "");
  return plain.length > most ? `…${plain.slice(-(most - 1))}` : plain;
}

/** Pieces of a line: it breaks where a value is missing, or where nobody looked for more than `gap` seconds. */
function pieces(at, values, gap) {
  const out = [];
  let piece = [];
  at.forEach((time, i) => {
    const cut = values[i] === null || (piece.length && time - piece[piece.length - 1][0] > gap);
    if (cut && piece.length) { out.push(piece); piece = []; }
    if (values[i] !== null) piece.push([time, values[i]]);
  });
  if (piece.length) out.push(piece);
  return out;
}

/** How a server is, in a word; what stands in the way comes first. */
function condition(shard) {
  if (shard.state !== "up") return shard.epoch === 0 ? "not started" : shard.state;
  if (shard.suspected) return "suspected";
  return shard.leaving ? "leaving" : "up";
}

/** What stands between the page and the truth. `silent`: seconds since the page's own server answered. */
function silence(doc, failingSince, now) {
  if (failingSince !== null) {
    return `This page has had no answer since ${clockTime(failingSince, now)}. It keeps asking. ` +
      "Training does not need it, nor the scheduler.";
  }
  if (doc && doc.version !== VERSION) return "The server of this page was changed: load the page again.";
  if (doc && doc.heard_at !== null && doc.at - doc.heard_at > 3) {
    return `The scheduler has not answered since ${clockTime(doc.heard_at, now)}. What is shown is from then. ` +
      "Training goes on without it.";
  }
  return "";
}
