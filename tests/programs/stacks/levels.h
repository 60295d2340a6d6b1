/* What liblevels.so and libmake.so offer. Each call leaks one block of `size` bytes. */
#ifndef LEVELS_H
#define LEVELS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* leak_a -> level_b -> level_c -> level_d -> malloc */
void leak_a(size_t size);
/* thread_body -> leak_a -> ... in a thread of the library's own, which has ended on return. */
void leak_in_thread(size_t size);
/* callback(size), two C frames below. */
void call_back(void (*callback)(size_t), size_t size);

/* make(size) -> operator new[] */
void leak_by_new(size_t size);
/* std::string::reserve, out of line in the distribution's libstdc++: `size` with the NUL. */
void leak_by_string(size_t size);

#ifdef __cplusplus
}
#endif

#endif
