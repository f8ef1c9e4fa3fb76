void minipc_start(minipc_state *s)
{
    start(s);
    s->seen = s->bad = 0;
}

void minipc_point(minipc_state *s, const float *point)
{
    s->seen = 1;
    if (!finite(point)) {
        s->bad = 1;
        return;
    }
    position(point, s->odd);
    pool(s);
}

int minipc_finish(minipc_state *s, minipc_logit *logits)
{
    return s->seen && !s->bad ? finish(s, logits) : -1;
}

int minipc_classify(minipc_state *s, const float *points, size_t count, minipc_logit *logits)
{
    size_t n;

    minipc_start(s);
    for (n = 0; n < count; n++)
        minipc_point(s, points + 3 * n);
    return minipc_finish(s, logits);
}
