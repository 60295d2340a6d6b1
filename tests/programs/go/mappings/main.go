// Command mappings maps memory by system calls of its own, as Go programs do, while the runtime
// maps its heap: the first is the program's, the second is the runtime's.
package main

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"syscall"
)

const page = 4096

var (
	input = bufio.NewReader(os.Stdin)
	kept  [][]byte
	held  uint64
)

//go:noinline
func mapByPackage(pages int) []byte {
	mapped, err := syscall.Mmap(-1, 0, pages*page, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	held += uint64(pages * page)
	mapped[0] = 1
	return mapped
}

//go:noinline
func mapByNumber(pages uintptr) uintptr {
	at, _, errno := syscall.Syscall6(syscall.SYS_MMAP, 0, pages*page,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE, ^uintptr(0), 0)
	if errno != 0 {
		panic(errno)
	}
	held += uint64(pages * page)
	return at
}

func unmapByNumber(at, pages uintptr) {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_MUNMAP, at, pages*page, 0); errno != 0 {
		panic(errno)
	}
	held -= uint64(pages * page)
}

func work() {
	for i := 0; i < 40; i++ {
		mapped := mapByPackage(101)
		if i%2 == 0 {
			if err := syscall.Munmap(mapped); err != nil {
				panic(err)
			}
			held -= 101 * page
		}
	}
	at := mapByNumber(77)
	unmapByNumber(at+10*page, 5)
	// Grows and may move.
	if _, _, errno := syscall.Syscall6(syscall.SYS_MREMAP, at+20*page, 57*page, 90*page, 1, 0, 0); errno != 0 {
		panic(errno)
	}
	held += 33 * page
	// Refused: not a page's start.
	if _, _, errno := syscall.RawSyscall(syscall.SYS_MUNMAP, at+1, page, 0); errno == 0 {
		panic("munmap did not fail")
	}
	// The runtime's own mappings meanwhile: arenas and their tables.
	for i := 0; i < 80; i++ {
		kept = append(kept, make([]byte, 3<<20))
	}
	runtime.GC()
	done := make(chan struct{})
	for i := 0; i < 50; i++ {
		go func() {
			at := mapByGoroutine(3)
			unmapRaw(at, 3)
			done <- struct{}{}
		}()
	}
	for i := 0; i < 50; i++ {
		<-done
	}
}

//go:noinline
func mapByGoroutine(pages uintptr) uintptr {
	at, _, errno := syscall.Syscall6(syscall.SYS_MMAP, 0, pages*page, syscall.PROT_NONE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE, ^uintptr(0), 0)
	if errno != 0 {
		panic(errno)
	}
	return at
}

func unmapRaw(at, pages uintptr) {
	if _, _, errno := syscall.Syscall(syscall.SYS_MUNMAP, at, pages*page, 0); errno != 0 {
		panic(errno)
	}
}

func main() {
	os.Stdout.WriteString("ready\n")
	if _, err := input.ReadString('\n'); err != nil {
		os.Exit(0)
	}
	work()
	// A thread of the runtime may start meanwhile, in C.
	os.Stdout.WriteString(`{"sites":[],"uncounted":["__pthread_create_2_1","pthread_create"],"ranges_bytes":` + strconv.FormatUint(held, 10) + "}\n")
	for {
		if _, err := input.ReadString('\n'); err != nil {
			os.Exit(0)
		}
	}
}
