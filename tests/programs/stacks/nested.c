/* Allocator calls that call others, whose returns are probed as well: calloc, realloc and the rest
 * map memory, libc's functions allocate for their callers. */
#define _GNU_SOURCE
#include "truth.h"

#include <stdio.h>
#include <sys/mman.h>

enum { LARGE = 3 << 20 };

#define SITE_OF(name, expression, size)                                                            \
    static SITE void name(void) {                                                                  \
        void *block = expression;                                                                  \
        KEEP(block);                                                                               \
        HELD(size);                                                                                \
    }

SITE_OF(by_malloc, malloc(LARGE + 1), LARGE + 1)
SITE_OF(by_calloc, calloc(LARGE + 3, 1), LARGE + 3)
SITE_OF(by_realloc_of_null, realloc(NULL, LARGE + 5), LARGE + 5)
SITE_OF(by_aligned_alloc, aligned_alloc(4096, LARGE + 4096), LARGE + 4096)
SITE_OF(by_strdup, strdup("the copy of a string of 37 bytes: ok"), 37)

static SITE void by_realloc(void) {
    void *small = malloc(100);
    KEEP(small);
    void *large = realloc(small, LARGE + 7);
    KEEP(large);
    HELD(LARGE + 7);
}

static SITE void by_memalign(void) {
    void *block = NULL;
    if (posix_memalign(&block, 8192, LARGE + 9))
        truth_fail("posix_memalign failed");
    KEEP(block);
    HELD(LARGE + 9);
}

static SITE void by_mmap(void) {
    void *range = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(range);
    truth_ranges(LARGE);
}

static SITE void by_mremap(void) {
    void *range = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    range = mremap(range, 4096, LARGE, MREMAP_MAYMOVE);
    KEEP(range);
    truth_ranges(LARGE);
}

static SITE void all(void) {
    by_malloc();
    by_calloc();
    by_realloc_of_null();
    by_aligned_alloc();
    by_strdup();
    by_realloc();
    by_memalign();
    by_mmap();
    by_mremap();
    KEEP(&truth_lock);
}

int main(void) {
    truth_ready();
    all();
    truth_end();
}
