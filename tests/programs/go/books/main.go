// Command books holds memory by many kinds of call stacks and tells the runtime's own books when
// asked, one command per line on standard input:
//
//	stats         runtime.MemStats as `key value` pairs on one line; allocates nothing
//	profile PATH  the heap profile as runtime/pprof writes it, then the number of collections
//	collect       runtime.GC()
//	churn, calm   starts and stops goroutines that allocate
//	grow          holds some more
//
// It ends with its input. BOOKS_RATE sets MemProfileRate, BOOKS_STACKS how many more call stacks
// hold something.
package main

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

func init() {
	// Before anything is allocated, as the runtime wants it.
	if rate, err := strconv.Atoi(os.Getenv("BOOKS_RATE")); err == nil {
		runtime.MemProfileRate = rate
	}
}

func main() { run() }

var held [][]byte
var kept []any

// inlined into its caller.
func inlined(size int) []byte { return make([]byte, size) }

//go:noinline
func byInlined() {
	for i := 0; i < 40; i++ {
		held = append(held, inlined(300_001))
	}
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

//go:noinline
func generic[K comparable, V any](key K, value V, count int) {
	for i := 0; i < count; i++ {
		kept = append(kept, &[4096]pair[K, V]{{key, value}})
	}
}

type tree struct{ left, right *tree }

//go:noinline
func (t *tree) grow(depth int) {
	if depth == 0 {
		held = append(held, make([]byte, 700_003))
		return
	}
	t.left = &tree{}
	t.left.grow(depth - 1)
}

//go:noinline
func byMap() {
	words := map[string]int{}
	for i := 0; i < 60_000; i++ {
		words[strings.Repeat("w", 20)+strconv.Itoa(i)] = i
	}
	kept = append(kept, words)
}

//go:noinline
func byClosure() {
	each := func(size int) { held = append(held, make([]byte, size)) }
	for size := 1; size < 1<<20; size *= 2 {
		each(size + 400_000)
	}
}

type buffered interface{ fill() }

type filler struct{ buffer bytes.Buffer }

func (f *filler) fill() {
	for i := 0; i < 3000; i++ {
		f.buffer.WriteString("a buffer grows in the library's code")
	}
}

//go:noinline
func byInterface(what buffered) {
	what.fill()
	kept = append(kept, what)
}

// Each path of zeros and ones is a call stack of its own.
//
//go:noinline
func zero(path, depth int) { branch(path, depth) }

//go:noinline
func one(path, depth int) { branch(path, depth) }

//go:noinline
func branch(path, depth int) {
	switch {
	case depth == 0:
		held = append(held, make([]byte, 64))
	case path&1 == 0:
		zero(path>>1, depth-1)
	default:
		one(path>>1, depth-1)
	}
}

var churning atomic.Bool
var churners sync.WaitGroup
var sink atomic.Pointer[[]byte]

//go:noinline
func churn() {
	defer churners.Done()
	for i := 0; churning.Load(); i++ {
		block := make([]byte, 1000+i%50_000)
		sink.Store(&block)
	}
}

func hold() {
	byInlined()
	generic("text", 1, 200)
	generic(1, 2.5, 200)
	(&tree{}).grow(20)
	(&tree{}).grow(300)
	byMap()
	byClosure()
	byInterface(&filler{})
	done := make(chan struct{})
	for i := 0; i < 100; i++ {
		go func() { <-done }()
	}
	stacks, _ := strconv.Atoi(os.Getenv("BOOKS_STACKS"))
	for path := 0; path < stacks; path++ {
		branch(path, 14)
	}
}

var (
	input = bufio.NewReaderSize(os.Stdin, 1<<16)
	stats runtime.MemStats
	out   [1 << 14]byte
)

func put(line []byte, key string, value uint64) []byte {
	line = append(line, key...)
	line = append(line, ' ')
	line = strconv.AppendUint(line, value, 10)
	return append(line, ' ')
}

func tell() {
	runtime.ReadMemStats(&stats)
	line := out[:0]
	line = put(line, "sys", stats.Sys)
	line = put(line, "heap_alloc", stats.HeapAlloc)
	line = put(line, "heap_sys", stats.HeapSys)
	line = put(line, "heap_idle", stats.HeapIdle)
	line = put(line, "heap_inuse", stats.HeapInuse)
	line = put(line, "heap_released", stats.HeapReleased)
	line = put(line, "stack_inuse", stats.StackInuse)
	line = put(line, "stack_sys", stats.StackSys)
	line = put(line, "mspan_inuse", stats.MSpanInuse)
	line = put(line, "mspan_sys", stats.MSpanSys)
	line = put(line, "mcache_inuse", stats.MCacheInuse)
	line = put(line, "mcache_sys", stats.MCacheSys)
	line = put(line, "buck_hash_sys", stats.BuckHashSys)
	line = put(line, "gc_sys", stats.GCSys)
	line = put(line, "other_sys", stats.OtherSys)
	line = put(line, "next_gc", stats.NextGC)
	line = put(line, "num_gc", uint64(stats.NumGC))
	line = put(line, "num_forced_gc", uint64(stats.NumForcedGC))
	line = put(line, "last_gc_unix_ns", stats.LastGC)
	line = put(line, "mallocs", stats.Mallocs)
	line[len(line)-1] = '\n'
	os.Stdout.Write(line)
}

func profile(path string) {
	file, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	if err := pprof.Lookup("heap").WriteTo(file, 0); err != nil {
		panic(err)
	}
	file.Close()
	runtime.ReadMemStats(&stats)
	os.Stdout.WriteString("profile " + strconv.Itoa(int(stats.NumGC)) + "\n")
}

func run() {
	// A large heap so that a profile's own garbage does not start a collection.
	hold()
	if os.Getenv("BOOKS_NO_GC") == "" {
		runtime.GC()
		hold()
		debug.FreeOSMemory()
		hold()
	}
	os.Stdout.WriteString("ready\n")
	for {
		line, err := input.ReadSlice('\n')
		if err != nil {
			os.Exit(0)
		}
		line = line[:len(line)-1]
		switch {
		case string(line) == "stats":
			tell()
			continue
		case bytes.HasPrefix(line, []byte("profile ")):
			profile(string(line[len("profile "):]))
			continue
		case string(line) == "collect":
			runtime.GC()
		case string(line) == "grow":
			hold()
		case string(line) == "churn":
			churning.Store(true)
			for i := 0; i < 2; i++ {
				churners.Add(1)
				go churn()
			}
		case string(line) == "calm":
			churning.Store(false)
			churners.Wait()
		}
		os.Stdout.WriteString("done\n")
	}
}
