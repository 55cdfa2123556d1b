// Puts the list, its tools and the open sample together, and keeps the address in step with them.

const data = readBlock("sample-data");
const NARROW = matchMedia("(max-width: 700px)");

function startSamples() {
  data.samples.forEach((sample, number) => { sample.number = number; });
  let state = hashToState("");
  let opened = -1; // number of the open sample
  const tools = document.getElementById("sample-tools"), status = document.getElementById("sample-count");
  const panel = document.getElementById("sample-detail"), section = tools.closest("section");
  const list = new SampleList(document.getElementById("sample-list"), open);
  const controls = buildTools(tools, (change) => { Object.assign(state, change); refresh(); });
  const link = element("a", {class: "button"}, "Link");
  const body = element("div", {class: "detail-body"});
  panel.append(element("div", {class: "detail-bar"},
    element("button", {type: "button", click: () => step(-1)}, "Previous"),
    element("button", {type: "button", click: () => step(1)}, "Next"), link,
    element("button", {type: "button", class: "close", click: close}, "Close")), body);
  panel.setAttribute("tabindex", "-1");
  panel.hidden = true;

  function refresh(keepHash = false) {
    const numbers = selectSamples(data.samples, state);
    list.show(numbers, opened);
    controls.show(state);
    status.textContent = numbers.length === data.samples.length
      ? `${count(numbers.length)} samples` : `${count(numbers.length)} of ${count(data.samples.length)} samples`;
    const hash = stateToHash(state);
    if (!keepHash) setAddress(hash ? `#samples?${hash}` : "#samples");
  }

  function open(number, deliberate) {
    opened = number;
    const sample = data.samples[number], address = `#sample-${encodeURIComponent(sample.id)}`;
    if (NARROW.matches && !deliberate) return;
    link.href = address;
    body.replaceChildren(...sampleDetail(sample).flat().filter(Boolean));
    body.scrollTop = panel.scrollTop = 0;
    panel.hidden = false;
    section.classList.add("has-open");
    setAddress(address);
    list.reveal();
    if (NARROW.matches) coverPage(true);
  }

  function step(by) {
    list.open(list.current + by, true);
    if (NARROW.matches) panel.focus();
  }

  function close() {
    if (panel.hidden) return;
    panel.querySelectorAll("audio").forEach((player) => player.pause());
    panel.hidden = true;
    section.classList.remove("has-open");
    coverPage(false);
    const hash = stateToHash(state);
    setAddress(hash ? `#samples?${hash}` : "#samples");
    list.focus();
  }

  /** On a narrow window the open sample covers the page, which then is out of reach. */
  function coverPage(isCovered) {
    const others = [...document.querySelectorAll("header.top, nav.contents, footer.foot, main > section")]
      .filter((node) => node !== section).concat([...section.children].filter((node) => node !== panel));
    others.forEach((node) => { node.inert = isCovered; });
    document.body.classList.toggle("covered", isCovered);
    panel.setAttribute("role", isCovered ? "dialog" : "region");
    panel.setAttribute("aria-labelledby", "sample-title");
    if (isCovered) { panel.setAttribute("aria-modal", "true"); panel.focus(); } else panel.removeAttribute("aria-modal");
  }

  function followAddress() {
    const hash = location.hash;
    if (hash.startsWith("#samples?")) {
      if (!panel.hidden) close();
      state = hashToState(hash.slice("#samples?".length));
      refresh(true);
      section.scrollIntoView();
    } else if (hash.startsWith("#sample-")) {
      const id = decodeText(hash.slice("#sample-".length));
      const sample = data.samples.find((candidate) => candidate.id === id);
      if (!sample) { status.textContent = `There is no sample “${id}” in this page.`; return; }
      if (!list.numbers.includes(sample.number)) { state = hashToState(""); refresh(true); }
      section.scrollIntoView();
      list.open(list.numbers.indexOf(sample.number), true);
    }
  }

  coverPage(false);
  NARROW.addEventListener("change", () => { list.measure(); list.draw(); if (!panel.hidden) coverPage(NARROW.matches); });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape" && !panel.hidden && !isTyping) { close(); event.preventDefault(); }
    else if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) { controls.search.focus(); event.preventDefault(); }
  });
  controls.save.addEventListener("click", () => saveFile("samples.csv", samplesAsCsv(list.numbers.map((number) => data.samples[number])), "text/csv"));
  controls.search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") { list.open(Math.max(0, list.current), event.key === "Enter"); event.preventDefault(); }
  });
  window.addEventListener("hashchange", followAddress);
  refresh(true);
  followAddress();
  (window.requestIdleCallback || setTimeout)(() => data.samples.forEach(searchText));
}

