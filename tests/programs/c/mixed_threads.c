/* As many threads as the argument says, each with a random walk over all simple allocators; each
 * keeps its own books of what it holds. */
#define _GNU_SOURCE
#include "truth.h"
#include <pthread.h>
#include <semaphore.h>

enum { SLOTS = 997, STEPS = 60000 };

struct block {
    void *pointer;
    size_t size;
    const char *site;
};

static sem_t start, done;

static SITE void *by_malloc(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

static SITE void *by_calloc(size_t size) {
    void *block = calloc(1, size);
    KEEP(block);
    return block;
}

static SITE void *by_memalign(size_t size) {
    void *block = NULL;
    if (posix_memalign(&block, 128, size))
        truth_fail("posix_memalign failed");
    KEEP(block);
    return block;
}

static SITE void *by_realloc(void *old, size_t size) {
    void *block = realloc(old, size);
    KEEP(block);
    return block;
}

static void *work(void *seed) {
    static __thread struct block slots[SLOTS];
    uint64_t random = 88172645463325252u + (uint64_t)(uintptr_t)seed * 7919;
    sem_wait(&start);
    for (int step = 0; step < STEPS; step++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        struct block *slot = &slots[random % SLOTS];
        size_t size = 1 + (random >> 32) % 3001;
        switch ((random >> 20) % 6) {
        case 0:
            free(slot->pointer);
            *slot = (struct block){by_malloc(size), size, "by_malloc"};
            break;
        case 1:
            free(slot->pointer);
            *slot = (struct block){by_calloc(size), size, "by_calloc"};
            break;
        case 2:
            free(slot->pointer);
            *slot = (struct block){by_memalign(size), size, "by_memalign"};
            break;
        case 3:
            *slot = (struct block){by_realloc(slot->pointer, size), size, "by_realloc"};
            break;
        default:
            free(slot->pointer);
            *slot = (struct block){NULL, 0, NULL};
        }
    }
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].pointer)
            truth_site(slots[i].site, (int64_t)slots[i].size, 1);
    sem_post(&done);
    for (;;)
        pause();
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    sem_init(&start, 0, 0);
    sem_init(&done, 0, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *)(uintptr_t)(i + 1));
    }
    truth_ready();
    for (int i = 0; i < threads; i++)
        sem_post(&start);
    for (int i = 0; i < threads; i++)
        sem_wait(&done);
    truth_end();
}
