// Elements are made from plain text only: a text of a run goes into a text node or an attribute that does nothing.

/** An element with attributes (a function is a listener) and children (texts or elements; null is left out). */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** The value of a data block of the page; null if there is none. */
function readBlock(identifier) {
  const block = document.getElementById(identifier);
  return block ? JSON.parse(block.textContent) : null;
}

/** Offer a text as a file. */
function saveFile(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], {type: `${type};charset=utf-8`}));
  const link = element("a", {href: url, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const count = (number) => number.toLocaleString("en");
