/* calloc: the product counts; a product that overflows fails and leaves nothing. */
#include "truth.h"

static SITE void leak_product(size_t count, size_t size) {
    void *block = calloc(count, size);
    KEEP(block);
    HELD(count * size);
}

static SITE void overflow(void) {
    volatile size_t many = SIZE_MAX / 8;
    for (int i = 0; i < 11; i++) {
        void *block = calloc(many, 17);
        KEEP(block);
        if (block)
            truth_fail("calloc did not fail");
    }
    truth_site(__func__, 0, 0);
}

static SITE void too_large(void) {
    volatile size_t large = PTRDIFF_MAX;
    for (int i = 0; i < 5; i++) {
        void *block = calloc(1, large);
        KEEP(block);
        if (block)
            truth_fail("calloc did not fail");
    }
    truth_site(__func__, 0, 0);
}

int main(void) {
    truth_ready();
    leak_product(3, 977);
    leak_product(1, 1409);
    leak_product(0, 17);
    leak_product(17, 0);
    leak_product(331, 4099);
    overflow();
    too_large();
    truth_tally("alloc_failed", 16);
    truth_end();
}
