// A C++ library over the distribution's libstdc++.
#include "levels.h"

#include <string>

#define FRAME __attribute__((noinline, noclone))
#define AFTER(value) __asm__ volatile("" : : "r"(value) : "memory")

namespace {

FRAME void make(std::size_t size) {
    char *object = new char[size];
    AFTER(object);
}

FRAME void fill(std::string &text, std::size_t size) {
    text.reserve(size - 1);
    AFTER(&text);
}

} // namespace

extern "C" FRAME void leak_by_new(size_t size) {
    make(size);
    AFTER(size);
}

extern "C" FRAME void leak_by_string(size_t size) {
    // Never destroyed.
    alignas(std::string) static char room[sizeof(std::string)];
    fill(*new (room) std::string, size);
    AFTER(size);
}
