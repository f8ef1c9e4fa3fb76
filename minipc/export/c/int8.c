/* A layer in whole numbers: docs/export.md of minipc defines each of them. */
struct map {
    int inputs, outputs;
    int split;              /* inputs of the first part; the rest are the second */
    const int8_t *w;        /* the weights of output 0 for all inputs, then those of output 1, ... */
    const int32_t *factor;  /* of the first part's sum, one for each output */
    const int32_t *factor2; /* of the second part's, if there is one */
    const int64_t *bias;
    const uint8_t *shift;
#if RESIDUALS
    int32_t added; /* factor and shift of the input that a residual layer adds */
    uint8_t added_shift;
#endif
};

static int64_t total(const struct map *map, const minipc_element *x, int o)
{
    const int8_t *w = map->w + (size_t)o * (size_t)map->inputs;
    int32_t first = 0, second = 0;
    int i;

    for (i = 0; i < map->split; i++)
        first += (int32_t)w[i] * x[i];
    for (; i < map->inputs; i++)
        second += (int32_t)w[i] * x[i];
    return map->bias[o] + (int64_t)first * map->factor[o]
           + (map->factor2 ? (int64_t)second * map->factor2[o] : 0);
}

static void layer(const struct map *map, const minipc_element *x, minipc_element *y)
{
    int o;

    for (o = 0; o < map->outputs; o++) {
        int64_t t = total(map, x, o), q = t > 0 ? t >> map->shift[o] : 0;
        y[o] = (minipc_element)(q < 255 ? q : 255);
    }
}

static void position(const float *point, minipc_element *x)
{
    int i;

    for (i = 0; i < 3; i++) {
        float q = point[i] * POSITIONS_IN_1;
        q = floorf(q + 0.5f);
        x[i] = (minipc_element)(q > 16383 ? 16383 : q < -16383 ? -16383 : q);
    }
}

#if RESIDUALS || MEAN
static int64_t rescaled(int64_t x, int32_t factor, int shift)
{
    return (x * factor + ((int64_t)1 << (shift - 1))) >> shift;
}
#endif

#if RESIDUALS
static minipc_feature added(const struct map *map, minipc_element y, minipc_feature x)
{
    int64_t q = y + rescaled(x, map->added, map->added_shift);

    return (minipc_feature)(q < 255 ? q : 255);
}
#endif

#if MEAN
static minipc_feature mean(minipc_sum sum)
{
    int64_t q = rescaled(sum, MEAN_FACTOR, MEAN_SHIFT);

    return (minipc_feature)(q < 255 ? q : 255);
}
#endif

/* Rounded half away from zero. */
static void linear(const struct map *map, const minipc_element *x, minipc_logit *y)
{
    int o;

    for (o = 0; o < map->outputs; o++) {
        int64_t t = total(map, x, o), half = (int64_t)1 << (map->shift[o] - 1);
        int64_t q = ((t < 0 ? -t : t) + half) >> map->shift[o];
        y[o] = (minipc_logit)(t < 0 ? -q : q);
    }
}
