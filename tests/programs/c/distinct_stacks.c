/* 20,000 distinct stacks: the bits of a number choose the way down to the allocation. */
#include "truth.h"

enum { STACKS = 20000, DEPTH = 15 };

static SITE void leak_at_the_end(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static void down(unsigned path, int depth);

static SITE void left(unsigned path, int depth) {
    down(path, depth);
    KEEP(&path);
}

static SITE void right(unsigned path, int depth) {
    down(path, depth);
    KEEP(&path);
}

static SITE void down(unsigned path, int depth) {
    if (depth == DEPTH)
        leak_at_the_end(17 + path % 1009);
    else if (path >> depth & 1)
        right(path, depth + 1);
    else
        left(path, depth + 1);
    KEEP(&path);
}

int main(void) {
    truth_ready();
    for (unsigned path = 0; path < STACKS; path++)
        down(path, 0);
    truth_end();
}
