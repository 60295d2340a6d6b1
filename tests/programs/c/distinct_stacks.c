/* As many distinct stacks as the argument says, by default 20,000: the bits of a number choose the
 * way down to the allocation. */
#include "truth.h"

enum { DEPTH = 17 };

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

int main(int argc, char **argv) {
    unsigned stacks = argc > 1 ? (unsigned)atoi(argv[1]) : 20000;
    if (stacks > 1u << DEPTH)
        truth_fail("there are not as many ways down");
    truth_ready();
    for (unsigned path = 0; path < stacks; path++)
        down(path, 0);
    truth_end();
}
