/* What `cargo xtask bench` measures: pairs of malloc and free under a stack as deep as the argument
 * says. Each line of input is a number of pairs, and is answered by the ps per pair: CPU time of the
 * thread, in user and kernel mode, so that a busy machine changes little. */
#include "truth.h"
#include <time.h>

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static SITE uint64_t pairs(uint64_t count) {
    uint64_t start = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        void *block = malloc(64 + i % 8);
        KEEP(block);
        free(block);
    }
    return now_ns() - start;
}

static SITE uint64_t down(int depth, uint64_t count) {
    uint64_t result = depth > 0 ? down(depth - 1, count) : pairs(count);
    KEEP(&result);
    return result;
}

int main(int argc, char **argv) {
    /* `pairs` and `main` are frames too, and what calls `main` are two. */
    int depth = (argc > 1 ? atoi(argv[1]) : 4) - 4;
    write(1, "ready\n", 6);
    char byte;
    uint64_t count = 0;
    while (read(0, &byte, 1) == 1) {
        if (byte != '\n') {
            count = count * 10 + (uint64_t)(byte - '0');
            continue;
        }
        /* In picoseconds, divided where there is room for a point. */
        uint64_t picoseconds = down(depth - 1, count) * 1000 / count;
        truth_length = 0;
        truth_number(picoseconds);
        truth_put("\n");
        write(1, truth_text, truth_length);
        count = 0;
    }
    _exit(0);
}
