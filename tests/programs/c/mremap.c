/* mremap that grows, shrinks, moves, and fails. */
#define _GNU_SOURCE
#include "truth.h"
#include <sys/mman.h>

enum { PAGE = 4096 };

static SITE char *map(size_t pages) {
    char *range = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(range);
    if (range == MAP_FAILED)
        truth_fail("mmap failed");
    truth_ranges((int64_t)(pages * PAGE));
    return range;
}

static SITE char *resize(char *range, size_t from, size_t to) {
    range = mremap(range, from * PAGE, to * PAGE, MREMAP_MAYMOVE);
    KEEP(range);
    if (range == MAP_FAILED)
        truth_fail("mremap failed");
    truth_ranges(((int64_t)to - (int64_t)from) * PAGE);
    return range;
}

int main(void) {
    truth_ready();
    char *range = map(17);
    range = resize(range, 17, 5);
    range = resize(range, 5, 613);
    /* To a place of our choice, over pages that are replaced. */
    char *place = map(64);
    range = mremap(range, 613 * PAGE, 31 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + 8 * PAGE);
    if (range != place + 8 * PAGE)
        truth_fail("mremap did not move");
    truth_ranges(-613 * PAGE);
    /* Fails: may not move, and the rest of `place` is in the way. */
    if (mremap(range, 31 * PAGE, 40 * PAGE, 0) != MAP_FAILED)
        truth_fail("mremap did not fail");
    truth_end();
}
