"use strict";
// The atlas: every page is drawn from ATLAS.data, which the scripts of data/ register. Nothing is fetched.

const ATLAS = {
  data: null,
  said: null,
  towers: {},
  add(data) { this.data = data; },
  diffs(said) { this.said = said; },
  tower(wiring, svg) { this.towers[wiring] = svg; },
  start() { start(); },
};

// helpers

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) element.append(child);
  return element;
}

const by = (id) => ATLAS.data.models.find((one) => one.id === id);
const number = (n) => (n === null || n === undefined ? "–" : Number(n).toLocaleString("en-US"));

function short(n) {
  if (n === null || n === undefined) return "–";
  return scaled(n, [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]);
}

const flop = (n) => `${scaled(n, [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]])}FLOP`;

function scaled(n, units) {
  for (const [size, unit] of units) if (n >= size) return `${+(n / size).toFixed(2)} ${unit}`;
  return String(n);
}

function tokens(n) {
  if (n === null || n === undefined) return "–";
  if (n % (1024 * 1024) === 0) return `${n / (1024 * 1024)}M`;
  return n % 1024 === 0 && n >= 1024 ? `${n / 1024}K` : number(n);
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  let x = n;
  while (x >= 1024 && i < units.length - 1) { x /= 1024; i += 1; }
  return `${+x.toPrecision(3)} ${units[i]}`;
}

