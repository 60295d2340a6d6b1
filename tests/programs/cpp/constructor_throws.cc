// A constructor that throws: the runtime frees the object and the exception, nothing stays.
extern "C" {
#include "../c/truth.h"
}

struct Fragile {
    char body[3571];
    explicit Fragile(int number) {
        KEEP(this);
        if (number % 2) throw number;
    }
};

SITE void leak_when_even(int number) {
    try {
        auto *fragile = new Fragile(number);
        KEEP(fragile);
        HELD(sizeof(Fragile));
    } catch (int) {
        truth_site(__func__, 0, 0);
    }
}

int main() {
    // The unwinder prepares itself at its first use.
    leak_when_even(1);
    truth_ready();
    for (int number = 0; number < 202; number++) leak_when_even(number);
    truth_end();
}
