/* Functions inlined into each other; the comments mark the lines that the test looks for. */
#include "truth.h"

#define INLINE static inline __attribute__((always_inline))

INLINE void innermost(size_t size) {
    void *block = malloc(size); /* in innermost */
    KEEP(block);
}

INLINE void middle(size_t size) {
    innermost(size); /* in middle */
    KEEP(&size);
}

static SITE void outer(size_t size) {
    middle(size); /* in outer */
    KEEP(&size);
}

int main(void) {
    truth_ready();
    outer(1111); /* in main */
    truth_end();
}
