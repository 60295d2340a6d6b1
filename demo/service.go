package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// service answers requests; everything that holds memory lies behind it.
type service struct {
	notes  *notes
	feeds  *feeds
	labels *labels
	cache  *cache
}

// answer writes what a handler has to say, or its error.
func answer(w http.ResponseWriter, what any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, what)
}

// POST /note?text=…: healthy work, written and read again.
func (s *service) handleNote(w http.ResponseWriter, r *http.Request) {
	count, err := s.notes.add(r.FormValue("text"))
	answer(w, count, err)
}

// GET /search?word=…
func (s *service) handleSearch(w http.ResponseWriter, r *http.Request) {
	found, err := s.notes.search(r.FormValue("word"))
	answer(w, found, err)
}

// POST /import with a feed as its body.
func (s *service) handleImport(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		answer(w, nil, err)
		return
	}
	title, err := s.feeds.importFeed(body)
	answer(w, title, err)
}

// GET /label?text=…
func (s *service) handleLabel(w http.ResponseWriter, r *http.Request) {
	answer(w, s.labels.width(r.FormValue("text")), nil)
}

// GET /thumbnail?name=…
func (s *service) handleThumbnail(w http.ResponseWriter, r *http.Request) {
	answer(w, len(s.cache.thumbnail(r.FormValue("name"))), nil)
}

// GET /truth: what it has leaked so far, and what it holds.
func (s *service) handleTruth(w http.ResponseWriter, r *http.Request) {
	statements := s.notes.heldStatements()
	documents := s.feeds.leakedDocuments.Load()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{
		"leaked_documents":         documents,
		"held_statements":          statements,
		"leaked_label_bytes":       s.labels.leakedBytes.Load(),
		"leaked_labels":            s.labels.leakedLabels.Load(),
		"cached_bytes":             s.cache.bytes(),
		"sqlite_memory_used_bytes": sqliteMemoryUsed(),
	})
}
