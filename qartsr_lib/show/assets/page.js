"use strict";
// Two pictures and a line between them: where it stands is the style sheet's --at.
(() => {
  const byId = (id) => document.getElementById(id);
  if (!byId("pictures")) return;
  const gallery = JSON.parse(byId("pictures").textContent);
  const fill = (select, labels) => select.replaceChildren(...labels.map((label, index) => new Option(label, index)));
  const photograph = () => gallery.photographs[byId("photograph").value];
  const entries = () => gallery.settings[byId("setting").value].pictures[photograph().id];

  const put = (image, words, [label, psnr, file]) => {
    image.hidden = file < 0;
    image.alt = label;
    if (file >= 0) image.src = gallery.files[file];
    words.textContent = [label, file < 0 ? "no picture: diverged" : psnr].filter(Boolean).join(": ");
  };
  const draw = () => {
    put(byId("under"), byId("left-text"), entries()[byId("left").value]);
    put(byId("over"), byId("right-text"), entries()[byId("right").value]);
    byId("licence").textContent = `Photograph: ${[photograph().id, photograph().licence].filter(Boolean).join(", ")}.`;
  };
  // Other pictures: keep what is compared where it is there, else full precision against QArtSR.
  const choose = () => {
    const labels = entries().map(([label]) => label);
    for (const [id, word] of [["left", "full precision"], ["right", "QArtSR"]]) {
      const kept = labels.indexOf(byId(id).selectedOptions[0]?.textContent);
      const wanted = entries().findIndex(([label, , file]) => label.startsWith(word) && file >= 0);
      fill(byId(id), labels);
      byId(id).value = kept >= 0 ? kept : Math.max(0, wanted);
    }
    draw();
  };
  const place = () => byId("sheet").style.setProperty("--at", `${byId("position").value}%`);
  // The middle of the view stays there, and the line comes to it.
  const zoom = () => {
    const sheet = byId("sheet"), frame = sheet.parentElement;
    const x = (frame.scrollLeft + frame.clientWidth / 2) / sheet.clientWidth;
    const y = (frame.scrollTop + frame.clientHeight / 2) / sheet.clientHeight;
    sheet.style.width = `${100 * byId("zoom").value}%`;
    sheet.style.imageRendering = byId("zoom").value >= 4 ? "pixelated" : "";
    frame.scrollTo(x * sheet.clientWidth - frame.clientWidth / 2, y * sheet.clientHeight - frame.clientHeight / 2);
    byId("position").value = 100 * x;
    place();
  };

  fill(byId("photograph"), gallery.photographs.map((item) => item.id));
  fill(byId("setting"), gallery.settings.map((item) => item.title));
  for (const id of ["photograph", "setting"]) byId(id).addEventListener("change", choose);
  for (const id of ["left", "right"]) byId(id).addEventListener("change", draw);
  byId("zoom").addEventListener("change", zoom);
  byId("position").addEventListener("input", place);
  choose();
})();
