/* realloc(p, 0) is what it returns: NULL has freed the block, a pointer is a block of no bytes. */
#include "truth.h"

static SITE void *allocate(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

static SITE void resize_to_nothing(void *block) {
    volatile size_t nothing = 0;
    void *rest = realloc(block, nothing);
    KEEP(rest);
    truth_site(__func__, 0, rest != NULL);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 31; i++)
        resize_to_nothing(allocate(2003 + i));
    truth_site("allocate", 0, 0);
    truth_end();
}
