/* realloc(NULL, n) is malloc. */
#include "truth.h"

static SITE void leak_from_null(size_t size) {
    void *volatile nothing = NULL;
    void *block = realloc(nothing, size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 29; i++)
        leak_from_null(1201 + 13 * i);
    truth_end();
}
