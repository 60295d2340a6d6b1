/* aligned_alloc, memalign, valloc and, where there is one, pvalloc. In musl they are built of
 * each other and of malloc: one user call is one block. */
#define _GNU_SOURCE
#include "truth.h"
#include <malloc.h>

static SITE void leak_aligned_alloc(size_t alignment, size_t size) {
    void *block = aligned_alloc(alignment, size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_memalign(size_t alignment, size_t size) {
    void *block = memalign(alignment, size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_valloc(size_t size) {
    void *block = valloc(size);
    KEEP(block);
    HELD(size);
}

#ifdef __GLIBC__
static SITE void leak_pvalloc(size_t size) {
    void *block = pvalloc(size);
    KEEP(block);
    HELD(size);
}
#endif

static SITE void aligned_and_freed(void) {
    for (size_t alignment = 16; alignment <= 8192; alignment *= 2) {
        void *block = aligned_alloc(alignment, alignment * 3);
        KEEP(block);
        free(block);
    }
    truth_site(__func__, 0, 0);
}

int main(void) {
    truth_ready();
    for (size_t alignment = 16; alignment <= 16384; alignment *= 2) {
        leak_aligned_alloc(alignment, alignment * 5);
        leak_memalign(alignment, 1409 + alignment);
    }
    for (size_t i = 1; i < 10; i++)
        leak_valloc(977 * i);
#ifdef __GLIBC__
    for (size_t i = 1; i < 8; i++)
        leak_pvalloc(1201 * i);
#endif
    aligned_and_freed();
    truth_end();
}
