"""Point clouds in an HTML page: a canvas for each, and one script that draws and turns them all.

A cloud is drawn once, stands still until somebody turns it, and is drawn again only then.  Depth is
told twice, by size and by tone; the ink is that of the page, so it is right in dark mode too.
"""

from base64 import b64encode
from html import escape

import numpy as np

GRID = 32767  # steps from the middle of the picture to its edge: int16, finer than any screen
UP_LAST = {"x": [1, 2, 0], "y": [2, 0, 1], "z": [0, 1, 2], "unknown": [0, 1, 2]}  # no mirroring
YAW, PITCH = -0.55, 0.35  # radians: how a cloud is turned, and seen from above, at first

STYLE = """
.clouds { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 44%), 1fr));
  gap: 1rem; margin: 1rem 0; }
figure.cloud { margin: 0; min-width: 0; }
figure.cloud canvas { display: block; width: 100%; aspect-ratio: 1; color: var(--ink);
  background: var(--panel); border-radius: 0.3rem; cursor: grab; touch-action: pan-y pinch-zoom; }
figure.cloud canvas:active { cursor: grabbing; }
figure.cloud figcaption { white-space: pre-line; margin-top: 0.3rem; line-height: 1.35; }
figure.cloud figcaption::first-line { color: var(--ink); font-weight: 600; }
@media print { .turn { display: none; }
  .clouds { grid-template-columns: repeat(auto-fill, minmax(3.6cm, 1fr)); }
  figure.cloud canvas { background: none; border: 1px solid var(--line); } }
"""

HINT = (
    '<p class="faint turn">A cloud turns: drag it, or go to it with <kbd>Tab</kbd> and use the '
    "arrow keys; <kbd>Home</kbd> turns it back.</p>"
)

# Angles in radians.  Right, away from the reader, up: a right-handed frame, like the data's.
SCRIPT = """
"use strict";
(() => {
  const START = { yaw: YAW, pitch: PITCH }, STEP = Math.PI / 12, CAMERA = 4;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let printing = false;

  function decoded(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer), points = new Float32Array(bytes.length / 2);
    for (let i = 0; i < points.length; i++) points[i] = view.getInt16(2 * i, true) / 32767;
    return points;
  }

  function draw(cloud) {
    const { canvas, points, yaw, pitch } = cloud, count = points.length / 3;
    const side = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.width = canvas.height = side; // also clears it
    const context = canvas.getContext("2d");
    context.fillStyle = printing ? "black" : getComputedStyle(canvas).color;
    const [c, s, d, t] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const right = new Float32Array(count), up = new Float32Array(count);
    const depth = new Float32Array(count), order = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      const x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
      const away = s * x + c * y;
      right[i] = c * x - s * y;
      up[i] = d * z + t * away;
      depth[i] = d * away - t * z;
      order[i] = i;
    }
    order.sort((i, j) => depth[j] - depth[i]); // the nearest last, over the others
    const middle = side / 2, half = 0.45 * side;
    const dot = side * Math.min(0.012, 0.18 / Math.sqrt(count));
    for (const i of order) {
      const near = CAMERA / (CAMERA + depth[i]); // 0.8 to 1.33
      context.globalAlpha = Math.min(1, Math.max(0.18, 0.6 - 0.5 * depth[i]));
      context.beginPath();
      context.arc(middle + half * near * right[i], middle - half * near * up[i],
        dot * near * near, 0, 2 * Math.PI);
      context.fill();
    }
  }

  function soon(cloud) { // at most once a frame
    if (cloud.waiting) return;
    cloud.waiting = true;
    requestAnimationFrame(() => {
      cloud.waiting = false;
      const [yaw, pitch] = [cloud.goal.yaw - cloud.yaw, cloud.goal.pitch - cloud.pitch];
      const there = still.matches || Math.abs(yaw) + Math.abs(pitch) < 0.01;
      cloud.yaw += there ? yaw : 0.3 * yaw;
      cloud.pitch += there ? pitch : 0.3 * pitch;
      draw(cloud);
      if (!there) soon(cloud);
    });
  }

  function turn(cloud, yaw, pitch) {
    cloud.goal.yaw += yaw;
    cloud.goal.pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, cloud.goal.pitch + pitch));
    soon(cloud);
  }

  const KEYS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP],
    ArrowDown: [0, STEP] };

  function made(canvas) {
    const cloud = { canvas, points: decoded(canvas.dataset.points), ...START, goal: { ...START } };
    let last = null; // where the finger or the mouse was
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === "Home") cloud.goal = { ...START };
      else if (!KEYS[event.key]) return;
      event.preventDefault(); // the page would scroll
      turn(cloud, ...(KEYS[event.key] || [0, 0]));
    });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = event;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last || !canvas.hasPointerCapture(event.pointerId)) return;
      const scale = Math.PI / canvas.clientWidth; // half a turn across the picture
      turn(cloud, scale * (event.clientX - last.clientX), scale * (event.clientY - last.clientY));
      Object.assign(cloud, cloud.goal); // follow the hand at once
      last = event;
    });
    canvas.addEventListener("lostpointercapture", () => { last = null; });
    new ResizeObserver(() => soon(cloud)).observe(canvas); // calls at once, too
    return cloud;
  }

  const clouds = [...document.querySelectorAll("canvas[data-points]")].map(made);
  addEventListener("resize", () => clouds.forEach(soon)); // zoom, another screen
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => clouds.forEach(soon));
  addEventListener("beforeprint", () => { printing = true; clouds.forEach(draw); });
  addEventListener("afterprint", () => { printing = false; clouds.forEach(draw); });
})();
""".replace("YAW", str(YAW)).replace("PITCH", str(PITCH))


def cloud_figure(
    points: np.ndarray,
    caption: str,
    alternative: str,
    *,
    up_axis: str = "z",
    frame: np.ndarray | None = None,
) -> str:
    """Return a <figure> with one cloud; STYLE, SCRIPT and HINT stand once in its page.

    points (P, 3) real, finite; caption, alternative: plain text below the picture and in its place
    (the first line of a caption is its title); up_axis: "x", "y", "z" or "unknown", shown as z.
    The cloud fills its picture; with a frame, points (Q, 3), these would fill it, so that clouds of
    one frame can be compared.  Figures that belong together stand in <div class="clouds">.
    """
    packed = b64encode(quantised(points, up_axis, frame).astype("<i2").tobytes()).decode()
    return (
        f'<figure class="cloud"><canvas tabindex="0" role="img" aria-label="{escape(alternative)}" '
        'aria-keyshortcuts="ArrowLeft ArrowRight ArrowUp ArrowDown Home" '
        f'data-points="{packed}"></canvas>\n<figcaption>{escape(caption)}</figcaption></figure>'
    )


def quantised(
    points: np.ndarray, up_axis: str = "z", frame: np.ndarray | None = None
) -> np.ndarray:
    """Return points (P, 3) as (P, 3) int16 in steps of the picture, their up axis last.

    The points of the frame, or of the cloud itself, lie within GRID steps of the middle of their
    box.  A point far out of a frame is moved onto the edge of the grid, axis by axis.
    """
    turned, whole = (
        np.asarray(each, np.float64)[:, UP_LAST[up_axis]]
        for each in (points, points if frame is None else frame)
    )
    middle = (whole.min(axis=0) + whole.max(axis=0)) / 2
    radius = np.sqrt(((whole - middle) ** 2).sum(axis=1).max())
    unit = (turned - middle) / (radius if radius > 0 else 1)  # 0: one point, in the middle
    return np.rint(GRID * unit.clip(-1, 1)).astype(np.int16)
