/* Two thousand processes that live for a moment, each with an allocation of its own, while the
 * parent goes on allocating. */
#include "truth.h"
#include <sys/wait.h>

enum { PROCESSES = 2000, TOGETHER = 16 };

static SITE void held_by_parent(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

static SITE void held_by_child(void) {
    for (size_t i = 0; i < 20; i++) {
        void *block = malloc(5003 + i);
        KEEP(block);
    }
    _exit(0);
}

int main(void) {
    truth_ready();
    int running = 0;
    for (size_t i = 0; i < PROCESSES; i++) {
        held_by_parent(977 + i % 100);
        pid_t child = fork();
        if (child < 0)
            truth_fail("fork failed");
        if (child == 0)
            held_by_child();
        if (++running == TOGETHER) {
            int status = 0;
            if (wait(&status) < 0 || status)
                truth_fail("a child was harmed");
            running--;
        }
    }
    for (; running; running--) {
        int status = 0;
        if (wait(&status) < 0 || status)
            truth_fail("a child was harmed");
    }
    truth_tally("forks", PROCESSES);
    truth_end();
}
