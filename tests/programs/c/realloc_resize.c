/* realloc that grows and shrinks, in place and by moving: one block, of the last size. */
#include "truth.h"

static SITE void *leak_first(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

static SITE void *leak_resized(void *block, size_t size) {
    block = realloc(block, size);
    KEEP(block);
    return block;
}

int main(void) {
    truth_ready();
    for (int i = 0; i < 37; i++) {
        void *block = leak_first(977);
        for (size_t size = 1409; size < 400000; size = size * 3 + 1)
            block = leak_resized(block, size);
        leak_resized(block, 613);
        truth_site("leak_resized", 613, 1);
        /* Keeps the next one from growing in place. */
        leak_first(41);
        truth_site("leak_first", 41, 1);
    }
    truth_end();
}
