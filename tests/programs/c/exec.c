/* exec: the books close with the old image. What it held then is what is told, and nothing of the
 * new image is. */
#include "truth.h"

enum { BEFORE = 71 };

static SITE void held_before_exec(size_t size) {
    void *block = malloc(size);
    KEEP(block);
}

static SITE void allocated_after_exec(size_t size) {
    void *block = malloc(size);
    KEEP(block);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        for (size_t i = 0; i < 331; i++)
            allocated_after_exec(3571 + i);
        truth_site("allocated_after_exec", 0, 0);
        for (size_t i = 0; i < BEFORE; i++)
            truth_site("held_before_exec", (int64_t)(977 + i), 1);
        truth_end();
    }
    truth_ready();
    for (size_t i = 0; i < BEFORE; i++)
        held_before_exec(977 + i);
    char *arguments[] = {argv[0], "second", NULL};
    execv("/proc/self/exe", arguments);
    truth_fail("exec failed");
}
