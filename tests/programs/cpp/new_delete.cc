// operator new and delete in their plain forms: the bytes are what the compiler asks for.
extern "C" {
#include "../c/truth.h"
}
#include <new>

struct Widget {
    char body[977];
};

SITE Widget *leak_object() {
    auto *widget = new Widget;
    KEEP(widget);
    HELD(sizeof(Widget));
    return widget;
}

SITE void leak_array(size_t count) {
    auto *array = new int[count];
    KEEP(array);
    HELD(count * sizeof(int));
}

SITE void object_and_deleted() {
    auto *widget = new Widget;
    KEEP(widget);
    delete widget;
    auto *array = new Widget[3];
    KEEP(array);
    delete[] array;
}

SITE void leak_nothrow(size_t size) {
    auto *block = new (std::nothrow) char[size];
    KEEP(block);
    HELD(size);
}

SITE void nothrow_fails() {
    volatile size_t large = PTRDIFF_MAX - 100;
    auto *block = ::operator new(large, std::nothrow);
    KEEP(block);
    if (block) truth_fail("new did not fail");
}

int main() {
    truth_ready();
    for (size_t i = 0; i < 59; i++) {
        leak_object();
        leak_array(331 + i);
        object_and_deleted();
        leak_nothrow(613 + i);
        nothrow_fails();
    }
    truth_site("object_and_deleted", 0, 0);
    truth_site("nothrow_fails", 0, 0);
    truth_end();
}
