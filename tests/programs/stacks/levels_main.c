/* levels.c without a library: for C libraries whose own code has no unwind tables, and for static
 * linking. */
#include "levels.h"
#include "truth.h"

static SITE void from_main(void) {
    leak_a(1111);
    KEEP(&truth_lock);
}

static SITE void in_thread(void) {
    leak_in_thread(2221);
    KEEP(&truth_lock);
}

static int leaks(const void *left, const void *right) {
    leak_a(3331);
    return *(const char *)left - *(const char *)right;
}

/* Through the C library's own code. */
static SITE void from_qsort(void) {
    char two[2] = {2, 1};
    qsort(two, 2, 1, leaks);
    KEEP(two);
}

int main(void) {
    truth_ready();
    from_main();
    in_thread();
    from_qsort();
    truth_end();
}
