/* Blocks that one thread allocates and another frees. */
#include "truth.h"
#include <pthread.h>
#include <semaphore.h>

enum { ROUNDS = 20011, RING = 64 };
static void *ring[RING];
static sem_t filled, emptied, start, done;

static SITE void *produce(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

static void *consumer(void *unused) {
    sem_wait(&start);
    for (int i = 0; i < ROUNDS; i++) {
        sem_wait(&filled);
        void *block = ring[i % RING];
        /* Every hundredth is kept. */
        if (i % 100)
            free(block);
        else
            truth_site("produce", 17 + i % 1009, 1);
        sem_post(&emptied);
    }
    sem_post(&done);
    for (;;)
        pause();
    return unused;
}

int main(void) {
    pthread_t thread;
    sem_init(&filled, 0, 0);
    sem_init(&emptied, 0, RING);
    sem_init(&start, 0, 0);
    sem_init(&done, 0, 0);
    pthread_create(&thread, NULL, consumer, NULL);
    truth_ready();
    sem_post(&start);
    for (int i = 0; i < ROUNDS; i++) {
        sem_wait(&emptied);
        ring[i % RING] = produce(17 + i % 1009);
        sem_post(&filled);
    }
    sem_wait(&done);
    truth_end();
}
