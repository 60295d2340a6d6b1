/* Takes memory until the kernel ends it: for a container with a limit. */
#include "truth.h"

static SITE void eat(size_t size) {
    char *block = malloc(size);
    if (!block)
        truth_fail("no memory, and nobody was killed");
    memset(block, 'x', size);
    KEEP(block);
}

int main(void) {
    /* Time for a tracer. */
    truth_ready();
    for (size_t i = 0;; i++) {
        eat(100003 + i);
        usleep(5000);
    }
}
