// Compiled by cgo with its default flags, -g -O2: no frame pointers.
#include "inside.h"
#include "_cgo_export.h"

#include <stdlib.h>

#define FRAME __attribute__((noinline, noclone))
#define AFTER(value) __asm__ volatile("" : : "r"(value) : "memory")

static FRAME void inside_c(size_t size) {
    volatile char room[40];
    room[size % sizeof room] = 1;
    void *block = malloc(size);
    AFTER(block);
    AFTER(room);
}

static FRAME void inside_b(size_t size) {
    inside_c(size);
    AFTER(size);
}

FRAME void inside_a(size_t size) {
    inside_b(size);
    AFTER(size);
}

FRAME void after_callback(size_t size) {
    inside_b(size);
    AFTER(size);
}

void *callback_address(void) { return (void *)goCallback; }

static inline __attribute__((always_inline)) void inlined_inner(size_t size) {
    void *block = malloc(size);
    AFTER(block);
}

static inline __attribute__((always_inline)) void inlined_middle(size_t size) {
    inlined_inner(size + 0);
    AFTER(size);
}

FRAME void leak_inlined(size_t size) {
    inlined_middle(size);
    AFTER(size);
}
