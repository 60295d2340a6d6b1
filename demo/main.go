// Notes is the service that memtrace's demo traces: a small, ordinary Go program over SQLite and
// libxml2, with switches for what goes wrong in such programs.
//
// It knows how much it leaks, and says so on /truth.
package main

import (
	"flag"
	"log"
	"net/http"
	_ "net/http/pprof"
)

func main() {
	address := flag.String("listen", "127.0.0.1:8080", "address to serve on, pprof included")
	leakDocuments := flag.Bool("leak-documents", false, "never free the XML documents of feeds without a title")
	leakStatements := flag.Bool("leak-statements", false, "keep a prepared statement for every search ever made")
	leakLabels := flag.Bool("leak-labels", false, "never free the C strings made for labels")
	growCache := flag.Bool("grow-cache", false, "keep every thumbnail on the Go heap")
	flag.Parse()

	notes, err := openNotes(*leakStatements)
	if err != nil {
		log.Fatalf("open the notes: %v", err)
	}
	service := &service{
		notes:  notes,
		feeds:  &feeds{leak: *leakDocuments},
		labels: &labels{leak: *leakLabels},
		cache:  &cache{grow: *growCache},
	}
	http.HandleFunc("/note", service.handleNote)
	http.HandleFunc("/search", service.handleSearch)
	http.HandleFunc("/import", service.handleImport)
	http.HandleFunc("/label", service.handleLabel)
	http.HandleFunc("/thumbnail", service.handleThumbnail)
	http.HandleFunc("/truth", service.handleTruth)
	log.Printf("notes listens on %s", *address)
	log.Fatal(http.ListenAndServe(*address, nil))
}
