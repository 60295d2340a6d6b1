/* posix_memalign: a block on success; EINVAL and ENOMEM leave nothing. */
#include "truth.h"
#include <errno.h>

static SITE void leak_aligned(size_t alignment, size_t size) {
    void *block = NULL;
    if (posix_memalign(&block, alignment, size))
        truth_fail("posix_memalign failed");
    KEEP(block);
    HELD(size);
}

static SITE void refused(size_t alignment, size_t size, int error) {
    /* A pointer that looks like a block: the errors must not record it. */
    void *block = &block;
    if (posix_memalign(&block, alignment, size) != error)
        truth_fail("posix_memalign did not fail as expected");
    KEEP(block);
}

int main(void) {
    truth_ready();
    for (size_t alignment = 16; alignment <= 65536; alignment *= 2)
        leak_aligned(alignment, alignment + 977);
    leak_aligned(64, 1);
    for (int i = 0; i < 13; i++) {
        volatile size_t large = PTRDIFF_MAX - 4096;
        refused(3, 977, EINVAL);
        refused(24, 977, EINVAL);
        refused(64, large, ENOMEM);
    }
    truth_site("refused", 0, 0);
    truth_tally("alloc_failed", 39);
    truth_end();
}
