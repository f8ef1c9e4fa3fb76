/* Layers one after the other.  x may lie in s->odd: the first layer writes into s->even. */
static const minipc_element *run(const struct map *map, int count, const minipc_element *x,
                                 minipc_state *s)
{
    int i;

    for (i = 0; i < count; i++) {
        minipc_element *y = i % 2 ? s->odd : s->even;
        layer(map + i, x, y);
        x = y;
    }
    return x;
}

static int finite(const float *point)
{
    return point[0] - point[0] == 0 && point[1] - point[1] == 0 && point[2] - point[2] == 0;
}

static void start(minipc_state *s)
{
    int o;

    for (o = 0; o < POOLED; o++) {
        s->largest[o] = 0; /* ReLU leaves nothing below it */
#if MEAN
        s->sum[o] = 0;
#endif
    }
}

/* One more point, which lies in s->odd. */
static void pool(minipc_state *s)
{
    const minipc_element *y = run(maps + LAST, LASTS, s->odd, s);
    int o;

    for (o = 0; o < POOLED; o++) {
        if (y[o] > s->largest[o])
            s->largest[o] = (minipc_feature)y[o];
#if MEAN
        s->sum[o] += y[o];
#endif
    }
}

/* The logits of the points so far, and the class: the lowest of equal ones. */
static int finish(minipc_state *s, minipc_logit *logits)
{
    int o, best = 0;

    for (o = 0; o < POOLED; o++) {
        s->odd[o] = s->largest[o];
#if MEAN
        s->odd[POOLED + o] = mean(s->sum[o]);
#endif
    }
    linear(maps + OUT, run(maps + HEAD, HEADS, s->odd, s), logits);
    for (o = 0; o < MINIPC_CLASSES; o++) {
        if (logits[o] - logits[o] != 0)
            return -1; /* overflowed: points far larger than those of the training */
        if (logits[o] > logits[best])
            best = o;
    }
    return best;
}
