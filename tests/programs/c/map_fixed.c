/* MAP_FIXED replaces what is there, once in the middle and once over an edge. */
#define _GNU_SOURCE
#include "truth.h"
#include <sys/mman.h>

enum { PAGE = 4096 };

static SITE char *map(char *at, size_t pages, int flags) {
    char *range = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    KEEP(range);
    return range;
}

int main(void) {
    truth_ready();
    char *range = map(NULL, 50, 0);
    truth_ranges(50 * PAGE);
    if (map(range + 10 * PAGE, 7, MAP_FIXED) != range + 10 * PAGE)
        truth_fail("MAP_FIXED failed");
    if (munmap(range + 40 * PAGE, 10 * PAGE))
        truth_fail("munmap failed");
    truth_ranges(-10 * PAGE);
    if (map(range + 35 * PAGE, 15, MAP_FIXED) != range + 35 * PAGE)
        truth_fail("MAP_FIXED failed");
    truth_ranges(10 * PAGE);
    /* Refused, because something is there. */
    if (map(range + 3 * PAGE, 2, MAP_FIXED_NOREPLACE) != MAP_FAILED)
        truth_fail("MAP_FIXED_NOREPLACE did not fail");
    truth_end();
}
