// The standard library's containers through an allocator that counts for itself.
extern "C" {
#include "../c/truth.h"
}
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

static int64_t held_bytes, held_blocks;

template <typename T>
struct Counting {
    using value_type = T;
    Counting() = default;
    template <typename U>
    Counting(const Counting<U> &) {}
    T *allocate(size_t count) {
        held_bytes += static_cast<int64_t>(count * sizeof(T));
        held_blocks++;
        return std::allocator<T>().allocate(count);
    }
    void deallocate(T *block, size_t count) {
        held_bytes -= static_cast<int64_t>(count * sizeof(T));
        held_blocks--;
        std::allocator<T>().deallocate(block, count);
    }
    bool operator==(const Counting &) const { return true; }
    bool operator!=(const Counting &) const { return false; }
};

using Text = std::basic_string<char, std::char_traits<char>, Counting<char>>;
using Tree = std::map<int, Text, std::less<int>, Counting<std::pair<const int, Text>>>;

namespace shop {
struct Shelf {
    std::vector<int, Counting<int>> numbers;
    std::list<double, Counting<double>> chain;
    Tree tree;

    SITE void fill_and_keep(int count) {
        for (int i = 0; i < count; i++) {
            numbers.push_back(i);
            chain.push_back(i);
            tree.emplace(i, Text(static_cast<size_t>(i % 97), 'x'));
        }
        for (int i = 0; i < count; i += 3) tree.erase(i);
        KEEP(this);
    }
};
}  // namespace shop

alignas(shop::Shelf) static char place[sizeof(shop::Shelf)];

int main() {
    auto *shelf = new (place) shop::Shelf;
    truth_ready();
    shelf->fill_and_keep(5003);
    truth_site("shop::Shelf::fill_and_keep", held_bytes, held_blocks);
    truth_end();
}
