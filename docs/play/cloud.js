// The second part of the page: a student of ours looks at a cloud.  Its numbers come from
// pointnet.js, its weights from weights.js, its clouds from clouds.js.
"use strict";

{
  const AXES = ["x", "y", "z"];
  const DEGREE = Math.PI / 180;
  const KEY_TURN = 5 * DEGREE; // for one press of an arrow key
  const DRAG_TURN = 0.01; // radians for one pixel
  const [AZIMUTH, ELEVATION] = [-60 * DEGREE, 22 * DEGREE]; // of the camera
  const HALF_WIDTH = 1.25; // of the picture, in radii of a cloud
  const VIEW = [
    ["scale", 0.3, 2.5], // beyond the ranges of training on purpose: there the student errs
    ["shift", -1, 1],
  ];

  const $ = (id) => document.getElementById(id);
  const layers = layersOf(STUDENT);
  const names = STUDENT.classes;
  const state = { object: 0 };
  const bars = []; // of each class: {row, bar, number}
  let said = null; // what was said last, so that it is announced only where it changes

  function percent(share) {
    return `${(100 * share).toFixed(1)} %`;
  }

  function inTraining(kind, value) {
    const [low, high] = STUDENT[kind];
    return low - 1e-9 <= value && value <= high + 1e-9;
  }

  /** Return what the student sees and what the person sees, points in the same order. */
  function look() {
    const stored = pointsOf(CLOUDS[state.object].points);
    if ($("seen").checked) {
      const seen = augmented(turned(stored, state.yaw, state.tilt), state.scale, state.shift);
      return { seen, shownPoints: seen };
    }
    const seen = augmented(stored, state.scale, state.shift);
    return { seen, shownPoints: turned(seen, state.yaw, state.tilt) };
  }

  /** Return (across, up, near) of a point for a camera that stands still. */
  function projected(x, y, z) {
    const [c, s, d, e] = [
      Math.cos(AZIMUTH),
      Math.sin(AZIMUTH),
      Math.cos(ELEVATION),
      Math.sin(ELEVATION),
    ];
    const away = c * x + s * y; // towards the camera, on the ground
    return [-s * x + c * y, d * z - e * away, d * away + e * z];
  }

  function drawPicture(points, winners) {
    const canvas = $("view");
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const unit = Math.min(width, height) / 2 / HALF_WIDTH;
    const place = (across, up) => [width / 2 + unit * across, height / 2 - unit * up];

    pen.strokeStyle = colour("--rule");
    pen.fillStyle = colour("--quiet");
    pen.font = "13px system-ui, sans-serif";
    AXES.forEach((name, axis) => {
      const end = [0, 0, 0];
      end[axis] = 1;
      const [across, up] = projected(...end);
      pen.beginPath();
      pen.moveTo(...place(0, 0));
      pen.lineTo(...place(across, up));
      pen.stroke();
      pen.fillText(name, ...place(1.06 * across, 1.06 * up));
    });

    const counting = new Set($("count").checked ? winners : []);
    const order = [];
    for (let n = 0; 3 * n < points.length; n++) {
      order.push([n, ...projected(points[3 * n], points[3 * n + 1], points[3 * n + 2])]);
    }
    order.sort((one, other) => one[3] - other[3]); // far points first
    for (const [n, across, up, near] of order) {
      const closeness = Math.min(Math.max((near + 1.2) / 2.4, 0), 1);
      const [x, y] = place(across, up);
      pen.globalAlpha = 0.35 + 0.65 * closeness;
      pen.fillStyle = colour("--blue");
      pen.beginPath();
      pen.arc(x, y, 1.6 + 1.6 * closeness, 0, 2 * Math.PI);
      pen.fill();
      if (counting.has(n)) {
        pen.globalAlpha = 1;
        pen.strokeStyle = colour("--amber");
        pen.lineWidth = 2;
        pen.strokeRect(x - 5, y - 5, 10, 10);
      }
    }
    pen.globalAlpha = 1;
  }

  function drawAnswer(logits, winners) {
    const shares = softmax(logits, 1);
    const [first, truth] = [argMax(logits), CLOUDS[state.object].label];
    bars.forEach(({ row, bar, number, name }, k) => {
      bar.style.width = `${100 * shares[k]}%`;
      number.textContent = percent(shares[k]) + (k === first ? " ◀" : "");
      row.classList.toggle("said", k === first);
      name.textContent = names[k] + (k === truth ? " ✓" : "");
    });
    const counting = new Set(winners.filter((n) => n >= 0)).size;
    const text = {
      head: first === truth ? "✓ Right." : "✗ Wrong.",
      words: ` The student says ${names[first]}. It is a ${names[truth]}.`,
    };
    if (said !== text.head + text.words) {
      said = text.head + text.words;
      const head = document.createElement("b");
      head.textContent = text.head;
      $("said").replaceChildren(head, text.words);
      $("said").classList.toggle("bad", first !== truth);
    }
    $("counting").textContent = `${counting} of ${STUDENT.points}`;
    const degrees = (angle) => Math.round(angle / DEGREE);
    $("view").setAttribute(
      "aria-label",
      `A cloud of ${STUDENT.points} points, a ${names[truth]}, turned by ${degrees(state.yaw)} ` +
        `degrees and tilted by ${degrees(state.tilt)} degrees`,
    );
  }

  function drawSlider(id, value, text, outside) {
    $(id).value = value;
    $(`${id}-value`).textContent = text.replace("-", "−");
    $(`${id}-value`).classList.toggle("outside", outside);
  }

  function draw() {
    for (const id of ["yaw", "tilt"]) {
      const degrees = state[id] / DEGREE;
      drawSlider(id, degrees, `${Math.round(degrees)}°`, false);
    }
    for (const [kind] of VIEW) {
      state[kind].forEach((value, axis) => {
        drawSlider(`${kind}-${axis}`, value, value.toFixed(2), !inTraining(kind, value));
      });
    }
    const { seen, shownPoints } = look();
    const { logits, winners } = logitsOf(seen, layers, STUDENT.shared);
    drawPicture(shownPoints, winners);
    drawAnswer(logits, winners);
  }

  /** Turn by two angles; both stay between -180 and 180 degrees. */
  function turn(yaw, tilt) {
    const within = (angle) => Math.atan2(Math.sin(angle), Math.cos(angle));
    [state.yaw, state.tilt] = [within(state.yaw + yaw), within(state.tilt + tilt)];
    draw();
  }

  function upright() {
    [state.yaw, state.tilt] = [0, 0];
    draw();
  }

  function asStored() {
    [state.scale, state.shift] = [
      [1, 1, 1],
      [0, 0, 0],
    ];
    upright();
  }

  function makeBars() {
    const body = document.createElement("tbody");
    for (const each of names) {
      const row = body.insertRow();
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = each;
      row.append(name);
      const track = document.createElement("div");
      track.className = "track";
      track.setAttribute("aria-hidden", "true");
      const bar = document.createElement("span");
      bar.className = "bar";
      track.append(bar);
      row.insertCell().append(track);
      bars.push({ row, bar, number: row.insertCell(), name });
    }
    $("classes").append(body);
  }

  function makeSlider(id, name, low, high, step, changed) {
    const box = document.createElement("div");
    box.className = id === "tilt" ? "slider to-the-end" : "slider"; // scale and shift: a line each
    box.innerHTML =
      `<label for="${id}">${name}</label><output for="${id}" id="${id}-value"></output>` +
      `<input type="range" id="${id}" min="${low}" max="${high}" step="${step}">`;
    $("view-sliders").append(box);
    $(id).addEventListener("input", () => {
      changed($(id).valueAsNumber);
      draw();
    });
  }

  function makeSliders() {
    for (const [id, name] of [
      ["yaw", "turn"],
      ["tilt", "tilt"],
    ]) {
      makeSlider(id, name, -180, 180, 1, (degrees) => {
        state[id] = degrees * DEGREE;
      });
    }
    for (const [kind, low, high] of VIEW) {
      AXES.forEach((axis, n) => {
        makeSlider(`${kind}-${n}`, `${kind} ${axis}`, low, high, 0.01, (value) => {
          state[kind][n] = value;
        });
      });
    }
  }

  function listen() {
    const canvas = $("view");
    const keys = {
      ArrowLeft: [-KEY_TURN, 0],
      ArrowRight: [KEY_TURN, 0],
      ArrowUp: [0, -KEY_TURN],
      ArrowDown: [0, KEY_TURN],
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Home") upright();
      else if (event.key in keys) turn(...keys[event.key]);
      else return;
      event.preventDefault(); // an arrow key turns, and does not scroll the page
    });
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      turn(DRAG_TURN * (event.clientX - from[0]), DRAG_TURN * (event.clientY - from[1]));
      from = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        from = null;
      });
    }
    $("object").addEventListener("input", () => {
      state.object = Number($("object").value);
      draw();
    });
    $("next").addEventListener("click", () => {
      state.object = (state.object + 1) % CLOUDS.length;
      $("object").value = state.object;
      draw();
    });
    for (const id of ["seen", "count"]) $(id).addEventListener("input", draw);
    $("draw").addEventListener("click", () => {
      for (const [kind] of VIEW) {
        const [low, high] = STUDENT[kind];
        state[kind] = AXES.map(() => low + (high - low) * Math.random());
      }
      draw();
    });
    $("back").addEventListener("click", asStored);
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  CLOUDS.forEach(({ label }, n) => {
    const option = document.createElement("option");
    option.value = n;
    const number = CLOUDS.slice(0, n + 1).filter((each) => each.label === label).length;
    option.textContent = `${names[label]} ${number}`;
    $("object").append(option);
  });
  state.object = CLOUDS.findIndex(({ label }) => names[label] === "chair");
  $("object").value = state.object;
  $("student-text").textContent = STUDENT.about;
  const [[low, high], [least, most]] = [STUDENT.scale, STUDENT.shift];
  $("ranges").textContent =
    `In training each axis of each cloud was scaled by ${low.toFixed(2)} to ${high.toFixed(2)} and ` +
    `shifted by ${least.toFixed(1).replace("-", "−")} to ${most.toFixed(1)}, anew in every view. ` +
    "The sliders go further, and say so: outside. Turn and tilt were not drawn in training.";
  makeBars();
  makeSliders();
  listen();
  asStored();
}
