/* PROT_NONE is reserved, not used; mprotect turns a part into the one or the other. */
#define _GNU_SOURCE
#include "truth.h"
#include <sys/mman.h>

enum { PAGE = 4096 };

static SITE char *reserve(size_t pages) {
    char *range = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(range);
    if (range == MAP_FAILED)
        truth_fail("mmap failed");
    return range;
}

static SITE void protect(char *range, size_t pages, int protection) {
    if (mprotect(range, pages * PAGE, protection))
        truth_fail("mprotect failed");
}

int main(void) {
    truth_ready();
    truth_ranges(0);
    char *range = reserve(1000);
    protect(range + 100 * PAGE, 37, PROT_READ | PROT_WRITE);
    truth_ranges(37 * PAGE);
    protect(range + 120 * PAGE, 10, PROT_NONE);
    truth_ranges(-10 * PAGE);
    truth_end();
}
