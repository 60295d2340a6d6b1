// Sized and array deletes of polymorphic objects, deleted by their base.
extern "C" {
#include "../c/truth.h"
}

struct Base {
    virtual ~Base() = default;
};

struct Large : Base {
    char body[1409];
};

struct Counted {
    ~Counted() { KEEP(this); }
    char body[37];
};

SITE Base *make_large() {
    Base *large = new Large;
    KEEP(large);
    return large;
}

SITE Counted *make_counted(size_t count) {
    // With a cookie before the elements that holds how many there are.
    auto *array = new Counted[count];
    KEEP(array);
    return array;
}

int main() {
    truth_ready();
    for (int i = 0; i < 120; i++) {
        Base *large = make_large();
        Counted *array = make_counted(11);
        if (i % 4) {
            delete large;
            delete[] array;
        } else {
            truth_site("make_large", sizeof(Large), 1);
            truth_site("make_counted", sizeof(size_t) + 11 * sizeof(Counted), 1);
        }
    }
    truth_end();
}
