/* Millions of calls that come and go, by as many threads as the second argument says; every
 * 100,003rd block stays. */
#include "truth.h"
#include <pthread.h>
#include <semaphore.h>

static sem_t start, done;
static size_t rounds;

static SITE void *churn(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

static void *work(void *unused) {
    sem_wait(&start);
    int64_t bytes = 0, blocks = 0;
    for (size_t i = 1; i <= rounds; i++) {
        size_t size = 1 + i % 509;
        void *block = churn(size);
        if (i % 100003)
            free(block);
        else
            bytes += (int64_t)size, blocks++;
    }
    truth_site("churn", bytes, blocks);
    sem_post(&done);
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv) {
    size_t calls = argc > 1 ? strtoul(argv[1], NULL, 10) : 10000000;
    int threads = argc > 2 ? atoi(argv[2]) : 1;
    rounds = calls / 2 / (size_t)threads;
    sem_init(&start, 0, 0);
    sem_init(&done, 0, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, NULL);
    }
    truth_ready();
    for (int i = 0; i < threads; i++)
        sem_post(&start);
    for (int i = 0; i < threads; i++)
        sem_wait(&done);
    truth_end();
}
