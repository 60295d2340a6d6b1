/* A library with the same entrance as levels.c and other frames behind it. */
#include "levels.h"

#include <stdlib.h>

#define FRAME __attribute__((noinline, noclone))
#define AFTER(value) __asm__ volatile("" : : "r"(value) : "memory")

static FRAME void other_inner(size_t size) {
    volatile char room[200];
    room[size % sizeof room] = 1;
    void *block = malloc(size);
    AFTER(block);
    AFTER(room);
}

static FRAME void other_middle(size_t size) {
    volatile size_t kept[17] = {size};
    other_inner(size);
    AFTER(kept);
}

FRAME void leak_a(size_t size) {
    other_middle(size);
    AFTER(size);
}
