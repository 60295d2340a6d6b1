package main

/*
#include <sqlite3.h>
*/
import "C"

import (
	"database/sql"
	"fmt"
	"strings"
	"sync"

	_ "github.com/mattn/go-sqlite3"
)

// notes keeps the last few hundred notes in SQLite.
type notes struct {
	db *sql.DB

	// With leakStatements, a "cache" of prepared statements whose key is the whole text of the
	// query, values included: it is never hit and never emptied.
	leakStatements bool
	lock           sync.Mutex
	statements     map[string]*sql.Stmt
}

const keptNotes = 200

func openNotes(leakStatements bool) (*notes, error) {
	db, err := sql.Open("sqlite3", ":memory:")
	if err != nil {
		return nil, err
	}
	// Every connection to :memory: is a database of its own.
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"); err != nil {
		return nil, err
	}
	return &notes{db: db, leakStatements: leakStatements, statements: map[string]*sql.Stmt{}}, nil
}

// add is healthy: all that SQLite allocates for it is freed at its end.
func (n *notes) add(text string) (int, error) {
	if _, err := n.db.Exec("INSERT INTO note (text) VALUES (?)", text); err != nil {
		return 0, err
	}
	_, err := n.db.Exec("DELETE FROM note WHERE id <= (SELECT max(id) FROM note) - ?", keptNotes)
	if err != nil {
		return 0, err
	}
	var count int
	err = n.db.QueryRow("SELECT count(*) FROM note").Scan(&count)
	return count, err
}

// search counts the notes that hold a word.
func (n *notes) search(word string) (int, error) {
	query := fmt.Sprintf("SELECT count(*) FROM note WHERE text LIKE '%%%s%%'",
		strings.ReplaceAll(word, "'", "''"))
	statement, err := n.prepare(query)
	if err != nil {
		return 0, err
	}
	if !n.leakStatements {
		defer statement.Close()
	}
	var count int
	err = statement.QueryRow().Scan(&count)
	return count, err
}

func (n *notes) prepare(query string) (*sql.Stmt, error) {
	if !n.leakStatements {
		return n.db.Prepare(query)
	}
	n.lock.Lock()
	defer n.lock.Unlock()
	if statement, ok := n.statements[query]; ok {
		return statement, nil
	}
	statement, err := n.db.Prepare(query)
	if err == nil {
		n.statements[query] = statement
	}
	return statement, err
}

func (n *notes) heldStatements() int {
	n.lock.Lock()
	defer n.lock.Unlock()
	return len(n.statements)
}

// sqliteMemoryUsed is what SQLite says of itself: its outstanding allocations, in bytes.
func sqliteMemoryUsed() int64 {
	return int64(C.sqlite3_memory_used())
}
