/* A layer: y = A x + c, batch norm folded in.  Each sum is added in the order of the inputs, so
   that every machine with IEEE floats computes the same bits. */
struct map {
    int inputs, outputs;
    const float *A; /* the weights of input 0 for all outputs, then those of input 1, ... */
    const float *c;
};

static void linear(const struct map *map, const minipc_element *x, float *y)
{
    const float *A = map->A;
    int i, o, outputs = map->outputs;

    for (o = 0; o < outputs; o++)
        y[o] = map->c[o];
    for (i = 0; i < map->inputs; i++, A += outputs)
        for (o = 0; o < outputs; o++)
            y[o] += A[o] * x[i];
}

static void layer(const struct map *map, const minipc_element *x, minipc_element *y)
{
    int o;

    linear(map, x, y);
    for (o = 0; o < map->outputs; o++)
        y[o] = y[o] > 0 ? y[o] : 0;
}

static void position(const float *point, minipc_element *x)
{
    int i;

    for (i = 0; i < 3; i++)
        x[i] = point[i];
}

#if RESIDUALS
static minipc_feature added(const struct map *map, minipc_element y, minipc_feature x)
{
    (void)map;
    return y + x;
}
#endif

#if MEAN
static minipc_feature mean(minipc_sum sum)
{
    return sum / MEAN_OF;
}
#endif
