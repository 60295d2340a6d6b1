package main

/*
#include <stdlib.h>
#include <string.h>

// Stands for any C function that takes a string.
static int label_width(const char *text) { return (int)strlen(text) * 7; }
*/
import "C"

import (
	"sync/atomic"
	"unsafe"
)

// labels asks C for the width of a text, through C.CString.
type labels struct {
	leak         bool
	leakedLabels atomic.Int64
	leakedBytes  atomic.Int64
}

func (l *labels) width(text string) int {
	if l.leak {
		return l.widthForgotten(text)
	}
	return l.widthFreed(text)
}

//go:noinline
func (l *labels) widthForgotten(text string) int {
	copied := C.CString(text)
	l.leakedLabels.Add(1)
	l.leakedBytes.Add(int64(len(text)) + 1)
	return int(C.label_width(copied))
}

//go:noinline
func (l *labels) widthFreed(text string) int {
	copied := C.CString(text)
	defer C.free(unsafe.Pointer(copied))
	return int(C.label_width(copied))
}