const link = (id, text) => h("a", { href: `#/model/${id}` }, text || id);
const table = (head, rows, kind) => h("div", { class: "scroll" }, h("table", { class: kind }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
const select = (label, options, value, change) => h("label", {}, label, h("select", { onchange: (e) => change(e.target.value) },
  options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
// what stands between backticks, one or two, as code
const words = (text) => text.replaceAll("``", "`").split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
const source = (key) => {
  if (!key) return h("span", { class: "note" }, "no source named");
  return h("abbr", { title: ATLAS.data.sources[key.split("#")[0]] || key }, key);
};

// work of a model, by the polynomials that the op table counts: equal to `llamagen cost`

const evaluate = (terms, sizes) => terms.reduce((sum, [count, ...names]) => sum + names.reduce((x, name) => x * sizes[name], count), 0);

function cost(wiring, load) {
  const one = ATLAS.data.wirings[wiring];
  const wide = load.dtype === "float32" ? 4 : 2;
  const flops = (sizes) => ["matmul", "attention", "head"].reduce((sum, kind) => sum + evaluate(one.work[kind], sizes), 0);
  const weights = one.weights[load.dtype];
  const cache = load.batch * load.context * one.cache_values * (load.kept === "8 bit" ? 1 : wide);
  const sizes = { B: load.batch, S: 1, P: load.context };
  // counted for values of 16 bit; wider ones are not offered beside a device
  const live = wide === 2 ? Math.max(...one.work.live.map((level) => evaluate(level, sizes))) : 0;
  return {
    weights, cache, live, resident: weights + cache + live,
    prefill: flops({ B: load.batch, S: load.context, P: 0 }),
    decode: flops(sizes),
  };
}

// pages

const PAGES = {
  "": timeline, models, model, compare, cost: costs, lineage, claims, ops, op, rules, rule,
};

function timeline() {
  const news = ATLAS.data.releases;
  const families = [...new Set(news.map((one) => one.family))];
  const called = (family) => (family === "llama" ? "LLaMA" : family);
  return [
    h("h1", {}, `How ${families.map(called).join(", ") || "LLaMA"} changed, release by release`),
    h("p", { class: "lead" }, "What no earlier release had stands in the coloured labels. What is often said wrongly is below each release, with what its primary sources say."),
    h("ol", { class: "timeline" }, news.map((one) => h("li", {}, h("article", { class: "card" },
      h("h2", {}, `${called(one.family)} ${one.generation}`, h("time", { datetime: one.date }, one.date)),
      h("ul", { class: "chips", "aria-label": "new" }, one.techniques.length ? one.techniques.map((t) => h("li", {}, t)) : h("li", { class: "none" }, "nothing new in the architecture")),
      h("dl", { class: "facts" },
        h("dt", {}, "sizes"), h("dd", {}, one.sizes.join(", ")),
        h("dt", {}, "architecture"), h("dd", {}, one.architecture),
        h("dt", {}, "context"), h("dd", {}, `${one.context} tokens`),
        h("dt", {}, "models"), h("dd", {}, one.ids.map((id, i) => [i ? ", " : "", link(id)])),
      ),
      one.claims.length ? h("details", {}, h("summary", {}, `often said about it (${one.claims.length})`), one.claims.map(claimed)) : null,
    )))),
  ];
}

function claimed(key) {
  const one = ATLAS.data.claims[key];
  return h("div", {}, h("h3", {}, `${key}. “${one.claim}”`),
    h("p", {}, h("span", { class: `verdict ${one.verdict}` }, `${one.verdict}: `), one.fact, " ", one.sources.map((s) => [source(s), " "])),
    h("p", { class: "note" }, h("code", {}, one.see)));
}

// of the list; a permalink has it
const state = {};

function models(rest) {
  const asked = new URLSearchParams((rest || "").split("?")[1] || "");
  Object.assign(state, { search: "", generation: "", kind: "", sort: "released", down: false }, Object.fromEntries(asked));
  state.down = state.down === true || state.down === "true";
  const columns = [
    ["id", "model", (m) => link(m.id)], ["released", "released", (m) => m.released || "–"],
    ["params", "parameters", (m) => short(m.params)], ["active_params", "a token uses", (m) => short(m.active_params)],
    ["num_layers", "layers", (m) => number(m.num_layers)], ["hidden_size", "hidden", (m) => number(m.hidden_size)],
    ["attention", "attention", (m) => (m.num_heads ? `${m.attention} ${m.num_heads}${m.attention === "GQA" ? `:${m.num_kv_heads}` : ""}` : "–")],
    ["vocab_size", "vocabulary", (m) => number(m.vocab_size)], ["context", "context", (m) => tokens(m.context)],
    ["status", "status", (m) => m.status || "–"],
  ];
  const numeric = new Set(["params", "active_params", "num_layers", "hidden_size", "vocab_size", "context"]);
  const body = h("tbody", {});
  const count = h("p", { class: "note", "aria-live": "polite" });
  const shown = () => {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = ATLAS.data.models.filter((m) => {
      const text = `${m.id} ${m.title} ${m.licence} ${m.repo} ${m.released}`.toLowerCase();
      const images = (m.modalities_in || []).includes("image");
      const kind = { "": true, moe: m.moe_layers > 0, images, text: !images }[state.kind];
      return words.every((w) => text.includes(w)) && (!state.generation || m.generation === state.generation) && kind;
    });
    const order = state.down ? -1 : 1;
    rows.sort((x, y) => {
      const [a, b] = [x[state.sort], y[state.sort]];
      if (a === null || a === undefined) return 1;
      if (b === null || b === undefined) return -1;
      return order * (numeric.has(state.sort) ? a - b : String(a).localeCompare(String(b)));
    });
    body.replaceChildren(...rows.map((m) => h("tr", {}, columns.map(([key, , cell]) => h("td", { class: numeric.has(key) ? "num" : null }, cell(m))))));
    const kept = Object.entries(state).filter(([key, value]) => value && !(key === "sort" && value === "released"));
    const query = kept.length ? `/?${new URLSearchParams(kept)}` : "";
    history.replaceState(null, "", `#/models${query}`);
    for (const th of head) {
      const by = th.dataset.key === state.sort ? (state.down ? "descending" : "ascending") : "none";
      th.setAttribute("aria-sort", by);
    }
    count.textContent = `${rows.length} of ${ATLAS.data.models.length} models`;
  };
  const head = columns.map(([key, title]) => h("th", { class: numeric.has(key) ? "num" : null, scope: "col", "data-key": key }, h("button", {
    type: "button",
    onclick: () => { state.down = state.sort === key ? !state.down : numeric.has(key); state.sort = key; shown(); },
  }, title)));
  shown();
  const generations = [...new Set(ATLAS.data.models.map((m) => m.generation))];
  return [
    h("h1", {}, "Every model of the family"),
    h("div", { class: "tools" },
      h("label", {}, "search", h("input", { type: "search", value: state.search, oninput: (e) => { state.search = e.target.value; shown(); } })),
      select("generation", [["", "all"], ...generations.map((g) => [g, g])], state.generation, (v) => { state.generation = v; shown(); }),
      select("kind", [["", "all"], ["text", "text"], ["images", "takes images"], ["moe", "mixture of experts"]], state.kind, (v) => { state.kind = v; shown(); }),
    ),
    count,
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), body)),
  ];
}

function model(id) {
  const m = by(id);
  if (!m) return missing(id);
  const w = ATLAS.data.wirings[m.wiring];
  const base = m.derived_from.find((id) => by(id) && by(id).wiring) || nearest(m);
  const sections = {};
  for (const [path, value, key] of m.values) {
    const [section] = path.split(".");
    (sections[section] = sections[section] || []).push([path.slice(section.length + 1), value, key]);
  }
  const disputed = new Map(m.disputes.map((d) => [d.path, d]));
  const unsure = new Map(m.uncertain.map((d) => [d.path, d]));
  return [
    h("h1", {}, m.title || m.id),
    h("p", { class: "lead" }, h("code", {}, m.id), m.released ? ` · ${m.status} ${m.released}` : "", m.licence ? ` · ${m.licence}` : ""),
    h("div", { class: "grid" }, [
      ["parameters", m.params === null ? m.published_parameters || "–" : short(m.params), m.params], ["a token uses", short(m.active_params), m.active_params],
      ["context", tokens(m.context), m.context], ["cache a token, 16 bit", m.kv_bytes_per_token ? bytes(m.kv_bytes_per_token) : "–", m.kv_bytes_per_token],
    ].map(([name, text, exact]) => h("div", { class: "card" }, h("p", {}, name), h("p", { class: "big", title: number(exact) }, text)))),
    h("p", {}, base ? [h("a", { href: `#/compare/${base}..${m.id}` }, `What changed since ${base}`), " · "] : "", w ? h("a", { href: `#/cost/${m.id}` }, "What it costs to run") : ""),
    m.doc ? h("p", {}, words(m.doc)) : null,
    m.derived_how ? h("p", { class: "note" }, `From ${m.derived_from.join(", ")}: ${m.derived_how}`) : null,
    w ? [h("h2", {}, "Where the parameters are"), treemap(w), h("h2", {}, "The model as boxes"), tower(m.wiring, m.id)] : h("p", { class: "note" }, "No wiring is recorded of it."),
    m.benchmarks.length ? [h("h2", {}, "Results, as its publisher states them"), h("p", { class: "note" }, "Nothing of this was measured here: ", source(m.benchmarks_source)),
      results(m.benchmarks)] : null,
    h("h2", {}, "Facts and their sources"),
    Object.entries(sections).map(([section, rows]) => h("details", { open: section === "hyperparameters" || !sections.hyperparameters }, h("summary", {}, `${section} (${rows.length})`),
      table(["value", "", "source"].map((t) => h("th", { scope: "col" }, t)), rows.map(([path, value, key]) => {
        const whole = `${section}.${path}`;
        const dispute = disputed.get(whole);
        return h("tr", {}, h("td", {}, path), h("td", {}, h("code", {}, value),
          dispute ? h("p", { class: "note" }, h("strong", {}, "disputed: "), `${dispute.choice} was chosen, ${dispute.reason} (${dispute.claims.map((c) => `${c.value}, says ${c.source}`).join("; ")})`) : null,
          unsure.has(whole) ? h("p", { class: "note" }, h("strong", {}, "uncertain: "), unsure.get(whole).why) : null,
        ), h("td", {}, source(key)));
      }), "values"))),
  ];
}

function results(list) {
  const columns = [["name", "benchmark"], ["score", "score", "num"], ["shots", "shots", "num"], ["metric", "metric"]].filter(([key]) => list.some((b) => b[key] !== null));
  return table(columns.map(([, title, kind]) => h("th", { scope: "col", class: kind }, title)),
    list.map((b) => h("tr", {}, columns.map(([key, , kind]) => h("td", { class: kind }, b[key] === null ? "–" : String(b[key]))))), "results");
}

function nearest(m) {
  const list = ATLAS.data.models.filter((o) => o.wiring && o.released && m.released && o.released < m.released && o.params && m.params);
  list.sort((x, y) => Math.abs(Math.log(x.params / m.params)) - Math.abs(Math.log(y.params / m.params)));
  return list.length ? list[0].id : null;
}

// squarified treemap (Bruls, Huizing, van Wijk 2000): rectangles of `items` in a box, as square as can be
function squarify(items, box) {
  let rest = [...items].sort((a, b) => b.size - a.size);
  let { x, y, w, h: tall } = box;
  const scale = (w * tall) / rest.reduce((sum, one) => sum + one.size, 0);
  const laid = [];
  while (rest.length) {
    const side = Math.min(w, tall);
    let [row, best] = [[], Infinity];
    for (const one of rest) {
      const next = [...row, one.size * scale];
      const area = next.reduce((sum, a) => sum + a, 0);
      const worst = Math.max(...next.map((a) => Math.max((side * side * a) / (area * area), (area * area) / (side * side * a))));
      if (worst > best) break;
      [row, best] = [next, worst];
    }
    const thick = row.reduce((sum, a) => sum + a, 0) / side;
    let at = 0;
    row.forEach((area, i) => {
      const long = area / thick;
      laid.push({ ...rest[i], box: w >= tall ? { x, y: y + at, w: thick, h: long } : { x: x + at, y, w: long, h: thick } });
      at += long;
    });
    if (w >= tall) [x, w] = [x + thick, w - thick];
    else [y, tall] = [y + thick, tall - thick];
    rest = rest.slice(row.length);
  }
  return laid;
}

function treemap({ components, parameters }) {
  const total = components.reduce((sum, [, count]) => sum + count, 0);
  const parts = components.filter(([, count]) => count > 0);
  const groups = new Map();
  for (const [path, times, count] of parameters) {
    const part = path.replace(/\.(weight|bias)$/, "");
    const cut = part.lastIndexOf(".");
    const name = (cut < 0 ? part : part.slice(0, cut)).replace(/^(language_model\.)?model\./, "");
    const [key, leaf] = cut < 0 || name === "model" ? [part.slice(cut + 1), part.slice(cut + 1)] : [name, part.slice(cut + 1)];
    const group = groups.get(key) || { key, size: 0, leaves: [] };
    group.size += times * count;
    group.leaves.push({ path, leaf, times, size: times * count });
    groups.set(key, group);
  }
  const WIDE = 240, HIGH = 100;
  const percent = (box) => `left:${(100 * box.x) / WIDE}%;top:${(100 * box.y) / HIGH}%;width:${(100 * box.w) / WIDE}%;height:${(100 * box.h) / HIGH}%`;
  const tiles = squarify([...groups.values()], { x: 0, y: 0, w: WIDE, h: HIGH }).flatMap((group, i) =>
    squarify(group.leaves, group.box).map((one) => {
      const many = one.times > 1 ? `${one.times} × ${number(one.size / one.times)}` : number(one.size);
      const roomy = one.box.w > 24 && one.box.h > 9;
      return h("div", { style: `${percent(one.box)};background:var(--c${i % 8})`, title: `${one.path}: ${many} parameters, ${((100 * one.size) / total).toFixed(2)} %` },
        roomy ? h("span", {}, one.leaf, one.leaf === group.key ? null : h("small", {}, group.key), h("small", {}, short(one.size))) : null);
    }));
  return [
    h("div", { class: "map", "aria-hidden": "true" }, tiles),
    table(["part", "parameters", "share", "a token uses"].map((t, i) => h("th", { scope: "col", class: i ? "num" : null }, t)),
      parts.map(([name, count, active]) => h("tr", {}, h("td", {}, name), h("td", { class: "num" }, number(count)), h("td", { class: "num" }, `${((100 * count) / total).toFixed(1)} %`), h("td", { class: "num" }, number(active))))),
  ];
}

function tower(wiring, label) {
  const place = h("div", { class: "tower", tabindex: "0", role: "region", "aria-label": `the blocks of ${label}` }, "drawing …");
  const draw = () => { place.innerHTML = ATLAS.towers[wiring]; };
  if (ATLAS.towers[wiring]) draw();
  else document.head.append(h("script", { src: `data/towers/${wiring}.js`, onload: draw, onerror: () => { place.textContent = "its picture is missing"; } }));
  return place;
}

function compare(rest) {
  const [first, second] = (rest || "").split("..");
  const a = by(first) || by("llama/2/7b") || ATLAS.data.models[0];
  const b = by(second) || by("llama/3/8b") || ATLAS.data.models[1] || a;
  const ids = ATLAS.data.models.map((m) => [m.id, m.id]);
  const go = (x, y) => { location.hash = `#/compare/${x}..${y}`; };
  const said = sayings(a, b);
  const left = new Map(a.values.map(([p, v, s]) => [p, [v, s]]));
  const right = new Map(b.values.map(([p, v, s]) => [p, [v, s]]));
  const paths = [...new Set([...left.keys(), ...right.keys()])];
  const changed = paths.filter((p) => (left.get(p) || [])[0] !== (right.get(p) || [])[0]);
  const wiring = (p) => /^(hyperparameters|constants|patterns)\./.test(p);
  const cell = (end, of) => h("td", { "data-of": of }, end ? [h("code", {}, end[0]), " ", h("span", { class: "note" }, source(end[1]))] : "–");
  const values = (list) => table(["value", a.id, b.id].map((t) => h("th", { scope: "col" }, t)), list.map((p) => h("tr", {}, h("td", {}, p), cell(left.get(p), a.id), cell(right.get(p), b.id))), "values");
  return [
    h("h1", {}, "Compare two models"),
    h("div", { class: "tools" }, select("from", ids, a.id, (v) => go(v, b.id)), h("button", { type: "button", onclick: () => go(b.id, a.id), "aria-label": "exchange both" }, "⇄"), select("to", ids, b.id, (v) => go(a.id, v))),
    h("section", { class: "card", "aria-label": "summary" }, h("h2", { style: "margin-top:0" }, `${a.id} → ${b.id}`), said.length ? h("ul", { class: "said" }, said.map((s) => h("li", {}, words(s)))) : h("p", {}, "No wiring is recorded of one of them.")),
    h("p", { class: "note" }, "In a terminal: ", h("code", {}, `llamagen diff ${a.id} ${b.id} --full`)),
    h("h2", {}, `Values that differ (${changed.length} of ${paths.length})`),
    values(changed.filter(wiring)),
    h("details", {}, h("summary", {}, `release, training, tokenizer (${changed.filter((p) => !wiring(p)).length})`), values(changed.filter((p) => !wiring(p)))),
    a.wiring && b.wiring ? [h("h2", {}, "Side by side"), h("div", { class: "two" }, [a, b].map((m) => h("div", {}, h("h3", {}, link(m.id)), tower(m.wiring, m.id))))] : null,
  ];
}

function sayings(a, b) {
  if (a.wiring && a.wiring === b.wiring) return ["the same architecture"];
  const indices = ATLAS.said.pairs[`${a.wiring} ${b.wiring}`];
  return indices ? indices.map((i) => ATLAS.said.sentences[i]) : [];
}

const load = { context: 8192, batch: 1, dtype: "bfloat16", kept: "as activations", device: "h100-sxm", count: 1 };

function costs(rest) {
  const [id, query] = (rest || "").split("?");
  for (const [key, value] of new URLSearchParams(query || "")) load[key] = key in load && typeof load[key] === "number" ? Math.max(1, Number(value) || 1) : value;
  const wired = ATLAS.data.models.filter((m) => m.wiring);
  const m = by(id) && by(id).wiring ? by(id) : by("llama/3.1/8b") || wired[0];
  const w = ATLAS.data.wirings[m.wiring];
  const device = ATLAS.data.devices[load.device] || Object.values(ATLAS.data.devices)[0];
  const go = (change) => {
    const next = { ...load, ...change };
    location.hash = `#/cost/${change.id || m.id}?${new URLSearchParams(Object.fromEntries(Object.keys(load).map((k) => [k, next[k]])))}`;
  };
  const whole = (label, key, step) => h("label", {}, label, h("input", { type: "number", min: 1, step, value: load[key], onchange: (e) => go({ [key]: Math.max(1, Math.round(Number(e.target.value) || 1)) }) }));
  const c = cost(m.wiring, load);
  const memory = device.memory_bytes * load.count;
  const fits = c.resident <= memory;
  const tp = Math.max(...w.degrees.filter((degree) => load.count % degree === 0));
  const stages = load.count / tp;
  const card = (name, text, exact) => h("div", { class: "card" }, h("p", {}, name), h("p", { class: "big", title: exact }, text));
  const beyond = m.context && load.context > m.context;
  return [
    h("h1", {}, "What it costs to run"),
    h("div", { class: "tools" },
      select("model", wired.map((o) => [o.id, o.id]), m.id, (v) => go({ id: v })),
      whole("tokens a sequence", "context", 1), whole("sequences", "batch", 1),
      select("weights", Object.keys(w.weights).map((k) => [k, k]), load.dtype, (v) => go({ dtype: v })),
      select("keys and values", ["as activations", "8 bit"].map((k) => [k, k]), load.kept, (v) => go({ kept: v })),
      select("device", Object.entries(ATLAS.data.devices).map(([k, d]) => [k, d.title]), load.device, (v) => go({ device: v })),
      whole("devices", "count", 1),
    ),
    beyond ? h("p", { class: "warn" }, `${number(load.context)} tokens are beyond the context of this model, ${number(m.context)}.`) : null,
    h("div", { class: "grid three", id: "numbers" },
      card("weights", bytes(c.weights), number(c.weights)), card("cache", bytes(c.cache), number(c.cache)),
      card("together, with activations", bytes(c.resident), number(c.resident)),
      card("a prompt of that length", flop(c.prefill), number(c.prefill)), card("one more token", flop(c.decode), number(c.decode)),
      card(`${load.count} × ${device.title}`, fits ? "fits" : `does not fit: ${bytes(memory)}`, number(memory)),
    ),
    h("p", { class: "note" }, stages === 1
      ? `${load.count === 1 ? "One device holds it whole" : `Each layer is cut over the ${load.count} devices (tensor parallel)`}.`
      : stages <= w.layers.length
        ? `Each layer is cut over ${tp} devices (tensor parallel: heads and sizes allow ${w.degrees.join(", ")}), and the layers over ${stages} pipeline stages.`
        : `${load.count} devices cannot share it: heads and sizes allow ${w.degrees.join(", ")} for a layer, and there are ${w.layers.length} layers.`,
    " How long it takes at least: ", h("code", {}, `llamagen cost ${m.id} --context ${load.context} --batch ${load.batch} --dtype ${load.dtype} --device ${load.device}${tp > 1 ? ` --tp ${tp}` : ""}${stages > 1 ? ` --pp ${stages}` : ""}${load.kept === "8 bit" ? " --cache-dtype float8" : ""}`)),
    h("h2", {}, "Cache over the context, 16 bit"),
    curves(m),
  ];
}

function curves(chosen) {
  const ids = [...new Set([chosen.id, "llama/2/7b", "llama/3.1/8b", "llama/3.1/405b", "llama/4/scout"])].filter((id) => by(id) && by(id).wiring);
  const xs = Array.from({ length: 11 }, (_, i) => 1024 * 2 ** i);
  const place = h("div", { role: "img", "aria-label": `cache of ${ids.join(", ")} over the context` });
  const style = getComputedStyle(document.documentElement);
  const colour = (i) => style.getPropertyValue(`--c${i % 8}`).trim();
  const ink = style.getPropertyValue("--soft").trim();
  const grid = { stroke: style.getPropertyValue("--line").trim(), width: 1 };
  const rows = ids.map((id) => xs.map((x) => x * ATLAS.data.wirings[by(id).wiring].cache_values * 2));
  queueMicrotask(() => {
    const plot = new uPlot({
      width: Math.min(place.clientWidth || 800, 1100), height: 320,
      scales: { x: { time: false, distr: 3, log: 2 }, y: { distr: 3, log: 2 } },
      axes: [
        { stroke: ink, grid, values: (_, vs) => vs.map((v) => (v && xs.includes(v) ? tokens(v) : "")) },
        { stroke: ink, grid, size: 80, values: (_, vs) => vs.map((v, i) => (v && i % 2 === 0 ? bytes(v) : "")) },
      ],
      series: [{ label: "tokens", value: (_, v) => (v === null ? "–" : number(v)) }, ...ids.map((id, i) => ({ label: id, stroke: colour(i), width: 2, value: (_, v) => (v === null ? "–" : bytes(v)) }))],
    }, [xs, ...rows], place);
    addEventListener("resize", () => plot.setSize({ width: Math.min(place.clientWidth || 800, 1100), height: 320 }));
  });
  return place;
}

function lineage() {
  const below = new Map();
  for (const m of ATLAS.data.models) {
    const above = m.derived_from[0] || (by(m.extends) ? m.extends : null);
    if (!below.has(above)) below.set(above, []);
    below.get(above).push(m);
  }
  const branch = (list) => h("ul", {}, list.map((m) => h("li", {}, link(m.id), " ", h("span", { class: "note" }, `${m.released || m.status || ""}${m.derived_how ? `: ${m.derived_how}` : ""}`), below.has(m.id) ? branch(below.get(m.id)) : null)));
  const generations = new Map();
  for (const m of below.get(null) || []) {
    if (!generations.has(m.generation)) generations.set(m.generation, []);
    generations.get(m.generation).push(m);
  }
  return [
    h("h1", {}, "What was made from what"),
    h("p", { class: "lead" }, "A model stands below the one that it was trained from. Where the sources do not say how, nothing is said."),
    [...generations].map(([generation, list]) => h("section", {}, h("h2", {}, /^[0-9]/.test(generation) ? `LLaMA ${generation}` : generation), h("div", { class: "tree" }, branch(list)))),
  ];
}

function claims() {
  const disputes = new Map();
  for (const m of ATLAS.data.models) for (const d of m.disputes) {
    const key = JSON.stringify(d);
    if (!disputes.has(key)) disputes.set(key, [d, []]);
    disputes.get(key)[1].push(m.id);
  }
  return [
    h("h1", {}, "What the internet gets wrong"),
    h("p", { class: "lead" }, "Claims that are repeated in many places, beside what primary sources say; below, values that primary sources themselves disagree on."),
    Object.keys(ATLAS.data.claims).map((key) => h("div", { class: "card", style: "margin-bottom:.8rem" }, claimed(key))),
    h("h2", {}, `Disputed values (${disputes.size})`),
    table(["value", "claims", "chosen", "models"].map((t) => h("th", { scope: "col" }, t)), [...disputes.values()].map(([d, ids]) => h("tr", {},
      h("td", {}, d.path), h("td", {}, d.claims.map((c) => h("div", {}, `${c.value}, `, source(c.source)))), h("td", {}, `${d.choice}: ${d.reason}`), h("td", {}, ids.slice(0, 3).map((id, i) => [i ? ", " : "", link(id)]), ids.length > 3 ? ` and ${ids.length - 3} more` : "")))),
  ];
}

function ops() {
  return [
    h("h1", {}, "The ops"),
    h("p", { class: "lead" }, "A model is equations over these. Each has one meaning in PyTorch, ONNX and float64."),
    table(["op", "what it does", "formula"].map((t) => h("th", { scope: "col" }, t)), ATLAS.data.ops.map((o) => h("tr", {}, h("td", {}, h("a", { href: `#/op/${o.name}` }, h("code", {}, o.name))), h("td", {}, words(o.doc.split("\n")[0])), h("td", {}, h("code", {}, o.formula.replaceAll("`", "")))))),
  ];
}

function op(name) {
  const o = ATLAS.data.ops.find((one) => one.name === name);
  if (!o) return missing(name);
  return [
    h("h1", {}, h("code", {}, `${o.name}(${o.operands.join(", ")})`)), h("p", { class: "lead" }, words(o.doc)),
    h("dl", { class: "facts" }, h("dt", {}, "formula"), h("dd", {}, h("code", {}, o.formula.replaceAll("`", ""))), h("dt", {}, "precision"), h("dd", {}, o.precision), h("dt", {}, "use"), h("dd", {}, o.part ? words("declared under `parts`: it has weights") : "called in an equation"), o.cite ? [h("dt", {}, "source"), h("dd", {}, o.cite)] : null),
  ];
}

function rules() {
  return [
    h("h1", {}, "Rules"),
    h("p", { class: "lead" }, "What a difference between two models means, and what the checks of a spec say."),
    h("h2", {}, "Differences"),
    table(["rule", "difference", "means"].map((t) => h("th", { scope: "col" }, t)), Object.entries(ATLAS.data.rules).map(([key, r]) => h("tr", {}, h("td", {}, h("code", {}, key)), h("td", {}, r.title), h("td", {}, Object.entries(r.surfaces).map(([s, v]) => `${s} ${v}`).join(", "))))),
    h("h2", {}, "Findings"),
    table(["code", "finding"].map((t) => h("th", { scope: "col" }, t)), ATLAS.data.codes.map((c) => h("tr", {}, h("td", {}, h("a", { href: `#/rule/${c.code}` }, h("code", {}, c.code))), h("td", {}, c.title)))),
  ];
}

function rule(code) {
  const c = ATLAS.data.codes.find((one) => one.code === code);
  if (!c) return missing(code);
  return [h("h1", {}, `${c.code}: ${c.title}`), h("p", { class: "lead" }, words(c.explanation)), h("h2", {}, "For example"), h("pre", {}, c.bad), h("h2", {}, "Put right"), h("pre", {}, c.good)];
}

function missing(name) {
  return [h("h1", {}, "Nothing here"), h("p", {}, `There is no ${name} in this atlas. `, h("a", { href: "#/models" }, "Every model"))];
}

// the frame

function draw() {
  const path = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  const [page] = path.split("/");
  const rest = path.slice(page.length + 1);
  const main = document.getElementById("main");
  const shown = (Object.hasOwn(PAGES, page) ? PAGES[page] : () => missing(page))(rest);
  main.replaceChildren(...[shown].flat(Infinity).filter(Boolean));
  const title = main.querySelector("h1");
  document.title = title && page ? `${title.textContent} · LLaMA atlas` : "LLaMA atlas";
  const top = { model: "models", op: "ops", rule: "rules" }[page] || page;
  for (const a of document.querySelectorAll("nav a")) {
    if (a.getAttribute("href") === `#/${top}`) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
}

function start() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  let kept = null;
  try { kept = localStorage.getItem("atlas-theme"); } catch { /* a page from disk may have no storage */ }
  root.dataset.theme = kept || (dark ? "dark" : "light");
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("atlas-theme", root.dataset.theme); } catch { /* not kept */ }
    draw();
  });
  let last = location.hash;
  addEventListener("hashchange", () => {
    const same = last.split("/")[1] === location.hash.split("/")[1];
    last = location.hash;
    draw();
    if (!same) { scrollTo(0, 0); document.getElementById("main").focus({ preventScroll: true }); }
  });
  draw();
}
