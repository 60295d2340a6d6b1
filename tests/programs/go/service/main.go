// A service in a container that nobody talks to: every few milliseconds a request, of which C keeps a
// session for ever. It runs until it is ended.
package main

/*
#include <stdlib.h>
#include <string.h>

__attribute__((noinline)) void *open_session(size_t size) {
	void *session = malloc(size);
	if (session)
		memset(session, 7, size);
	__asm__ volatile("" : : "r"(session) : "memory");
	return session;
}

__attribute__((noinline)) void close_session(void *session) { free(session); }
*/
import "C"

import "time"

//go:noinline
func serveRequest(size int) {
	C.close_session(C.open_session(C.size_t(size)))
	C.open_session(C.size_t(size))
}

func main() {
	for {
		serveRequest(1733)
		time.Sleep(2 * time.Millisecond)
	}
}
