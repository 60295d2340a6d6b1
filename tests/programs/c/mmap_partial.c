/* munmap of a part: front, back, middle, and one call over several ranges. */
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

static SITE void unmap(char *range, size_t pages) {
    if (munmap(range, pages * PAGE))
        truth_fail("munmap failed");
}

int main(void) {
    truth_ready();
    char *range = map(101);
    unmap(range, 7);
    truth_ranges(-7 * PAGE);
    unmap(range + 90 * PAGE, 11);
    truth_ranges(-11 * PAGE);
    unmap(range + 40 * PAGE, 5);
    truth_ranges(-5 * PAGE);
    /* Again: nothing is there any more. */
    unmap(range + 40 * PAGE, 5);
    /* Over the hole, the rest before and behind it. */
    unmap(range + 30 * PAGE, 20);
    truth_ranges(-15 * PAGE);
    /* Refused: the address is no page's start. */
    if (!munmap(range + 61 * PAGE + 1, PAGE))
        truth_fail("munmap did not fail");
    char *whole = map(13);
    unmap(whole, 13);
    truth_ranges(-13 * PAGE);
    truth_end();
}
