// Over-aligned new (C++17), which libstdc++ builds of aligned_alloc.
extern "C" {
#include "../c/truth.h"
}
#include <new>

struct alignas(128) Wide {
    char body[1280];
};

struct alignas(4096) Page {
    char body[12288];
};

SITE void leak_wide() {
    auto *wide = new Wide;
    KEEP(wide);
    HELD(sizeof(Wide));
}

SITE void leak_pages(size_t count) {
    auto *pages = new Page[count];
    KEEP(pages);
    HELD(count * sizeof(Page));
}

SITE void wide_and_deleted() {
    auto *wide = new Wide;
    KEEP(wide);
    delete wide;
}

int main() {
    truth_ready();
    for (size_t i = 1; i < 31; i++) {
        leak_wide();
        leak_pages(i % 4 + 1);
        wide_and_deleted();
    }
    truth_site("wide_and_deleted", 0, 0);
    truth_end();
}
