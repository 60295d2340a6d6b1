/* Allocation that libc does for the caller: strdup, strndup, asprintf, getline. */
#define _GNU_SOURCE
#include "truth.h"
#include <stdio.h>

static char text[5000];

static SITE void leak_strdup(size_t length) {
    text[length] = 0;
    char *copy = strdup(text);
    KEEP(copy);
    text[length] = 'x';
    HELD(length + 1);
}

static SITE void leak_strndup(size_t length) {
    char *copy = strndup(text, length);
    KEEP(copy);
    HELD(length + 1);
}

static SITE void leak_asprintf(int length) {
    char *formatted = NULL;
    int printed = asprintf(&formatted, "%.*s:%d", length, text, length);
    KEEP(formatted);
    HELD((size_t)printed + 1);
}

/* getline says in its second argument how much it asked for: POSIX. */
static SITE void leak_getline(FILE *file) {
    char *line = NULL;
    size_t size = 0;
    if (getline(&line, &size, file) < 0)
        truth_fail("getline failed");
    KEEP(line);
    HELD(size);
}

int main(void) {
    static char buffer[8192], lines[4096];
    memset(text, 'x', sizeof text - 1);
    memset(lines, 'y', sizeof lines);
    lines[70] = lines[700] = lines[2900] = lines[4095] = '\n';
    FILE *file = fmemopen(lines, sizeof lines, "r");
    setvbuf(file, buffer, _IOFBF, sizeof buffer);
    /* The first use of a format may load what is loaded once. */
    char *warm = NULL;
    if (asprintf(&warm, "%d", 1) < 0)
        truth_fail("asprintf failed");
    truth_ready();
    for (size_t length = 1; length < 4999; length += 331) {
        leak_strdup(length);
        leak_strndup(length);
        leak_asprintf((int)length);
    }
    for (int i = 0; i < 4; i++)
        leak_getline(file);
    truth_end();
}
