/* Threads that die: their blocks stay outstanding, their half of the books goes on. */
#include "truth.h"
#include <pthread.h>
#include <semaphore.h>

enum { THREADS = 12 };
static sem_t start;

static SITE void leak_in_thread(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void churn(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    free(block);
}

static void *work(void *number) {
    sem_wait(&start);
    for (size_t i = 0; i < 501; i++) {
        leak_in_thread(977 + (size_t)number);
        churn(i);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    sem_init(&start, 0, 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    truth_ready();
    for (int i = 0; i < THREADS; i++)
        sem_post(&start);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    truth_site("churn", 0, 0);
    truth_end();
}
