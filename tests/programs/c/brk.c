/* sbrk and brk in a program that moves its own break. */
#define _GNU_SOURCE
#include "truth.h"

static SITE void grow(intptr_t bytes) {
    void *old = sbrk(bytes);
    KEEP(old);
    if (old == (void *)-1)
        truth_fail("sbrk failed");
    truth_ranges(bytes);
}

int main(void) {
    truth_ready();
    grow(17 * 4096);
    grow(101 * 4096);
    grow(-40 * 4096);
    if (brk((char *)sbrk(0) + 13 * 4096))
        truth_fail("brk failed");
    truth_ranges(13 * 4096);
    if (brk((char *)-4096) == 0)
        truth_fail("brk did not fail");
    truth_end();
}
