/* Print the class of each file of points: lines of x y z, columns after these are ignored. */
#include "model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *points;
static size_t count, room;

/* The next character; every end of a line is one '\n'. */
static int next(FILE *file)
{
    int c = getc(file);

    if (c == '\r') {
        c = getc(file);
        if (c != '\n')
            ungetc(c, file);
        return '\n';
    }
    return c;
}

enum { END_OF_LINE, WORD, EMPTY, TOO_LONG };

/* The next word of a line, which may have any length.  What ends it stays in the file. */
static int next_word(FILE *file, char *word, size_t size)
{
    size_t n = 0;
    int c, marks = 0;

    while ((c = next(file)) == ' ' || c == '\t' || c == ',' || c == ';')
        marks += c == ',' || c == ';';
    while (c != EOF && c != '\n' && c != ' ' && c != '\t' && c != ',' && c != ';') {
        if (n < size - 1)
            word[n++] = (char)(c ? c : '?'); /* a zero byte would end the number */
        c = next(file);
    }
    word[n] = 0;
    ungetc(c, file);
    if (n == 0)
        return END_OF_LINE;
    return marks > 1 ? EMPTY : n == size - 1 ? TOO_LONG : WORD;
}

/* Read the points of a file; NULL, or what is wrong in this line. */
static const char *read_points(FILE *file, unsigned long *line)
{
    char word[64], *end;
    int c, i, kind;

    count = 0;
    for (*line = 1;; ++*line) {
        for (i = 0; (kind = next_word(file, word, sizeof word)) != END_OF_LINE; i++) {
            double *to;
            if (word[0] == '#')
                break;
            if (i > 2)
                continue;
            if (kind != WORD)
                return kind == EMPTY ? "a column is empty" : "a word is too long for a number";
            if (count == room) {
                room = room ? 2 * room : 4096;
                to = realloc(points, room * 3 * sizeof *points);
                if (!to)
                    return "there are more points than memory";
                points = to;
            }
            to = points + 3 * count + i;
            *to = strtod(word, &end);
            if (*end || *to - *to != 0)
                return "expected a finite number";
        }
        if (i > 0 && i < 3)
            return "expected x y z";
        count += i > 2;
        while ((c = next(file)) != '\n' && c != EOF)
            ; /* a comment */
        if (c == EOF)
            return ferror(file) ? "cannot be read" : count ? NULL : "the file holds no points";
    }
}

/* MINIPC_POINTS of the normalised points: all of them, repeated if they are too few; evenly chosen
   among them if they are too many. */
static void fit(const float *from, float *to)
{
    size_t n, at;

    for (n = 0; n < MINIPC_POINTS; n++) {
        at = count > MINIPC_POINTS ? (size_t)((double)n * (double)count / MINIPC_POINTS) : n % count;
        memcpy(to + 3 * n, from + 3 * at, 3 * sizeof *to);
    }
}

int main(int arguments, char **names)
{
    static minipc_state state;
    static float cloud[3 * MINIPC_POINTS];
    minipc_logit logits[MINIPC_CLASSES];
    int i, failed = 0;

    if (arguments < 2) {
        fprintf(stderr, "usage: %s FILE...\n", names[0]);
        return 2;
    }
    for (i = 1; i < arguments; i++) {
        FILE *file = fopen(names[i], "r");
        float *normalised = NULL;
        unsigned long line = 0;
        int found = -1;
        const char *wrong = file ? read_points(file, &line) : strerror(errno);
        if (file)
            fclose(file);
        if (!wrong) {
            line = 0;
            normalised = malloc(count * 3 * sizeof *normalised);
            if (!normalised)
                wrong = "more points than memory";
            else if (minipc_normalise(points, count, normalised) != 0)
                wrong = "its points have no radius, or are too large for float";
            else {
                fit(normalised, cloud);
                found = minipc_classify(&state, cloud, MINIPC_POINTS, logits);
                if (found < 0)
                    wrong = "its points are far larger than those of the training";
            }
        }
        free(normalised);
        if (wrong && line)
            fprintf(stderr, "%s: line %lu: %s\n", names[i], line, wrong);
        else if (wrong)
            fprintf(stderr, "%s: %s\n", names[i], wrong);
        else
            printf("%s: %s\n", names[i], minipc_class_names[found]);
        failed |= wrong != NULL;
    }
    free(points);
    return failed;
}
