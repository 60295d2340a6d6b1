/* free(NULL) is nothing; free of what was there before the attach is counted as unknown. */
#include "truth.h"

enum { BEFORE = 211 };
static void *before[BEFORE];

static SITE void free_nothing(void) {
    for (int i = 0; i < 97; i++) {
        void *volatile nothing = NULL;
        free(nothing);
    }
    truth_tally("free_null", 97);
}

static SITE void free_unknown(void) {
    for (int i = 0; i < BEFORE; i++)
        free(before[i]);
    truth_tally("free_unknown", BEFORE);
}

static SITE void leak_after(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    HELD(size);
}

int main(void) {
    for (size_t i = 0; i < BEFORE; i++)
        before[i] = malloc(53 + i);
    truth_ready();
    free_nothing();
    free_unknown();
    /* The same addresses again, now known. */
    for (size_t i = 0; i < 17; i++)
        leak_after(53 + i);
    truth_end();
}
