/* Loads a library, before the trace or while it runs, and leaks through its leak_a: one block of
 * 5001 bytes at once, 5003 after 100 ms, 5005 after 200 ms … */
#include "truth.h"

#include <dlfcn.h>

static SITE void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    KEEP(library);
    if (!library)
        truth_fail(dlerror());
    return library;
}

static SITE void call(void (*leak_a)(size_t), size_t size) {
    leak_a(size);
    KEEP(&size);
}

static void (*find(void *library))(size_t) {
    void (*leak_a)(size_t) = (void (*)(size_t))dlsym(library, "leak_a");
    if (!leak_a)
        truth_fail("no leak_a in it");
    return leak_a;
}

int main(int argc, char **argv) {
    if (argc < 4)
        truth_fail("loaded before|after LIBRARY CALLS");
    void (*leak_a)(size_t) = NULL;
    if (!strcmp(argv[1], "before"))
        leak_a = find(load(argv[2]));
    truth_ready();
    if (!leak_a)
        leak_a = find(load(argv[2]));
    for (int i = 0; i < atoi(argv[3]); i++) {
        call(leak_a, 5001 + 2 * (size_t)i);
        usleep(100000);
    }
    truth_end();
}
