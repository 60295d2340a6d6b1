/* exec, again and again: each program of the process has books of its own. The truth is the last
 * one's; the first one held FIRST blocks when it executed the second. */
#include "truth.h"

enum { FIRST = 71, LAST = 53 };

static SITE void held_by_first(size_t size) {
    void *block = malloc(size);
    KEEP(block);
}

static SITE void held_by_last(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

int main(int argc, char **argv) {
    truth_ready();
    if (argc > 1) {
        for (size_t i = 0; i < LAST; i++)
            held_by_last(3571 + i);
        truth_end();
    }
    for (size_t i = 0; i < FIRST; i++)
        held_by_first(977 + i);
    char *arguments[] = {argv[0], "last", NULL};
    execv("/proc/self/exe", arguments);
    truth_fail("exec failed");
}
