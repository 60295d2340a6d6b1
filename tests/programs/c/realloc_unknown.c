/* realloc of a block from before the attach: the new block is known, the old one was not. */
#include "truth.h"

enum { BEFORE = 43 };
static void *before[BEFORE];

static SITE void leak_resized(void *block, size_t size) {
    block = realloc(block, size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    for (size_t i = 0; i < BEFORE; i++)
        before[i] = malloc(977 + i);
    truth_ready();
    for (size_t i = 0; i < BEFORE; i++)
        leak_resized(before[i], 1409 + 31 * i);
    truth_end();
}
