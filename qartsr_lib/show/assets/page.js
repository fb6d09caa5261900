"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const listen = (ids, event, handler) => ids.forEach((id) => byId(id).addEventListener(event, handler));

  // Light or dark: the system's choice until the button is pressed.
  const root = document.documentElement.style;
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const isDark = () => root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const setTheme = (theme) => {
    root.colorScheme = theme || "";
    byId("theme").setAttribute("aria-pressed", String(isDark()));
  };
  setTheme(stored());
  byId("theme").addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    try { localStorage.setItem("theme", root.colorScheme); } catch { /* private window */ }
  });
  byId("intervals").addEventListener("change", (event) => {
    byId("tables").classList.toggle("no-intervals", !event.target.checked);
  });

  // Sort a table by a column: numbers by value, empty cells last.
  const sort = (head) => {
    const column = head.cellIndex;
    const falls = head.ariaSort !== "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.ariaSort = falls ? "descending" : "ascending";
    const text = (row) => (row.cells[column].firstChild?.textContent ?? "").replace(/[,%]/g, "").trim();
    const compare = (a, b) => {
      const [x, y] = [text(a), text(b)], [left, right] = [parseFloat(x), parseFloat(y)];
      if (Number.isNaN(left) !== Number.isNaN(right)) return Number.isNaN(left) ? 1 : -1;
      return (falls ? -1 : 1) * (Number.isNaN(left) ? x.localeCompare(y) : left - right);
    };
    const body = head.closest("table").tBodies[0];
    body.append(...[...body.rows].sort(compare));
  };
  for (const head of document.querySelectorAll("th")) {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
  }

  // Two pictures and a line between them. The line stands in the frame; the sheet below it may be zoomed and scrolled.
  if (!byId("pictures")) return;
  const gallery = JSON.parse(byId("pictures").textContent);
  const [stage, sheet, over, under] = ["stage", "sheet", "over", "under"].map(byId);
  const [position, handle] = ["position", "handle"].map(byId);
  const fill = (select, labels) => select.replaceChildren(...labels.map((label, index) => new Option(label, index)));
  const photograph = () => gallery.photographs[byId("photograph").value];
  const entries = () => gallery.pictures[gallery.settings[byId("setting").value].name][photograph().id];

  const clip = () => {
    const share = Number(position.value) / 100;
    over.style.clipPath = `inset(0 0 0 ${stage.scrollLeft + share * stage.clientWidth}px)`;
    handle.style.left = `${share * 100}%`;
  };
  const put = (image, words, [label, psnr, file]) => {
    image.hidden = file < 0;
    image.alt = label;
    if (file >= 0) image.src = gallery.files[file];
    words.textContent = [label, file < 0 ? "no picture: diverged" : psnr].filter(Boolean).join(": ");
  };
  const draw = () => {
    put(under, byId("left-text"), entries()[byId("left").value]);
    put(over, byId("right-text"), entries()[byId("right").value]);
    byId("licence").textContent = `Photograph: ${[photograph().id, photograph().licence].filter(Boolean).join(", ")}.`;
    clip();
  };
  const size = () => {
    const zoom = Number(byId("zoom").value);
    if (under.naturalWidth) stage.style.aspectRatio = `${under.naturalWidth} / ${under.naturalHeight}`;
    sheet.style.width = `${zoom * 100}%`;
    sheet.style.aspectRatio = stage.style.aspectRatio;
    sheet.classList.toggle("sharp", zoom >= 4);
    clip();
  };
  // Other pictures: keep what is compared where it is there, else full precision against QArtSR.
  const choose = () => {
    const labels = entries().map(([label]) => label);
    const find = (word) => Math.max(0, entries().findIndex(([label, , file]) => label.startsWith(word) && file >= 0));
    for (const [id, wanted] of [["left", find("full precision")], ["right", find("QArtSR")]]) {
      const kept = labels.indexOf(byId(id).selectedOptions[0]?.textContent);
      fill(byId(id), labels);
      byId(id).value = kept >= 0 ? kept : wanted;
    }
    draw();
  };
  // About the middle of what is seen.
  const zoom = () => {
    const middle = [stage.scrollLeft + stage.clientWidth / 2, stage.scrollTop + stage.clientHeight / 2];
    const before = sheet.clientWidth;
    size();
    const factor = sheet.clientWidth / before;
    stage.scrollTo(middle[0] * factor - stage.clientWidth / 2, middle[1] * factor - stage.clientHeight / 2);
    clip();
  };

  fill(byId("photograph"), gallery.photographs.map((item) => item.id));
  fill(byId("setting"), gallery.settings.map((item) => item.title));
  listen(["photograph", "setting"], "change", choose);
  listen(["left", "right"], "change", draw);
  listen(["zoom"], "change", zoom);
  listen(["position"], "input", clip);
  stage.addEventListener("scroll", clip, { passive: true });
  handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const frame = stage.getBoundingClientRect();
    position.value = 100 * (event.clientX - frame.left) / frame.width;
    clip();
  });
  under.addEventListener("load", size);
  addEventListener("resize", clip);
  choose();
})();
