// The first part of the page: one row of four classes.  All numbers come from loss.js.
"use strict";

{
  // The row of docs/negative_weights.md: the earlier self gave class 3 far more than the teacher.
  const FIRST = { z: [2, 1, 0, 0], v: [6, 1, 0, -6], u: [3, 1, 0, 2], label: 0 };
  const CLASSES = [0, 1, 2, 3];
  const MOST_LOGIT = 50;
  const LEAST_BAR = 6; // pixels: the width of a bar too short to see
  const LOGIT_NAMES = { z: "student", v: "teacher", u: "earlier self" };

  const $ = (id) => document.getElementById(id);
  const row = structuredClone(FIRST);

  /** Return a number for people: a true minus, three decimals, or two digits where it is tiny. */
  function shown(number) {
    const size = Math.abs(number);
    let text = size.toFixed(size >= 1000 ? 0 : 3);
    if (size === 0) text = "0";
    else if (size < 0.001) text = size.toExponential(1);
    return (number < 0 ? "−" : "") + text;
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /** Return "class 1", or "classes 1 and 3". */
  function named(classes) {
    if (classes.length === 1) return `class ${classes[0]}`;
    return `classes ${classes.slice(0, -1).join(", ")} and ${classes.at(-1)}`;
  }

  /** Return the row with its settings, as lossOfRow takes it. */
  function current() {
    const [a, b, T, smoothing] = ["a", "b", "T", "smoothing"].map((id) => $(id).valueAsNumber);
    return { ...row, a, b, T, smoothing };
  }

  function drawVerdict({ a, b, T }, told) {
    const least = Math.min(...told.margins);
    const below = CLASSES.filter((i) => told.margins[i] < 0);
    const safe = Math.floor(1000 * largestSafeB(told.y, told.p, told.r, a, T)) / 1000;
    const at = told.margins.indexOf(least);
    const box = $("verdict");
    box.classList.toggle("bad", below.length > 0);
    let [head, text] = ["✓ Bounded below.", ` The least margin is ${shown(least)} (class ${at}).`];
    if (below.length) {
      head = "✗ No lower bound.";
      const [noun, verb] = below.length === 1 ? ["margin", "is"] : ["margins", "are"];
      text =
        ` The ${noun} of ${named(below)} ${verb} below zero. Along z_${at} → −∞ the raw loss falls by ` +
        `${shown(-least)} for each unit, without end.`;
    } else if (least === 0) {
      text = " The least margin is 0: the loss has a lower bound, but perhaps no minimiser.";
    }
    text += ` Largest safe b of this row: ${safe < 0.001 ? "below 0.001" : safe.toFixed(3)}.`;
    const raised = CLASSES.filter((i) => told.guarded_weights[i] > a * told.p[i] - b * told.r[i]);
    if (!guardAllows(a, b)) text += " The guard needs b < a / 2: minipc refuses it here.";
    else if (raised.length) text += ` The guard raises ${named(raised)}.`;
    else if (b) text += " The guard raises no class here.";
    box.replaceChildren(element("b", {}, head), text);
  }

  function drawMargins(settings, told) {
    const guard = settings.b > 0 && guardAllows(settings.a, settings.b);
    const kept = CLASSES.map(
      (i) => (1 - settings.a) * told.y[i] + settings.T * told.guarded_weights[i],
    );
    const high = Math.max(...told.margins, ...(guard ? kept : []), 1e-9);
    const low = Math.min(...told.margins, -high / 5); // room for what is below zero
    const place = (value) => (100 * (value - low)) / (high - low);
    const span = (from, to, kind) => {
      const [left, right] = [Math.min(from, to), Math.max(from, to)].map(place);
      const bar = element("span", { class: kind });
      const width = from === to ? "0px" : `max(${right - left}%, ${LEAST_BAR}px)`;
      bar.style.width = width;
      // A bar below zero ends at zero, also where it is widened.
      if (to < from) bar.style.right = `${100 - place(from)}%`;
      else bar.style.left = `${left}%`;
      return bar;
    };
    const rows = CLASSES.map((i) => {
      const M = told.margins[i];
      const track = element("div", { class: "track", "aria-hidden": "true" });
      if (M !== 0) track.append(span(0, M, M < 0 ? "bar negative" : "bar"));
      if (guard) track.append(span(0, kept[i], "guard"));
      const zero = element("span", { class: "zero" });
      zero.style.left = `${place(0)}%`;
      track.append(zero);
      const number = element("td", M < 0 ? { class: "negative-number" } : {}, shown(M));
      if (M < 0) number.append(" ✗", element("span", { class: "unseen" }, " below zero"));
      const head = element("th", { scope: "row" }, `class ${i}`, i === row.label ? " (y)" : "");
      return element("tr", {}, head, element("td", {}, track), number);
    });
    $("margins").replaceChildren($("margins").caption, element("tbody", {}, ...rows));
  }

  function alongClass(told) {
    const chosen = $("along").value;
    return chosen === "least" ? told.margins.indexOf(Math.min(...told.margins)) : Number(chosen);
  }

  /** Return about five round numbers from low to high. */
  function ticks(low, high) {
    const rough = (high - low) / 5 || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(n * step);
    return found;
  }

  function drawWalk(settings, told) {
    const [i, until] = [alongClass(told), Number($("until").value)];
    const at = Math.min($("at").valueAsNumber, until);
    const guard = settings.b > 0 && guardAllows(settings.a, settings.b);
    const points = walk(settings, i, until, 120);
    const values = points.flatMap(({ raw, guarded }) => (guard ? [raw, guarded] : [raw]));
    const [low, high] = [Math.min(...values, 0), Math.max(...values)];
    const width = Math.max($("walk").clientWidth, 280);
    const [left, right, top, bottom, height] = [56, 14, 10, 44, 260];
    const x = (t) => left + ((width - left - right) * t) / until;
    const y = (loss) => top + ((height - top - bottom) * (high - loss)) / (high - low || 1);
    const line = (kind) =>
      points.map((each, n) => `${n ? "L" : "M"}${x(each.t).toFixed(1)} ${y(each[kind]).toFixed(1)}`);
    const parts = [];
    for (const tick of ticks(low, high)) {
      parts.push(`<path class="grid" d="M${left} ${y(tick)}H${width - right}"/>`);
      const text = String(Number(tick.toPrecision(6))).replace("-", "−");
      parts.push(`<text x="${left - 8}" y="${y(tick) + 4}" text-anchor="end">${text}</text>`);
    }
    for (const tick of ticks(0, until)) {
      const text = `<text x="${x(tick)}" y="${height - bottom + 18}" text-anchor="middle">`;
      parts.push(`${text}${tick}</text>`);
    }
    const name = `t, along z_${i} − t`;
    parts.push(`<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${name}</text>`);
    parts.push(`<path class="at" d="M${x(at)} ${top}V${height - bottom}"/>`);
    parts.push(`<path class="raw" d="${line("raw").join("")}"/>`);
    if (guard) parts.push(`<path class="guard" d="${line("guarded").join("")}"/>`);
    const [first, last] = [points[0], points.at(-1)];
    let label = `The raw loss goes from ${shown(first.raw)} at t = 0 to ${shown(last.raw)} at t = ${until}`;
    if (guard) label += `, with the guard from ${shown(first.guarded)} to ${shown(last.guarded)}`;
    $("walk").innerHTML =
      `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${label}.">${parts.join("")}</svg>`;

    const here = lossOfRow({ ...settings, z: row.z.map((z, k) => (k === i ? z - at : z)) });
    let text = `At t = ${at}: raw loss ${shown(here.loss)}`;
    if (guard) text += `, with the guard ${shown(here.reported)}`;
    text +=
      `. The student gives class ${i} the probability ${shown(here.s_1[i])} and the label ` +
      `${shown(here.s_1[row.label])}. `;
    const falls = last.raw < points.at(-20).raw;
    if (told.margins[i] < 0) text += "The margin is below zero: the raw loss falls without end.";
    else if (told.margins[i] === 0) text += "The margin is 0: the raw loss levels out.";
    else if (falls) text += "The margin is above zero: the raw loss falls here, but not without end.";
    else text += "The margin is above zero: the raw loss has turned upwards.";
    $("walk-text").textContent = text;
    $("at").max = until;
    $("at-value").textContent = at;
  }

  function drawNumbers({ a, b, T }, told) {
    const q = CLASSES.map((k) => a * told.p[k] - b * told.r[k]);
    const lines = [
      ["y, label", told.y],
      ["p, teacher", told.p],
      ["r, earlier self", told.r],
      ["s_T, student", told.s_T],
      ["s_1, student at T = 1", told.s_1],
      ["a p − b r", q],
      ["q', by the guard", told.guarded_weights],
      ["M, margin", told.margins],
      ["M with q'", CLASSES.map((i) => (1 - a) * told.y[i] + T * told.guarded_weights[i])],
      ["gradient, raw", told.gradient],
      ["gradient with q'", told.guarded_gradient],
    ];
    const heads = CLASSES.map((i) => element("th", { scope: "col" }, `class ${i}`));
    const top = element("tr", {}, element("td"), ...heads, element("th", { scope: "col" }, "sum"));
    const body = lines.map(([name, numbers]) => {
      const cells = numbers.map((number) => element("td", {}, shown(number)));
      const total = sumOf(numbers);
      cells.push(element("td", {}, shown(Math.abs(total) < 1e-12 ? 0 : total)));
      return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
    });
    $("numbers").replaceChildren(element("thead", {}, top), element("tbody", {}, ...body));
    $("terms").textContent =
      `CE(y, s_1) = ${shown(told.labels)}, T² KL(p || s_T) = ${shown(told.distillation)}, ` +
      `T² KL(r || s_T) = ${shown(told.self_distillation)}; loss ${shown(told.loss)} raw, ` +
      `${shown(told.reported)} with the guard (both with the constants of the raw loss). ` +
      "The sum of a gradient is 0: raising all logits alike changes nothing.";
  }

  function draw() {
    const settings = current();
    const told = lossOfRow(settings);
    for (const id of ["a", "b", "T", "smoothing"]) $(`${id}-value`).textContent = $(id).value;
    $("formula").textContent = formula(settings, guardAllows(settings.a, settings.b) ? "clip" : "none");
    const values = [settings.a, settings.b, settings.T, settings.smoothing].join(" ");
    for (const button of document.querySelectorAll("[data-preset]")) {
      button.setAttribute("aria-pressed", String(button.dataset.preset === values));
    }
    drawVerdict(settings, told);
    drawMargins(settings, told);
    drawWalk(settings, told);
    drawNumbers(settings, told);
  }

  function drawLogits() {
    const heads = CLASSES.map((i) => element("th", { scope: "col" }, `class ${i}`));
    const lines = Object.entries(LOGIT_NAMES).map(([name, whose]) => {
      const cells = CLASSES.map((k) => {
        const input = element("input", {
          type: "number",
          step: "0.5",
          min: -MOST_LOGIT,
          max: MOST_LOGIT,
          value: row[name][k],
          "aria-label": `${name}, ${whose}, class ${k}`,
        });
        input.addEventListener("input", () => {
          const logit = input.valueAsNumber;
          if (!(Math.abs(logit) <= MOST_LOGIT)) return; // empty or too large: keep the last one
          row[name][k] = logit;
          draw();
        });
        return element("td", {}, input);
      });
      return element("tr", {}, element("th", { scope: "row", title: whose }, name), ...cells);
    });
    const labels = CLASSES.map((k) => {
      const input = element("input", { type: "radio", name: "label", "aria-label": `label: class ${k}` });
      input.checked = k === row.label;
      input.addEventListener("change", () => {
        row.label = k;
        draw();
      });
      return element("td", {}, input);
    });
    lines.push(element("tr", {}, element("th", { scope: "row" }, "y"), ...labels));
    $("logits").replaceChildren(element("tr", {}, element("td"), ...heads), ...lines);
  }

  function choose(preset) {
    const values = preset.split(" ");
    ["a", "b", "T", "smoothing"].forEach((id, n) => {
      $(id).value = values[n];
    });
    draw();
  }

  $("along").append(element("option", { value: "least" }, "the class of the least margin"));
  for (const i of CLASSES) $("along").append(element("option", { value: i }, `class ${i}`));
  for (const id of ["a", "b", "T", "smoothing", "at", "along", "until"]) {
    $(id).addEventListener("input", draw);
  }
  for (const button of document.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", () => choose(button.dataset.preset));
  }
  $("first-row").addEventListener("click", () => {
    Object.assign(row, structuredClone(FIRST));
    drawLogits();
    draw();
  });
  addEventListener("resize", draw);
  drawLogits();
  choose("0.9 0.2 4 0");
}
