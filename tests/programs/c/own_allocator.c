/* An allocator inside the executable, which takes the place of libc's for the whole process. */
#include "truth.h"

static char arena[4 << 20] __attribute__((aligned(64)));
static size_t used;

__attribute__((noinline)) void *malloc(size_t size) {
    size_t need = (size + 79) & ~(size_t)63;
    if (used + need > sizeof arena)
        return NULL;
    char *block = arena + used;
    used += need;
    *(size_t *)block = size;
    return block + 16;
}

__attribute__((noinline)) void free(void *block) { KEEP(block); }

/* Built of malloc: one call of the user is one block. */
__attribute__((noinline)) void *calloc(size_t count, size_t size) {
    void *block = malloc(count * size);
    KEEP(block);
    return block;
}

__attribute__((noinline)) void *realloc(void *old, size_t size) {
    void *block = malloc(size);
    if (!block)
        return NULL;
    if (old) {
        size_t was = ((size_t *)old)[-2];
        memcpy(block, old, was < size ? was : size);
        free(old);
    }
    return block;
}

static SITE void leak_malloc(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void leak_calloc(size_t count, size_t size) {
    void *block = calloc(count, size);
    KEEP(block);
    HELD(count * size);
}

static SITE void *leak_realloc(void *old, size_t size) {
    void *block = realloc(old, size);
    KEEP(block);
    return block;
}

static SITE void exhaust(void) {
    volatile size_t large = sizeof arena;
    for (int i = 0; i < 19; i++) {
        void *block = malloc(large);
        KEEP(block);
        if (block)
            truth_fail("the arena did not end");
    }
    truth_site(__func__, 0, 0);
}

int main(void) {
    truth_ready();
    for (size_t i = 0; i < 101; i++) {
        leak_malloc(977 + i);
        leak_calloc(3, 331 + i);
        leak_realloc(leak_realloc(NULL, 41), 613);
        truth_site("leak_realloc", 613, 1);
        free(malloc(1409));
    }
    exhaust();
    truth_end();
}
