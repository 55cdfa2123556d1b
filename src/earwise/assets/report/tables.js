// Buttons under every table that save it; the files' texts are in the page already.

const TABLE_FORMS = [["csv", "CSV", "text/csv"], ["md", "Markdown", "text/markdown"], ["tex", "LaTeX", "text/plain"]];

function addTableButtons() {
  const forms = readBlock("table-data") || [];
  document.querySelectorAll("main table").forEach((table, number) => {
    const files = forms[number];
    if (!files) return;
    const buttons = TABLE_FORMS.map(([suffix, label, type]) => element("button", {
      type: "button", "aria-label": `Save this table as ${label}`,
      click: () => saveFile(`${files.name}.${suffix}`, files[suffix], type),
    }, label));
    (table.closest(".scroll") || table).after(element("div", {class: "save"}, "Save as ", buttons));
  });
}
