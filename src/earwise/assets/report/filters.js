// Which samples are listed, and in which order. No element is touched here.

const FACETS = [
  ["outcome", "Outcome"], ["status", "Answer"], ["task", "Task"], ["category", "Category"],
  ["sub_category", "Sub-category"], ["difficulty", "Difficulty"], ["language", "Language"],
];
/** Further conditions that links of the page's tables set; they have no menu, but a button that removes them. */
const LINKED = {gold: "right answer", answer: "given answer", blind: "without the sound"};

const ORDERS = {
  file: ["Order of the file", (sample) => sample.number],
  outcome: ["Outcome", (sample) => outcomeRank(sample)],
  question: ["Question", (sample) => sample.question || ""],
  answer: ["Given answer", (sample) => lastAnswer(sample).answer || ""],
  gold: ["Right answer", (sample) => (sample.gold || [""])[0]],
  task: ["Task", (sample) => `${sample.task || ""} ${sample.category || ""}`],
  score: ["Score", (sample) => scoreOf(sample)],
  confidence: ["Confidence", (sample) => lastAnswer(sample).confidence ?? null],
  tokens: ["Tokens before the answer", (sample) => lastAnswer(sample).tokens ?? null],
  seconds: ["Seconds", (sample) => lastAnswer(sample).seconds ?? null],
  length: ["Length of the output", (sample) => (lastAnswer(sample).output || "").length],
  id: ["Id", (sample) => sample.id],
};

const collator = new Intl.Collator("en", {numeric: true});

const lastAnswer = (sample) => sample.answers[sample.answers.length - 1] || {};
const outcomeRank = (sample) => ["lost", "wrong", "partly", "gained", "right", "unlabelled"].indexOf(sample.outcome);
const scoreOf = (sample) => (lastAnswer(sample).scores || {})[data.headline] ?? null;

/** The value of a sample that a facet or a linked condition compares. */
function facetValue(sample, facet) {
  if (facet === "status") return lastAnswer(sample).status || "";
  if (facet === "answer") return lastAnswer(sample).answer ?? "none";
  if (facet === "gold") return (sample.gold || [""])[0];
  if (facet === "blind") return Object.values(lastAnswer(sample).blind || {}).map((pair) => pair[1])[0] || "";
  return String(sample[facet] ?? "none");
}

/** All text of a sample in lower case; made once. */
function searchText(sample) {
  if (sample.text === undefined) {
    const answers = sample.answers.filter(Boolean).flatMap((answer) => [answer.answer, answer.output, answer.why]);
    sample.text = [sample.id, sample.question, ...(sample.choices || []), ...(sample.gold || []), sample.task,
      sample.category, ...sample.clips.map((number) => data.clips[number].name), ...answers,
    ].filter(Boolean).join("\n").toLowerCase();
  }
  return sample.text;
}

/** The words of a search; "words in quotes" stay together. */
function searchTerms(query) {
  return [...query.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((match) => match[1] || match[2]);
}

/** Numbers of the samples that meet all conditions, in the chosen order. */
function selectSamples(samples, state) {
  const terms = searchTerms(state.query);
  const conditions = Object.entries(state.facets).filter(([, value]) => value !== "");
  const numbers = [];
  for (const sample of samples) {
    if (!conditions.every(([facet, value]) => facetValue(sample, facet) === value)) continue;
    if (terms.length) {
      const text = searchText(sample);
      if (!terms.every((term) => text.includes(term))) continue;
    }
    numbers.push(sample.number);
  }
  const key = ORDERS[state.order][1];
  if (state.order !== "file") {
    const keys = new Map(numbers.map((number) => [number, key(samples[number])]));
    numbers.sort((a, b) => compareKeys(keys.get(a), keys.get(b), state.descending) || a - b);
  } else if (state.descending) numbers.reverse();
  return numbers;
}

/** Samples without a value stand last in either direction. */
function compareKeys(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? collator.compare(a, b) : a - b;
  return descending ? -order : order;
}

/** Values of a facet with the number of samples that have them, the most frequent first. */
function facetCounts(samples, facet) {
  const counts = new Map();
  for (const sample of samples) {
    const value = facetValue(sample, facet);
    counts.set(value, (counts.get(value) || 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1] || collator.compare(a[0], b[0]));
}

/** The part of the address after "#samples?" for a state; empty if nothing is filtered. */
function stateToHash(state) {
  const values = new URLSearchParams();
  if (state.query) values.set("q", state.query);
  for (const [facet, value] of Object.entries(state.facets)) if (value !== "") values.set(facet, value);
  if (state.order !== "file") values.set("order", state.order);
  if (state.descending) values.set("descending", "1");
  return values.toString();
}

function hashToState(text) {
  const values = new URLSearchParams(text);
  const facets = {};
  for (const facet of [...FACETS.map(([name]) => name), ...Object.keys(LINKED)]) facets[facet] = values.get(facet) || "";
  const order = Object.hasOwn(ORDERS, values.get("order") || "") ? values.get("order") : "file";
  return {query: values.get("q") || "", facets, order, descending: values.get("descending") === "1"};
}

/** The listed samples as CSV; cells that a spreadsheet would read as a formula begin with an apostrophe. */
function samplesAsCsv(samples) {
  const cell = (value) => {
    let text = String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text) && !/^-?[\d.]+(e-?\d+)?$/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const head = ["id", "outcome", "task", "category", "difficulty", "language", "question", "right answer"];
  for (const run of data.runs) head.push(`${run.name}: answer`, `${run.name}: ${data.headline}`, `${run.name}: output`);
  const lines = [head, ...samples.map((sample) => [
    sample.id, sample.outcome, sample.task, sample.category, sample.difficulty, sample.language, sample.question,
    (sample.gold || []).join(" | "),
    ...sample.answers.flatMap((answer) => answer
      ? [answer.answer, (answer.scores || {})[data.headline], answer.output] : ["", "", ""]),
  ])];
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}
