/* Two allocators that arrive by dlopen while they are traced, beside libc's: each is asked by its own
 * functions, and hands its blocks back to itself. */
#include "truth.h"
#include <dlfcn.h>
#include <time.h>

struct allocator {
    void *(*allocate)(size_t);
    void *(*resize)(void *, size_t);
    void (*release)(void *);
};

/* A probe is a breakpoint (int3) at a function's entry, or a few instructions behind it. */
static int is_probed(const void *function) {
    const volatile unsigned char *code = function;
    for (int i = 0; i < 16; i++)
        if (code[i] == 0xcc)
            return 1;
    return 0;
}

static void wait_for_probe(const void *function) {
    struct timespec pause = {0, 10 * 1000 * 1000};
    for (int i = 0; i < 6000 && !is_probed(function); i++)
        nanosleep(&pause, NULL);
    if (!is_probed(function))
        truth_fail("the library was not probed within a minute");
}

static SITE struct allocator load(const char *path, const char *allocate, const char *resize,
                                  const char *release) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    KEEP(library);
    if (!library)
        truth_fail(dlerror());
    struct allocator loaded = {
        (void *(*)(size_t))dlsym(library, allocate),
        (void *(*)(void *, size_t))dlsym(library, resize),
        (void (*)(void *))dlsym(library, release),
    };
    if (!loaded.allocate || !loaded.resize || !loaded.release)
        truth_fail("dlsym failed");
    wait_for_probe((const void *)loaded.allocate);
    wait_for_probe((const void *)loaded.resize);
    wait_for_probe((const void *)loaded.release);
    return loaded;
}

static SITE void leak_first(struct allocator first, size_t size) {
    void *block = first.allocate(size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_second(struct allocator second, size_t size) {
    void *block = second.allocate(41);
    KEEP(block);
    block = second.resize(block, size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_libc(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void freed_by_each(struct allocator first, struct allocator second, size_t size) {
    void *blocks[] = {first.allocate(size), second.allocate(size), malloc(size)};
    KEEP(blocks[0]);
    KEEP(blocks[1]);
    KEEP(blocks[2]);
    first.release(blocks[0]);
    second.release(blocks[1]);
    free(blocks[2]);
}

int main(int argc, char **argv) {
    if (argc < 3)
        truth_fail("which libraries, mimalloc's and tcmalloc's?");
    /* Its constructor takes memory of libc's: before anybody counts. */
    if (!dlopen("libstdc++.so.6", RTLD_NOW))
        truth_fail(dlerror());
    truth_ready();
    struct allocator first = load(argv[1], "mi_malloc", "mi_realloc", "mi_free");
    struct allocator second = load(argv[2], "tc_malloc", "tc_realloc", "tc_free");
    for (size_t i = 0; i < 61; i++) {
        leak_first(first, 977 + i);
        leak_second(second, 1409 + i);
        leak_libc(331 + i);
        freed_by_each(first, second, 613 + i);
    }
    truth_site("freed_by_each", 0, 0);
    truth_uncounted("load");
    truth_end();
}
