/* (x^2 + y^2) + z^2 of the differences, each step rounded: a fused multiply-add would choose other
   neighbours now and then. */
static float squared_distance(const float *p, const float *q)
{
    float x = p[0] - q[0], y = p[1] - q[1], z = p[2] - q[2];
    float xx = x * x, yy = y * y, zz = z * z;
    float sum = xx + yy;

    return sum + zz;
}

/* Farthest points: the first is index 0, each next one the farthest from those before it; the
   lowest index of equal ones. */
static void farthest(minipc_state *s, const float *points, size_t count)
{
    size_t n, at = 0;
    int m;

    for (n = 0; n < count; n++)
        s->nearest[n] = INFINITY;
    for (m = 0; m < CENTRES; m++) {
        size_t next = 0;
        memcpy(s->centre[m], points + 3 * at, sizeof s->centre[m]);
        for (n = 0; n < count; n++) {
            float d = squared_distance(points + 3 * n, s->centre[m]);
            if (d < s->nearest[n])
                s->nearest[n] = d;
            if (n == at)
                s->nearest[n] = -1; /* never again */
            if (s->nearest[n] > s->nearest[next])
                next = n;
        }
        at = next;
    }
}

/* The nearest of count points to a centre, by distance and index, into s->near; how many. */
static int neighbours(minipc_state *s, const float *points, size_t count, const float *centre,
                      int most)
{
    int found = 0;
    size_t n;

    for (n = 0; n < count; n++) {
        float d = squared_distance(points + 3 * n, centre);
        int place;
        if (found == most && !(d < s->near[most - 1].squared))
            continue;
        place = found < most ? found++ : most - 1;
        for (; place > 0 && s->near[place - 1].squared > d; place--)
            s->near[place] = s->near[place - 1];
        s->near[place].squared = d;
        s->near[place].index = n;
    }
    return found;
}

/* What the group of one centre sees.  x: the features of the points, channels each. */
static void group(minipc_state *s, const struct scale *scale, const float *points, int found,
                  const float *centre, const minipc_feature *x, int channels, minipc_feature *y)
{
    minipc_element here[3];
    int j, i, o, outputs = maps[scale->first + scale->layers - 1].outputs;

    position(centre, here);
    for (o = 0; o < outputs; o++)
        y[o] = 0;
    for (j = 0; j < found && j < scale->members; j++) {
        const struct minipc_near *near = s->near + j;
        const minipc_element *row;
        if (scale->squared_radius > 0 && j > 0 && near->squared >= scale->squared_radius)
            break;
        position(points + 3 * near->index, s->odd);
        for (i = 0; i < 3; i++)
            s->odd[i] = (minipc_element)(s->odd[i] - here[i]);
        for (i = 0; i < channels; i++)
            s->odd[3 + i] = x[near->index * (size_t)channels + (size_t)i];
        row = run(maps + scale->first, scale->layers, s->odd, s);
        for (o = 0; o < outputs; o++)
            if (row[o] > y[o])
                y[o] = (minipc_feature)row[o];
    }
}

#if RESIDUALS
static void residual(minipc_state *s, const struct map *map, minipc_feature *x)
{
    int o;

    for (o = 0; o < map->outputs; o++)
        s->odd[o] = x[o];
    layer(map, s->odd, s->even);
    for (o = 0; o < map->outputs; o++)
        x[o] = added(map, s->even[o], x[o]);
}
#endif

int minipc_classify(minipc_state *s, const float *points, size_t count, minipc_logit *logits)
{
    const float *positions = points;
    minipc_feature *x = s->x, *y = s->y, *other;
    int i, l, m, channels = 0;
    size_t n, number = count;

    if (count < CENTRES || count > MINIPC_MOST_POINTS)
        return -1;
    for (n = 0; n < count; n++)
        if (!finite(points + 3 * n))
            return -1;
#if ENTRIES
    channels = maps[ENTRY + ENTRIES - 1].outputs;
    for (n = 0; n < count; n++) {
        const minipc_element *row;
        position(points + 3 * n, s->odd);
        row = run(maps + ENTRY, ENTRIES, s->odd, s);
        for (i = 0; i < channels; i++)
            x[n * (size_t)channels + (size_t)i] = (minipc_feature)row[i];
    }
#endif
    farthest(s, points, count);
    for (l = 0; l < LEVELS; l++) {
        const struct level *level = levels + l;
        for (m = 0; m < level->centres; m++) {
            minipc_feature *here = y + m * level->channels;
            int found = neighbours(s, positions, number, s->centre[m], level->members);
            for (i = 0; i < level->scales; i++) {
                const struct scale *scale = scales + level->first + i;
                group(s, scale, positions, found, s->centre[m], x, channels, here);
                here += maps[scale->first + scale->layers - 1].outputs;
            }
#if RESIDUALS
            if (level->residual >= 0)
                residual(s, maps + level->residual, y + m * level->channels);
#endif
        }
        other = x, x = y, y = other;
        positions = s->centre[0]; /* of the next level these are the points */
        number = (size_t)level->centres;
        channels = level->channels;
    }
    start(s);
    for (n = 0; n < number; n++) {
        position(s->centre[n], s->odd);
        for (i = 0; i < channels; i++)
            s->odd[3 + i] = x[n * (size_t)channels + (size_t)i];
        pool(s);
    }
    return finish(s, logits);
}
