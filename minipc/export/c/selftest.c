int main(void)
{
    static minipc_state state;
    minipc_logit logits[MINIPC_CLASSES];
    double largest = 0;
    int cloud, k, same = 0;

    for (cloud = 0; cloud < CLOUDS; cloud++) {
        int best = 0, found = minipc_classify(&state, clouds[cloud], POINTS, logits);
        if (found < 0) {
            printf("cloud %d: refused\n", cloud);
            return 1;
        }
        for (k = 0; k < MINIPC_CLASSES; k++) {
            double difference = (double)logits[k] - (double)expected[cloud][k];
            difference = difference < 0 ? -difference : difference;
            largest = difference > largest ? difference : largest;
            best = expected[cloud][k] > expected[cloud][best] ? k : best;
        }
        same += found == best;
    }
    printf("%d clouds: largest difference of a logit %g (allowed: %g), the same class %d of %d\n",
           CLOUDS, largest * MINIPC_UNIT, (double)ALLOWED * MINIPC_UNIT, same, CLOUDS);
    printf("buffers: %lu bytes\n", (unsigned long)sizeof state);
    return largest <= ALLOWED && same == CLOUDS ? 0 : 1;
}
