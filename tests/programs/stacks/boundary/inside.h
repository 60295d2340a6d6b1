// C that is linked into the Go binary.
#include <stddef.h>
#include "../levels.h"

void inside_a(size_t size);
void after_callback(size_t size);
void *callback_address(void);
void leak_inlined(size_t size);
