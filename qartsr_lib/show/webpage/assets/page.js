"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = (id) => (byId(id) ? JSON.parse(byId(id).textContent) : null);

  // Light or dark: the system's choice until the button is pressed.
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const showTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
  if (stored()) root.dataset.theme = stored();
  showTheme();
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private window */ }
    showTheme();
  });

  byId("intervals").addEventListener("change", (event) => byId("tables").classList.toggle("no-intervals", !event.target.checked));

  // What stands behind a number: shown on hover and on keyboard focus.
  const facts = data("facts");
  const tip = byId("tip");
  let shown = null;
  const hide = () => { tip.hidden = true; shown = null; };
  const place = () => {
    const link = shown.getBoundingClientRect();
    const below = link.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(link.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? link.bottom + 6 : link.top - tip.offsetHeight - 6}px`;
  };
  const show = (event) => {
    const link = event.target.closest && event.target.closest("a[data-run]");
    if (!link || !facts[link.dataset.run]) return hide();
    tip.replaceChildren(...facts[link.dataset.run].map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    tip.hidden = false;
    shown = link;
    place();
  };
  document.addEventListener("mouseover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("focusout", hide);
  // Focus scrolls to its link and the tip follows; a pointer's tip goes.
  const scrolled = () => { if (shown) (shown === document.activeElement ? place : hide)(); };
  document.addEventListener("scroll", scrolled, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // Two pictures and a line between them. The line stands in the frame; the sheet below it may be zoomed and scrolled.
  const gallery = data("pictures");
  if (!gallery) return;
  const stage = byId("stage"), sheet = byId("sheet"), over = byId("over"), under = byId("under");
  const position = byId("position"), handle = byId("handle");
  const fill = (select, labels) => select.replaceChildren(...labels.map((label, index) => new Option(label, String(index))));
  const entries = () => gallery.pictures[gallery.settings[byId("setting").value].name][gallery.photographs[byId("photograph").value].id];

  const clip = () => {
    const share = Number(position.value) / 100;
    const edge = stage.scrollLeft + share * stage.clientWidth;
    over.style.clipPath = `inset(0 0 0 ${edge}px)`;
    handle.style.left = `${share * 100}%`;
  };
  const caption = (place, entry) => {
    const words = [entry.label, entry.file ? entry.psnr : "no picture: diverged"].filter(Boolean).join(": ");
    if (!entry.record) return place.replaceChildren(words);
    const link = document.createElement("a");
    const [profile, run] = entry.record.split("/");
    link.href = `../results/${profile}/runs/${run}.json`;
    link.dataset.run = entry.record;
    link.textContent = words;
    return place.replaceChildren(link);
  };
  const put = (image, entry) => {
    image.hidden = !entry.file;
    image.alt = entry.label;
    if (entry.file) image.src = gallery.files[entry.file];
  };
  const draw = () => {
    const found = entries();
    const left = found[byId("left").value], right = found[byId("right").value];
    put(under, left);
    put(over, right);
    caption(byId("left-text"), left);
    caption(byId("right-text"), right);
    const photograph = gallery.photographs[byId("photograph").value];
    byId("licence").textContent = `Photograph: ${photograph.id}${photograph.licence ? `, ${photograph.licence}` : ""}.`;
    clip();
  };
  const size = () => {
    if (!under.naturalWidth) return;
    const zoom = Number(byId("zoom").value);
    stage.style.aspectRatio = `${under.naturalWidth} / ${under.naturalHeight}`;
    sheet.style.width = `${zoom * 100}%`;
    sheet.style.aspectRatio = stage.style.aspectRatio;
    sheet.classList.toggle("sharp", zoom >= 4);
    clip();
  };
  const choose = () => { // other pictures: keep what is compared where it is there, else full precision against the last picture
    const before = ["left", "right"].map((side) => byId(side).selectedOptions[0]?.textContent);
    const found = entries();
    const labels = found.map((entry) => entry.label);
    const full = Math.max(0, labels.findIndex((label) => label.startsWith("full precision")));
    const wanted = [full, found.findLastIndex((entry) => entry.file)];
    ["left", "right"].forEach((side, index) => {
      fill(byId(side), labels);
      const kept = labels.indexOf(before[index]);
      byId(side).value = String(kept >= 0 ? kept : wanted[index]);
    });
    draw();
  };
  const zoom = () => { // about the middle of what is seen
    const middle = [stage.scrollLeft + stage.clientWidth / 2, stage.scrollTop + stage.clientHeight / 2];
    const before = sheet.clientWidth;
    size();
    const factor = sheet.clientWidth / before;
    stage.scrollLeft = middle[0] * factor - stage.clientWidth / 2;
    stage.scrollTop = middle[1] * factor - stage.clientHeight / 2;
    clip();
  };
  const drag = (event) => {
    const frame = stage.getBoundingClientRect();
    position.value = String(100 * Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width)));
    clip();
  };

  fill(byId("photograph"), gallery.photographs.map((item) => item.id));
  fill(byId("setting"), gallery.settings.map((item) => item.title));
  for (const name of ["photograph", "setting"]) byId(name).addEventListener("change", choose);
  for (const name of ["left", "right"]) byId(name).addEventListener("change", draw);
  byId("zoom").addEventListener("change", zoom);
  position.addEventListener("input", clip);
  stage.addEventListener("scroll", clip, { passive: true });
  handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
  handle.addEventListener("pointermove", (event) => { if (handle.hasPointerCapture(event.pointerId)) drag(event); });
  under.addEventListener("load", size);
  addEventListener("resize", clip);
  choose();
})();
