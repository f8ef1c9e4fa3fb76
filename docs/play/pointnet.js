// A small PointNet in evaluation, as minipc/models/pointnet.py computes it, batch norm folded into
// the layers: y = x W + b.  Numbers alone, nothing of the page: a test compares it with NumPy.
"use strict";

/** Return the bytes of a base64 text as a DataView. */
function bytesOf(text) {
  const characters = atob(text);
  const bytes = Uint8Array.from(characters, (character) => character.charCodeAt(0));
  return new DataView(bytes.buffer);
}

/** Return little-endian float32 numbers in base64 as doubles. */
function floatsOf(text) {
  const view = bytesOf(text);
  return Float64Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Return points in base64, int16 in units of 1 / 32767, as doubles that float32 holds: 3 a point. */
function pointsOf(text) {
  const view = bytesOf(text);
  return Float64Array.from({ length: view.byteLength / 2 }, (_, i) =>
    Math.fround(view.getInt16(2 * i, true) / 32767),
  );
}

/** Return the layers of an exported student, ready for logitsOf. */
function layersOf(exported) {
  return exported.layers.map(({ inputs, outputs, W, b }) => ({
    inputs,
    outputs,
    W: floatsOf(W), // [inputs][outputs], row by row
    b: floatsOf(b),
  }));
}

/** Return x W + b for the row of x that begins at `from`, and at least 0 if `relu`. */
function affine(x, from, { inputs, outputs, W, b }, relu) {
  const y = Float64Array.from(b);
  for (let i = 0; i < inputs; i++) {
    const value = x[from + i];
    if (value === 0) continue; // of ReLU: half of them
    for (let o = 0; o < outputs; o++) y[o] += value * W[i * outputs + o];
  }
  return relu ? y.map((value) => Math.max(value, 0)) : y;
}

/**
 * Return {logits, winners} of one cloud, points as x, y, z, x, y, z, ...  winners[c] is the point
 * whose channel c is the maximum over all points (the first of equal ones), -1 if that maximum is
 * 0: then no point was seen by this channel.
 */
function logitsOf(points, layers, shared) {
  const width = layers[shared - 1].outputs;
  const pooled = new Float64Array(width); // after ReLU nothing is below 0
  const winners = new Int32Array(width).fill(-1);
  for (let n = 0; 3 * n < points.length; n++) {
    let x = affine(points, 3 * n, layers[0], true);
    for (const layer of layers.slice(1, shared)) x = affine(x, 0, layer, true);
    for (let c = 0; c < width; c++) {
      if (x[c] > pooled[c]) {
        pooled[c] = x[c];
        winners[c] = n;
      }
    }
  }
  let x = pooled;
  const head = layers.slice(shared);
  head.forEach((layer, number) => {
    x = affine(x, 0, layer, number < head.length - 1);
  });
  return { logits: Array.from(x), winners };
}

/** Return points * scale + shift, each rounded to float32: the view that training applies.  (A2) */
function augmented(points, scale, shift) {
  return points.map((value, i) =>
    Math.fround(Math.fround(value * Math.fround(scale[i % 3])) + Math.fround(shift[i % 3])),
  );
}

/** Return points turned about the up axis by `yaw`, then tilted about the x axis by `tilt`. */
function turned(points, yaw, tilt) {
  const [c, s, d, e] = [Math.cos(yaw), Math.sin(yaw), Math.cos(tilt), Math.sin(tilt)];
  const moved = new Float64Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    const x = c * points[i] - s * points[i + 1];
    const y = s * points[i] + c * points[i + 1];
    moved[i] = Math.fround(x);
    moved[i + 1] = Math.fround(d * y - e * points[i + 2]);
    moved[i + 2] = Math.fround(e * y + d * points[i + 2]);
  }
  return moved;
}

/** Return the index of the largest number, the first of equal ones. */
function argMax(numbers) {
  return numbers.indexOf(Math.max(...numbers));
}
