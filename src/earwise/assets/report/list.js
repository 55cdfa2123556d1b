// The list of samples: only the rows in view are elements, so that ten thousand samples scroll as well as ten.
// A grid by ARIA's pattern: one row has the focus, arrows move it.

const SPARE_ROWS = 6; // rows that are kept above and below the visible ones

class SampleList {
  /** `onOpen(number, byPointerOrEnter)` is called when a sample becomes the current one. */
  constructor(container, onOpen) {
    this.onOpen = onOpen;
    this.numbers = [];
    this.current = -1; // place in the list
    this.elements = new Map(); // place -> row
    const columns = ["Result", "Question", ...data.runs.map((run) => run.name), "Right answer", "Task"];
    this.columns = columns.length;
    this.head = element("div", {role: "row", class: "row head", "aria-rowindex": 1},
      columns.map((title) => element("div", {role: "columnheader"}, title)));
    this.spacer = element("div", {class: "spacer", role: "presentation"});
    this.viewport = element("div", {class: "viewport", role: "rowgroup"}, this.spacer);
    this.grid = element("div", {
      role: "grid", class: "grid-list", "aria-label": "Samples", "aria-colcount": columns.length,
      style: `--answers:${data.runs.length}`,
    }, element("div", {role: "rowgroup", class: "head-group"}, this.head), this.viewport);
    container.replaceChildren(this.grid);
    this.viewport.addEventListener("scroll", () => this.schedule());
    window.addEventListener("resize", () => { this.measure(); this.draw(); });
    this.viewport.addEventListener("keydown", (event) => this.onKey(event));
    this.measure();
  }

  /** Height of a row in pixels: it follows the reader's font size and the width of the window. */
  measure() {
    const probe = element("div", {class: "row", style: "visibility:hidden"});
    this.spacer.append(probe);
    this.height = probe.getBoundingClientRect().height || 44;
    probe.remove();
    const bar = this.viewport.offsetWidth - this.viewport.clientWidth; // the head has no scroll bar
    this.head.style.marginRight = `${bar}px`;
  }

  /** List these samples; `keep` is the number of the sample that stays the current one, if it is among them. */
  show(numbers, keep) {
    this.numbers = numbers;
    this.current = numbers.indexOf(keep);
    this.elements.forEach((row) => row.remove());
    this.elements.clear();
    this.grid.setAttribute("aria-rowcount", numbers.length + 1);
    this.measure();
    this.viewport.scrollTop = this.current > 0 ? Math.max(0, this.current * this.height - this.viewport.clientHeight / 2) : 0;
    this.draw();
  }

  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  draw() {
    this.spacer.style.height = `${this.numbers.length * this.height}px`;
    const top = Math.floor(this.viewport.scrollTop / this.height) - SPARE_ROWS;
    const bottom = Math.ceil((this.viewport.scrollTop + this.viewport.clientHeight) / this.height) + SPARE_ROWS;
    const first = Math.max(0, top), last = Math.min(this.numbers.length - 1, bottom);
    const focused = Math.max(0, this.current); // kept while it is out of view, so that the focus is not lost
    for (const [place, row] of this.elements) {
      if ((place < first || place > last) && place !== focused) { row.remove(); this.elements.delete(place); }
    }
    for (let place = first; place <= last; place++) this.ensure(place);
    if (this.numbers.length) this.ensure(focused);
    this.elements.forEach((row, place) => {
      row.style.transform = `translateY(${place * this.height}px)`;
      row.tabIndex = place === focused ? 0 : -1;
      row.setAttribute("aria-selected", place === this.current ? "true" : "false");
    });
  }

  /** The row at a place, in document order, so that screen readers read rows as they stand. */
  ensure(place) {
    if (this.elements.has(place)) return;
    const row = this.row(place);
    this.elements.set(place, row);
    const next = [...this.elements.keys()].filter((other) => other > place).sort((a, b) => a - b)[0];
    this.spacer.insertBefore(row, next === undefined ? null : this.elements.get(next));
  }

  row(place) {
    const sample = data.samples[this.numbers[place]];
    const cell = (css, ...children) => element("div", {role: "gridcell", class: css}, ...children);
    const answers = sample.answers.map((answer, run) => cell(`answer ${answer ? answer.grade || "" : ""}`,
      element("span", {class: "key", style: `--c:var(--c${data.runs[run].colour})`, "aria-hidden": "true"}),
      answer ? answer.answer ?? `(${answer.status})` : "not asked"));
    return element("div", {
      role: "row", class: "row", "aria-rowindex": place + 2,
      click: () => this.open(place, true),
    },
    cell("mark", element("span", {class: `tag ${sample.outcome}`}, sample.outcome)),
    cell("asked", sample.question || sample.id), answers,
    cell("gold", (sample.gold || []).join(" | ")), cell("task", sample.task || ""));
  }

  /** Make the sample at a place the current one. */
  open(place, deliberate) {
    if (!this.numbers.length) return;
    this.current = Math.max(0, Math.min(this.numbers.length - 1, place));
    this.reveal();
    this.focus();
    this.onOpen(this.numbers[this.current], deliberate);
  }

  /** Scroll so that the current row is in view. */
  reveal() {
    const top = this.current * this.height, {scrollTop, clientHeight} = this.viewport;
    if (top < scrollTop) this.viewport.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.viewport.scrollTop = top + this.height - clientHeight;
    this.draw();
  }

  focus() {
    this.elements.get(Math.max(0, this.current))?.focus({preventScroll: true});
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.viewport.clientHeight / this.height) - 1);
    const steps = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page};
    const place = Math.max(0, this.current);
    if (event.key in steps) this.open(this.current < 0 ? 0 : place + steps[event.key], false);
    else if (event.key === "Home") this.open(0, false);
    else if (event.key === "End") this.open(this.numbers.length - 1, false);
    else if (event.key === "Enter" || event.key === " ") this.open(place, true);
    else return;
    event.preventDefault();
  }
}
