/* malloc from the smallest to what libc maps for itself; every third block is freed. */
#include "truth.h"

static SITE void *leak_small(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
    return block;
}

static SITE void *leak_mapped(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
    return block;
}

static SITE void allocate_and_free(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    free(block);
}

int main(void) {
    truth_ready();
    for (size_t size = 1; size < 977; size += 7)
        leak_small(size);
    leak_small(0);
    leak_mapped(3000017);
    leak_mapped(140009);
    for (size_t size = 0; size < 5003; size += 3)
        allocate_and_free(size);
    allocate_and_free(7000019);
    truth_site("allocate_and_free", 0, 0);
    truth_end();
}
