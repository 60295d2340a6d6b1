/* What `cargo xtask bench` looks at while memtrace reads its books: how long the longest pair of
 * malloc and free takes. The first line of input makes as many outstanding blocks as the argument
 * says; each later one is a number of milliseconds, answered by the longest pair within that time:
 * ns of wall clock, ns of CPU time (a wait for a lock in the kernel is in both, a wait for a CPU
 * only in the first), and how many pairs there were. */
#include "truth.h"
#include <time.h>

static uint64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static SITE void outstanding(size_t count) {
    for (size_t i = 0; i < count; i++) {
        void *block = malloc(17 + i % 13);
        KEEP(block);
    }
}

static SITE void longest_pair(uint64_t milliseconds) {
    uint64_t longest_wall = 0, longest_cpu = 0, pairs = 0;
    uint64_t wall = now_ns(CLOCK_MONOTONIC), cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    uint64_t end = wall + milliseconds * 1000000;
    while (wall < end) {
        void *block = malloc(64);
        KEEP(block);
        free(block);
        pairs++;
        uint64_t wall_after = now_ns(CLOCK_MONOTONIC);
        uint64_t cpu_after = now_ns(CLOCK_THREAD_CPUTIME_ID);
        if (wall_after - wall > longest_wall)
            longest_wall = wall_after - wall;
        if (cpu_after - cpu > longest_cpu)
            longest_cpu = cpu_after - cpu;
        wall = wall_after;
        cpu = cpu_after;
    }
    truth_length = 0;
    truth_number(longest_wall);
    truth_put(" ");
    truth_number(longest_cpu);
    truth_put(" ");
    truth_number(pairs);
    truth_put("\n");
    write(1, truth_text, truth_length);
}

int main(int argc, char **argv) {
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
    write(1, "ready\n", 6);
    int filled = 0;
    char byte;
    uint64_t number = 0;
    while (read(0, &byte, 1) == 1) {
        if (byte != '\n') {
            number = number * 10 + (uint64_t)(byte - '0');
            continue;
        }
        if (filled) {
            longest_pair(number);
        } else {
            outstanding(count);
            filled = 1;
            write(1, "filled\n", 7);
        }
        number = 0;
    }
    _exit(0);
}
