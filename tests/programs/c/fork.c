/* A child has books of its own: what it allocates and frees is not its parent's. */
#include "truth.h"
#include <sys/wait.h>

enum { BLOCKS = 103 };
static void *blocks[BLOCKS];

static SITE void *leak_in_parent(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
    return block;
}

static SITE void child_work(void) {
    for (size_t i = 0; i < BLOCKS; i++) {
        free(blocks[i]);
        KEEP(malloc(3571 + i));
    }
    _exit(0);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < BLOCKS; i++)
        blocks[i] = leak_in_parent(977 + i);
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0)
            child_work();
        int status = 0;
        if (waitpid(child, &status, 0) != child || status)
            truth_fail("the child was harmed");
    }
    for (size_t i = 0; i < 50; i++)
        free(blocks[i]), truth_site("leak_in_parent", -(int64_t)(977 + i), -1);
    truth_site("child_work", 0, 0);
    truth_tally("free_unknown", 0);
    truth_end();
}
