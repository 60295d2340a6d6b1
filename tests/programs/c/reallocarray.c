/* reallocarray: the product counts; an overflow fails and keeps the old block. */
#define _GNU_SOURCE
#include "truth.h"

static SITE void *leak_kept(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
    return block;
}

static SITE void leak_product(size_t count, size_t size) {
    void *block = reallocarray(NULL, 3, 5);
    KEEP(block);
    block = reallocarray(block, count, size);
    KEEP(block);
    HELD(count * size);
}

static SITE void overflow(void *block) {
    volatile size_t many = SIZE_MAX / 4;
    void *moved = reallocarray(block, many, 9);
    KEEP(moved);
    if (moved)
        truth_fail("reallocarray did not fail");
}

int main(void) {
    truth_ready();
    leak_product(7, 1409);
    leak_product(613, 37);
    for (size_t i = 0; i < 9; i++)
        overflow(leak_kept(977 + i));
    truth_site("overflow", 0, 0);
    truth_end();
}
