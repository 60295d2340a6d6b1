/* Loads a library, unloads it, and loads another one where it was; then the first one again. */
#define _GNU_SOURCE
#include "truth.h"

#include <dlfcn.h>

/* New mappings get their tables within a second. */
enum { UNTIL_KNOWN = 2000000 };

static SITE void call(void (*leak_a)(size_t), size_t size) {
    leak_a(size);
    KEEP(&size);
}

static SITE void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        truth_fail(dlerror());
    KEEP(library);
    return library;
}

static void (*leak_of(void *library))(size_t) {
    void (*leak_a)(size_t) = (void (*)(size_t))dlsym(library, "leak_a");
    if (!leak_a)
        truth_fail("no leak_a in it");
    return leak_a;
}

static uintptr_t base_of(void *function) {
    Dl_info info;
    if (!dladdr(function, &info))
        truth_fail("dladdr failed");
    return (uintptr_t)info.dli_fbase;
}

int main(int argc, char **argv) {
    if (argc < 3)
        truth_fail("reloaded LIBRARY OTHER");
    truth_ready();
    void *first = load(argv[1]);
    uintptr_t was = base_of((void *)leak_of(first));
    usleep(UNTIL_KNOWN);
    call(leak_of(first), 1111);
    usleep(UNTIL_KNOWN / 2);
    dlclose(first);
    void *other = load(argv[2]);
    if (base_of((void *)leak_of(other)) != was)
        truth_fail("the other library is not where the first one was");
    usleep(UNTIL_KNOWN);
    call(leak_of(other), 2221);
    first = load(argv[1]);
    if (base_of((void *)leak_of(first)) == was)
        truth_fail("the first library is where it was");
    usleep(UNTIL_KNOWN);
    call(leak_of(first), 3331);
    truth_end();
}
