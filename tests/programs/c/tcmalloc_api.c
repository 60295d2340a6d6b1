/* tcmalloc's own entry points, beside malloc, which it takes the place of. */
#include "truth.h"
#include <gperftools/tcmalloc.h>

/* The header declares these to C++ only. */
void *tc_new(size_t size);
void *tc_newarray(size_t size);
void tc_deletearray(void *block);

static SITE void leak_tc_malloc(size_t size) {
    void *block = tc_malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_tc_calloc(size_t count) {
    void *block = tc_calloc(count, 3);
    KEEP(block);
    HELD(count * 3);
}

static SITE void leak_tc_realloc(size_t size) {
    void *block = tc_malloc(43);
    KEEP(block);
    block = tc_realloc(block, size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_tc_memalign(size_t size) {
    void *block = tc_memalign(128, size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_tc_new(size_t size) {
    void *block = tc_new(size);
    KEEP(block);
    HELD(size);
}

static SITE void tc_malloc_and_freed(size_t size) {
    void *block = tc_malloc(size);
    KEEP(block);
    tc_free(block);
    block = tc_newarray(size);
    KEEP(block);
    tc_deletearray(block);
}

static SITE void leak_malloc(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 83; i++) {
        leak_tc_malloc(977 + i);
        leak_tc_calloc(211 + i);
        leak_tc_realloc(1409 + i);
        leak_tc_memalign(727 + i);
        leak_tc_new(521 + i);
        tc_malloc_and_freed(613 + i);
        leak_malloc(331 + i);
    }
    truth_site("tc_malloc_and_freed", 0, 0);
    truth_end();
}
