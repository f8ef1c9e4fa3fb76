// Uses every control of docs/play as a person would, and tells the window around it what it saw.
// test_play.py appends it to copies of the page; wrong is filled by what stands before all scripts.
"use strict";

{
  const $ = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shares = () => all("#classes td:last-child").map((cell) => cell.textContent);
  const picture = () => $("view").toDataURL();
  const say = (input, value) => {
    input.value = value;
    input.dispatchEvent(new Event("input"));
  };
  const press = (key) =>
    $("view").dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
  const pointer = (kind, clientX, clientY) =>
    $("view").dispatchEvent(new PointerEvent(kind, { clientX, clientY }));
  const told = { width: innerWidth, presets: {} };

  for (const button of all("[data-preset]")) {
    button.click();
    const rows = [...$("margins").rows];
    told.presets[button.dataset.preset] = {
      verdict: $("verdict").textContent,
      formula: $("formula").textContent,
      pressed: all("[data-preset][aria-pressed=true]").length,
      margins: rows.map((row) => row.cells[2].textContent),
      hatched: rows.map((row) => row.querySelectorAll(".bar.negative").length),
      lines: all("#walk path.raw, #walk path.guard").length,
    };
  }
  say($("b"), 0.6);
  told.refused = [$("verdict").textContent, all("#walk path.guard").length];
  for (const [id, value] of [
    ["a", 0.9],
    ["b", 0.2],
    ["T", 4],
  ]) {
    say($(id), value);
  }
  say($("logits").querySelector("[aria-label='u, earlier self, class 3']"), -6);
  told.agreeing = $("verdict").textContent;
  $("first-row").click();
  told.again = $("verdict").textContent;

  told.said = $("said").textContent;
  told.stored = shares();
  const before = picture();
  for (let n = 0; n < 9; n++) press("ArrowRight");
  told.turned = [$("yaw-value").textContent, picture() !== before, shares()];
  $("seen").click();
  told.unseen = shares();
  $("seen").click();
  press("Home");
  told.upright = [$("yaw-value").textContent, picture() === before, shares()];
  $("view").setPointerCapture = () => {}; // it refuses a pointer that no hand holds
  pointer("pointerdown", 10, 10);
  pointer("pointermove", 60, 30);
  pointer("pointerup", 60, 30);
  pointer("pointermove", 90, 90);
  told.dragged = [$("yaw-value").textContent, $("tilt-value").textContent];
  say($("scale-0"), 2.5);
  say($("shift-2"), -1);
  told.moved = ["scale-0", "shift-2", "scale-1"].map((id) => {
    const output = $(`${id}-value`);
    return [output.textContent, output.className];
  });
  told.movedShares = shares();
  $("back").click();
  told.back = shares();
  $("count").click();
  told.marked = picture() !== before;
  $("draw").click();
  told.drawnOutside = all("output.outside").length;
  $("next").click();
  told.next = $("object").selectedOptions[0].textContent;

  const named = (each) =>
    each.getAttribute("aria-label") || each.labels?.length || each.textContent.trim();
  told.unnamed = all("input, select, canvas, button, svg")
    .filter((each) => !named(each))
    .map((each) => each.outerHTML);
  told.overflow = document.documentElement.scrollWidth - innerWidth;
  const names = performance.getEntriesByType("resource").map((each) => each.name);
  told.resources = names.filter((name) => !/^(file|data):/.test(name));
  told.wrong = wrong;
  told.page = location.pathname;
  parent.postMessage(JSON.stringify(told), "*");
}
