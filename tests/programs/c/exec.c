/* exec: the books of the old image close. Nothing that it held is outstanding afterwards. */
#include "truth.h"

static SITE void held_before_exec(size_t size) {
    void *block = malloc(size);
    KEEP(block);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        truth_site("held_before_exec", 0, 0);
        truth_end();
    }
    truth_ready();
    for (size_t i = 0; i < 71; i++)
        held_before_exec(977 + i);
    char *arguments[] = {argv[0], "second", NULL};
    execv("/proc/self/exe", arguments);
    truth_fail("exec failed");
}
