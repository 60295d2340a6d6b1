/* A C library as distributions build them: -O2, no frame pointers. level_c goes further and holds
 * plain data in RBP over its call, so that only a table leads through it. */
#include "levels.h"

#include <pthread.h>
#include <stdlib.h>

#define FRAME __attribute__((noinline, noclone))
/* No tail call before it. */
#define AFTER(value) __asm__ volatile("" : : "r"(value) : "memory")

void level_c(size_t size);

__attribute__((visibility("hidden"))) FRAME void level_d(size_t size) {
    volatile char room[72];
    room[size % sizeof room] = 1;
    void *block = malloc(size);
    AFTER(block);
    AFTER(room);
}

__asm__(".text\n"
        ".type level_c, @function\n"
        "level_c:\n"
        "  .cfi_startproc\n"
        "  push %rbp\n"
        "  .cfi_def_cfa_offset 16\n"
        "  .cfi_offset %rbp, -16\n"
        "  mov $0x15b3, %ebp\n"
        "  call level_d\n"
        "  pop %rbp\n"
        "  .cfi_def_cfa_offset 8\n"
        "  .cfi_restore %rbp\n"
        "  ret\n"
        "  .cfi_endproc\n"
        ".size level_c, . - level_c\n");

static FRAME void level_b(size_t size) {
    volatile size_t kept[5] = {size, 1, 2, 3, 4};
    level_c(size);
    AFTER(kept);
}

FRAME void leak_a(size_t size) {
    level_b(size);
    AFTER(size);
}

static FRAME void *thread_body(void *size) {
    leak_a((size_t)size);
    AFTER(size);
    return NULL;
}

FRAME void leak_in_thread(size_t size) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_body, (void *)size) == 0)
        pthread_join(thread, NULL);
}

static FRAME void call_back_below(void (*callback)(size_t), size_t size) {
    volatile size_t kept[9] = {size};
    callback(size);
    AFTER(kept);
}

FRAME void call_back(void (*callback)(size_t), size_t size) {
    call_back_below(callback, size);
    AFTER(size);
}
