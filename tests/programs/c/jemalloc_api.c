/* jemalloc's own entry points, beside malloc. */
#include "truth.h"
#include <jemalloc/jemalloc.h>

static SITE void leak_mallocx(size_t size) {
    void *block = mallocx(size, MALLOCX_ALIGN(64));
    KEEP(block);
    HELD(size);
}

static SITE void leak_rallocx(size_t size) {
    void *block = mallocx(41, 0);
    KEEP(block);
    block = rallocx(block, size, 0);
    KEEP(block);
    HELD(size);
}

static SITE void mallocx_and_freed(size_t size) {
    void *block = mallocx(size, 0);
    KEEP(block);
    dallocx(block, 0);
    block = mallocx(size, 0);
    KEEP(block);
    sdallocx(block, size, 0);
}

static SITE void leak_malloc(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 83; i++) {
        leak_mallocx(977 + i);
        leak_rallocx(1409 + i);
        mallocx_and_freed(613 + i);
        leak_malloc(331 + i);
    }
    truth_site("mallocx_and_freed", 0, 0);
    truth_end();
}
