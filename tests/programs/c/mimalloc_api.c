/* mimalloc's own entry points, beside malloc, which it takes the place of. */
#include "truth.h"
#include <mimalloc.h>

static SITE void leak_mi_malloc(size_t size) {
    void *block = mi_malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_mi_calloc(size_t count) {
    void *block = mi_calloc(count, 3);
    KEEP(block);
    HELD(count * 3);
}

static SITE void leak_mi_realloc(size_t size) {
    void *block = mi_zalloc(43);
    KEEP(block);
    block = mi_realloc(block, size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_mi_aligned(size_t size) {
    void *block = mi_malloc_aligned(size, 128);
    KEEP(block);
    HELD(size);
}

static SITE void mi_malloc_and_freed(size_t size) {
    void *block = mi_malloc(size);
    KEEP(block);
    mi_free(block);
    block = mi_malloc(size);
    KEEP(block);
    mi_free_size(block, size);
}

static SITE void leak_malloc(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 83; i++) {
        leak_mi_malloc(977 + i);
        leak_mi_calloc(211 + i);
        leak_mi_realloc(1409 + i);
        leak_mi_aligned(727 + i);
        mi_malloc_and_freed(613 + i);
        leak_malloc(331 + i);
    }
    truth_site("mi_malloc_and_freed", 0, 0);
    truth_end();
}
