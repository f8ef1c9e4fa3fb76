/* Print the class of each file of points: lines of x y z, columns after these are ignored.  A table
   of another form looks like a cloud too, so what may be one is refused. */
#include "model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static MINIPC_RAW *points;
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

/* Read a comment from its first word; whether it names x, y and z, but not as the first columns. */
static int names_others(FILE *file, char *word, size_t size)
{
    int i = 0, named = 0, others = 0;

    memmove(word, word + 1, strlen(word)); /* without the # */
    do {
        size_t n = strlen(word);
        if (n == 1 && strchr("xyzXYZ", word[0])) {
            named++;
            others |= (word[0] | 32) != 'x' + i;
        }
        i += n > 0;
        if (n && word[n - 1] == ':') /* "fields: x y z" */
            i = named = others = 0;
    } while (next_word(file, word, size) != END_OF_LINE);
    return named == 3 && others;
}

/* Read the points of a file; NULL, or what is wrong in this line. */
static const char *read_points(FILE *file, unsigned long *line)
{
    char word[64], *end;
    int c, i, kind, columns = 0, pointed[3] = {0, 0, 0};

    count = 0;
    for (*line = 1;; ++*line) {
        for (i = 0; (kind = next_word(file, word, sizeof word)) != END_OF_LINE; i++) {
            MINIPC_RAW *to;
            if (word[0] == '#') {
                if (names_others(file, word, sizeof word))
                    return "the comment names other columns than x y z first";
                break;
            }
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
            *to = (MINIPC_RAW)strtod(word, &end);
            if (*end || *to - *to != 0)
                return "expected a finite number";
            pointed[i] |= strpbrk(word, ".eE") != NULL;
        }
        if (i > 0 && i < 3)
            return "expected x y z";
        if (i > 0 && count == 0)
            columns = i;
        if (i > 0 && i != columns)
            return "expected as many columns as in the first point";
        count += i > 2;
        if (count == 1 && points[0] == 0 && points[1] == 1 && points[2] == 2)
            return "expected a point, found 0 1 2, as programs number columns";
        while ((c = next(file)) != '\n' && c != EOF)
            ; /* a comment */
        if (c == EOF)
            break;
    }
    if (ferror(file))
        return "cannot be read";
    if (count == 0)
        return "the file holds no points";
    if (columns > 3 && !(pointed[0] && pointed[1] && pointed[2]))
        return "of more than three columns, x y z need decimal points: whole numbers may count the "
               "lines, or be parts of numbers with decimal commas";
    return NULL;
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
