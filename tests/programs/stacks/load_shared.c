/* A C program with Go in a shared library: nothing of this executable is Go's. */
#include "../c/truth.h"

void RunCases(void);

static SITE void run(void) {
    RunCases();
    KEEP(&truth_lock);
}

int main(void) {
    truth_ready();
    run();
    truth_end();
}
