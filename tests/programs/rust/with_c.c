/* The C library of with_c.rs. */
#include <stdlib.h>

__attribute__((noinline)) void *library_allocate(size_t size) {
    void *block = malloc(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

void *library_create(size_t size, size_t (*callback)(size_t)) {
    void *block = library_allocate(size);
    callback(size / 3);
    return block;
}

void library_destroy(void *block) { free(block); }
