/* A realloc that fails keeps the old block, with its size and its stack. */
#include "truth.h"

static SITE void *leak_kept(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
    return block;
}

static SITE void fail(void *block) {
    volatile size_t large = PTRDIFF_MAX;
    void *moved = realloc(block, large);
    KEEP(moved);
    if (moved)
        truth_fail("realloc did not fail");
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 23; i++)
        fail(leak_kept(3571 + i));
    truth_site("fail", 0, 0);
    truth_tally("alloc_failed", 23);
    truth_end();
}
