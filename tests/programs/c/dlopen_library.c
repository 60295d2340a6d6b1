/* A library that arrives while it is traced, and allocates; its path is the argument. */
#include "truth.h"
#include <dlfcn.h>

static SITE void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    KEEP(library);
    if (!library)
        truth_fail("dlopen failed");
    return library;
}

int main(int argc, char **argv) {
    if (argc < 2)
        truth_fail("which library?");
    truth_ready();
    void *library = load(argv[1]);
    void *(*plugin_leak)(size_t) = (void *(*)(size_t))dlsym(library, "plugin_leak");
    if (!plugin_leak)
        truth_fail("dlsym failed");
    /* New mappings get their tables within a second. */
    sleep(2);
    for (size_t i = 0; i < 47; i++) {
        KEEP(plugin_leak(977 + i));
        truth_site("plugin_leak", (int64_t)(977 + i), 1);
    }
    truth_uncounted("load");
    truth_end();
}
