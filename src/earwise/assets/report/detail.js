// One sample in full: clips, question, options, and for every run its answer, reasoning, and what each score says.

const GRADE_MARKS = {right: "✓", partly: "≈", wrong: "✗", unlabelled: "·"};

function sampleDetail(sample) {
  const groups = ["task", "category", "sub_category", "difficulty", "language"].map((field) => sample[field]).filter(Boolean);
  const notes = [sample.silent ? "The clip is silent." : "", sample.truncated ? "The model received only the beginning of the clip." : ""];
  return [
    element("header", {},
      element("h3", {id: "sample-title"}, sample.id),
      element("p", {class: "note"}, element("span", {class: `tag ${sample.outcome}`}, data.outcomes[sample.outcome]),
        groups.length ? ` · ${groups.join(" · ")}` : "")),
    element("div", {class: "clips"}, sample.clips.map((number) => soundPlayer(data.clips[number]))),
    notes.some(Boolean) ? element("p", {class: "noclip"}, notes.filter(Boolean).join(" ")) : null,
    element("p", {class: "question"}, sample.question || "(no question)"),
    optionList(sample),
    folded("Prompt as the model read it", sample.prompt),
    element("div", {class: "answers"}, sample.answers.map((answer, run) => runAnswer(sample, answer, data.runs[run]))),
  ];
}

/** The options, with the right one and the runs that chose each. */
function optionList(sample) {
  const choices = sample.choices || sample.gold || [];
  return element("ul", {class: "options"}, choices.map((choice) => {
    const isGold = (sample.gold || []).includes(choice);
    const chosenBy = data.runs.filter((_, run) => (sample.answers[run] || {}).answer === choice).map((run) => run.name);
    return element("li", {class: isGold ? "gold" : ""}, choice,
      isGold ? element("small", {}, " right answer") : null,
      chosenBy.length && sample.choices ? element("small", {}, ` ← ${chosenBy.join(", ")}`) : null);
  }));
}

function runAnswer(sample, answer, run) {
  const head = element("h4", {}, element("span", {class: "key", style: `--c:var(--c${run.colour})`, "aria-hidden": "true"}), run.name);
  if (!answer) return element("section", {class: "answer-card", "aria-label": run.name}, head, element("p", {}, "This run did not ask the question."));
  const isReadable = answer.answer !== undefined;
  return element("section", {class: "answer-card", "aria-label": run.name}, head,
    element("p", {class: `given ${answer.grade}`}, `${GRADE_MARKS[answer.grade]} `,
      isReadable ? answer.answer : element("i", {}, "no readable answer"),
      answer.status === "ok" ? null : element("span", {class: "state"}, answer.status)),
    reasoningOf(answer),
    scoreTable(answer, run),
    blindAnswers(answer), optionOrders(answer), answerFacts(answer),
    folded("Whole output", answer.output, (answer.output || "").trim() !== answer.answer),
    Object.entries(answer.more || {}).map(([name, value]) => fieldView(name, value)));
}

function reasoningOf(answer) {
  if (!answer.reasoning) return null;
  const text = Array.isArray(answer.reasoning) ? answer.output.slice(...answer.reasoning) : answer.reasoning;
  return element("blockquote", {class: "reasoning"}, element("b", {}, "Reasoning "), text);
}

/** What each score gives, what it measures, and why the answer could not be read. */
function scoreTable(answer, run) {
  if (!answer.scores) return element("p", {class: "note"}, "The item has no gold answer, so no score.");
  const rows = Object.entries(answer.scores).map(([name, value]) => element("tr", {},
    element("th", {scope: "row"}, name, name === data.headline ? element("small", {}, " headline") : null),
    element("td", {class: name === data.headline && answer.grade === "right" ? "up" : ""}, Number.isInteger(value) ? value : value?.toFixed(3) ?? "–"),
    element("td", {class: "why"}, run.notes[name] || "")));
  const reason = answer.why ? element("p", {class: "note"}, `Why: ${answer.why}`) : null;
  return [element("table", {class: "scores"}, element("caption", {}, "Scores"), element("tbody", {}, rows)), reason];
}

function blindAnswers(answer) {
  const controls = Object.entries(answer.blind || {});
  if (!controls.length) return null;
  return element("p", {class: "note"}, "Without the sound: ", controls.map(([control, [text, grade]], place) =>
    [place ? "; " : "", `${control}: `, element("b", {class: grade === "right" ? "up" : ""}, `${GRADE_MARKS[grade]} ${text ?? "no readable answer"}`)]));
}

/** The answers under other orders of the options. */
function optionOrders(answer) {
  if (!answer.orders) return null;
  const lines = answer.orders.map(([choices, text, grade]) => element("li", {}, `${GRADE_MARKS[grade]} ${text ?? "no readable answer"} `,
    element("small", {}, choices.join(" / "))));
  const numRight = answer.orders.filter(([, , grade]) => grade === "right").length;
  return element("details", {}, element("summary", {}, `Right under ${numRight} of ${answer.orders.length} orders of the options`),
    element("ol", {class: "orders"}, lines));
}

function answerFacts(answer) {
  const facts = [
    answer.confidence === undefined ? "" : `confidence ${(100 * answer.confidence).toFixed(1)} %`,
    answer.tokens === undefined ? "" : `${answer.tokens} tokens before the answer`,
    answer.formatted === false ? "not in the requested format" : "",
    answer.cut ? "cut off at the token limit" : "",
    answer.seconds === undefined ? "" : `${answer.seconds.toFixed(2)} s`,
  ].filter(Boolean);
  return facts.length ? element("p", {class: "note"}, facts.join(" · ")) : null;
}

/** A field that has no place of its own: draws, judgements, whatever a task keeps. Lists of objects become a table. */
function fieldView(name, value) {
  const title = name.replaceAll("_", " ");
  const isTable = Array.isArray(value) && value.every((entry) => entry && typeof entry === "object" && !Array.isArray(entry));
  if (!isTable || !value.length) return folded(title, typeof value === "string" ? value : JSON.stringify(value, null, 1));
  const columns = [...new Set(value.flatMap((entry) => Object.keys(entry)))];
  const text = (cell) => cell === null || cell === undefined ? "–" : typeof cell === "object" ? JSON.stringify(cell) : String(cell);
  const head = element("tr", {}, columns.map((column) => element("th", {scope: "col"}, column.replaceAll("_", " "))));
  const rows = value.map((entry) => element("tr", {}, columns.map((column) => element("td", {class: "why"}, text(entry[column])))));
  return element("details", {}, element("summary", {}, `${title} (${value.length})`),
    element("div", {class: "scroll", tabindex: "0"}, element("table", {class: "scores"}, element("thead", {}, head), element("tbody", {}, rows))));
}

function folded(title, text, isShown = true) {
  return text && isShown ? element("details", {}, element("summary", {}, title), element("pre", {}, text)) : null;
}
