// The loss of one row, as in minipc/nn/losses.py; the tags are those of docs/math.md.
// Numbers alone, nothing of the page: a test holds this file against the conformance vectors.
"use strict";

const GUARD_FLOOR = 0.05; // delta of (L8): the part of a p that the guard keeps in every class

/** Return log softmax(z / T).  (M16)  The maximum is subtracted first: nothing overflows. */
function logSoftmax(z, T) {
  const scaled = z.map((logit) => logit / T);
  const top = Math.max(...scaled);
  const logSum = Math.log(scaled.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
  return scaled.map((logit) => logit - top - logSum);
}

/** Return softmax(z / T). */
function softmax(z, T) {
  return logSoftmax(z, T).map(Math.exp);
}

function sumOf(numbers) {
  return numbers.reduce((sum, number) => sum + number, 0);
}

/** Return -sum_k q_k log s_k for weights q of any sign and any sum.  (L1) */
function crossEntropy(q, logS) {
  return -sumOf(q.map((weight, k) => weight * logS[k]));
}

/** Return (sum_j q_j) s - q, the gradient of (L1) in its logits.  (L2)  s - q would be wrong. */
function crossEntropyGradient(q, logS) {
  const total = sumOf(q);
  return q.map((weight, k) => total * Math.exp(logS[k]) - weight);
}

/** Return the label as weights, y = (1 - e) onehot + e / K.  (L3) */
function smoothLabel(label, classes, smoothing) {
  return Array.from(
    { length: classes },
    (_, k) => (1 - smoothing) * (k === label ? 1 : 0) + smoothing / classes,
  );
}

/** Return T^2 KL(p || s_T) from both logarithms.  (L4) */
function divergence(logP, logS, T) {
  return T ** 2 * sumOf(logP.map((logp, k) => Math.exp(logp) * (logp - logS[k])));
}

/** Return the margins M_i = (1-a) y_i + T (a p_i - b r_i).  (L6)  One below zero: no lower bound. */
function margins(y, p, r, a, b, T) {
  return y.map((_, i) => (1 - a) * y[i] + T * (a * p[i] - b * r[i]));
}

/** Return the guard's weights, q' = max(a p - b r, delta a p) class by class.  (L8) */
function guarded(p, r, a, b) {
  return p.map((_, k) => Math.max(a * p[k] - b * r[k], GUARD_FLOOR * a * p[k]));
}

/** Return the largest b for which no margin is below zero. */
function largestSafeB(y, p, r, a, T) {
  return Math.min(...y.map((_, i) => ((1 - a) * y[i] + a * T * p[i]) / (T * r[i])));
}

/** Return whether `--guard clip` takes these weights: it needs b < a / 2. */
function guardAllows(a, b) {
  return b === 0 || b < a / 2;
}

/**
 * Return every number of one row: {z, v, u, label, a, b, T, smoothing} -> the outputs of
 * docs/conformance.md by their names there, and s_1, s_T, p, r and reported, the total that
 * a run with the guard logs.
 */
function lossOfRow({ z, v, u, label, a, b, T, smoothing }) {
  const y = smoothLabel(label, z.length, smoothing);
  const [logS1, logS, logP, logR] = [
    logSoftmax(z, 1),
    logSoftmax(z, T),
    logSoftmax(v, T),
    logSoftmax(u, T),
  ];
  const [p, r] = [logP.map(Math.exp), logR.map(Math.exp)];
  const q = p.map((_, k) => a * p[k] - b * r[k]);
  const kept = guarded(p, r, a, b);

  const labels = crossEntropy(y, logS1);
  const distillation = divergence(logP, logS, T);
  const selfDistillation = divergence(logR, logS, T);
  const loss = (1 - a) * labels + a * distillation - b * selfDistillation; // (L5)

  // (L7): T^2 of the loss and 1 / T of the inner derivative leave T.
  const fromLabels = crossEntropyGradient(y, logS1);
  const gradientFor = (weights) => {
    const soft = crossEntropyGradient(weights, logS);
    return soft.map((_, k) => (1 - a) * fromLabels[k] + T * soft[k]);
  };
  const added = kept.map((weight, k) => weight - q[k]);

  return {
    y,
    s_1: logS1.map(Math.exp),
    s_T: logS.map(Math.exp),
    p,
    r,
    labels,
    distillation,
    self_distillation: selfDistillation,
    loss,
    gradient: gradientFor(q),
    margins: margins(y, p, r, a, b, T),
    guarded_weights: kept,
    guarded_loss: (1 - a) * labels + T ** 2 * crossEntropy(kept, logS),
    guarded_gradient: gradientFor(kept),
    reported: loss + T ** 2 * crossEntropy(added, logS), // (L9)
  };
}

/** Return [{t, raw, guarded}] along the walk z_i -> z_i - t, both with the constants of (L5). */
function walk(row, i, until, steps) {
  return Array.from({ length: steps + 1 }, (_, n) => {
    const t = (until * n) / steps;
    const z = row.z.map((logit, k) => (k === i ? logit - t : logit));
    const { loss, reported } = lossOfRow({ ...row, z });
    return { t, raw: loss, guarded: reported };
  });
}

/** Return a number with at most six significant digits, as %g writes it. */
function short(number) {
  return String(Number(number.toPrecision(6)));
}

/** Return the loss in use as one line of text, word for word what `minipc loss` prints. */
function formula({ a, b, T, smoothing }, guard) {
  let text = `${short(1 - a)} CE(y, s_1)`;
  if (a) text += ` + ${short(a)} T^2 KL(p || s_T)`;
  if (b) text += ` - ${short(b)} T^2 KL(r || s_T)`;
  if (a || b) text += `, T = ${short(T)}, KL summed over classes, batch mean`;
  if (b) text += `, guard ${guard}`;
  if (smoothing) text += `; y smoothed by ${short(smoothing)}`;
  return `loss = ${text}`;
}
