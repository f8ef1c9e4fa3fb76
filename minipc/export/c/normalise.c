int minipc_normalise(const MINIPC_RAW *raw, size_t count, float *points)
{
    size_t n;
    int i;
#if UNIT_SPHERE
    const double nothing = 7.006492321624085e-46; /* 2^-150, which is zero as a float */
    double centre[3] = {0, 0, 0}, largest = 0, far, radius;
    int single = 1, as_it_is;

    for (n = 0; n < count; n++)
        for (i = 0; i < 3; i++) {
            if (!(raw[3 * n + i] >= -FLT_MAX && raw[3 * n + i] <= FLT_MAX))
                return -1;
            centre[i] += raw[3 * n + i];
            single = single && fabs((double)raw[3 * n + i] - raw[i]) <= nothing;
        }
    if (count == 0 || single)
        return -1;
    for (i = 0; i < 3; i++)
        centre[i] /= (double)count;
    for (n = 0; n < count; n++) {
        double x = raw[3 * n] - centre[0], y = raw[3 * n + 1] - centre[1];
        double z = raw[3 * n + 2] - centre[2], squared = x * x + y * y + z * z;
        largest = squared > largest ? squared : largest;
    }
    radius = sqrt(largest);
    far = sqrt(centre[0] * centre[0] + centre[1] * centre[1] + centre[2] * centre[2]);
    as_it_is = radius >= 1 - 1e-3 && radius <= 1 + 1e-3 && far <= 1e-3;
#endif
    for (n = 0; n < count; n++)
        for (i = 0; i < 3; i++) {
            double value = raw[3 * n + i];
#if UNIT_SPHERE
            value = as_it_is ? value : (value - centre[i]) / radius;
#endif
            if (!(value >= -FLT_MAX && value <= FLT_MAX))
                return -1;
            points[3 * n + i] = (float)value;
        }
    return count ? 0 : -1;
}
