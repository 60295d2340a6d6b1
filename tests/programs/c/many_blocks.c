/* As many outstanding blocks as the argument says. */
#include "truth.h"

static SITE void *leak_one_of_many(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

int main(int argc, char **argv) {
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000000;
    int64_t bytes = 0;
    truth_ready();
    for (size_t i = 0; i < count; i++) {
        KEEP(leak_one_of_many(17 + i % 13));
        bytes += (int64_t)(17 + i % 13);
    }
    truth_site("leak_one_of_many", bytes, (int64_t)count);
    truth_end();
}