/** A page opened from a folder or a sandbox may forbid to change its address; then there is no link to copy. */
function setAddress(hash) {
  try { history.replaceState(null, "", hash); } catch { /* the page works without */ }
}

function decodeText(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** The search field, the menus of facets and orders, and the buttons; `onChange` gets the changed part of the state. */
function buildTools(tools, onChange) {
  const search = element("input", {type: "search", id: "sample-search", placeholder: "words, “a phrase”, an id", autocomplete: "off",
    "aria-keyshortcuts": "/", input: () => onChange({query: search.value})});
  const menus = {};
  const facetFields = FACETS.map(([facet, title]) => {
    const counts = facetCounts(data.samples, facet);
    if (counts.length < 2) return null;
    menus[facet] = element("select", {id: `facet-${facet}`, change: () => onChange({facets: currentFacets()})},
      element("option", {value: ""}, "all"), counts.map(([value, number]) => element("option", {value}, `${value} (${count(number)})`)));
    return labelled(title, menus[facet]);
  });
  const orders = Object.entries(ORDERS).filter(([name, [, key]]) => name === "file" || hasSeveral(key));
  const order = element("select", {id: "sample-order", change: () => onChange({order: order.value})},
    orders.map(([name, [title]]) => element("option", {value: name}, title)));
  const direction = element("button", {type: "button", "aria-pressed": "false", click: () => onChange({descending: direction.getAttribute("aria-pressed") !== "true"})}, "Descending");
  const linkedButtons = element("span", {class: "linked"});
  let linked = {};
  const currentFacets = () => ({...Object.fromEntries(Object.entries(menus).map(([facet, menu]) => [facet, menu.value])), ...linked});
  const reset = element("button", {type: "button", click: () => { linked = {}; onChange(hashToState("")); search.focus(); }}, "Reset");
  const save = element("button", {type: "button"}, "Save list as CSV");
  tools.append(labelled("Search", search), ...facetFields.filter(Boolean), labelled("Sort by", order), direction, linkedButtons, reset, save);

  function show(state) {
    if (search.value !== state.query) search.value = state.query;
    for (const [facet, menu] of Object.entries(menus)) menu.value = state.facets[facet] || "";
    order.value = state.order;
    direction.setAttribute("aria-pressed", String(state.descending));
    linked = Object.fromEntries(Object.entries(state.facets).filter(([facet, value]) => value && !(facet in menus)));
    linkedButtons.replaceChildren(...Object.entries(linked).map(([facet, value]) => element("button", {
      type: "button", "aria-label": `Remove the condition ${LINKED[facet] || facet} ${value}`,
      click: () => { delete linked[facet]; onChange({facets: currentFacets()}); },
    }, `${LINKED[facet] || facet}: ${value} ×`)));
  }
  return {search, save, show};
}

function labelled(title, control) {
  return element("label", {for: control.id}, element("span", {}, title), control);
}

/** Whether an order distinguishes any samples. */
function hasSeveral(key) {
  const first = key(data.samples[0] || {answers: []});
  return data.samples.some((sample) => key(sample) !== first);
}

addTableButtons();
if (data && data.samples.length) startSamples();
