/* The library that dlopen_library.c loads. */
#include <stdlib.h>

__attribute__((noinline)) void *plugin_leak(size_t size) {
    void *block = malloc(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}
