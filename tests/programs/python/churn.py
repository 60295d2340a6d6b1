# Three threads that work without end in libraries of C: SQLite, OpenSSL, expat and zlib.
# Says `ready`, and ends with its input.
import hashlib
import json
import os
import sqlite3
import ssl
import sys
import threading
import xml.parsers.expat
import zlib


def query():
    database = sqlite3.connect(":memory:")
    database.execute("create table words(number, word)")
    database.create_function("longer", 1, lambda word: word + "!")
    while True:
        rows = [(number, "x" * (number % 200)) for number in range(200)]
        database.executemany("insert into words values (?, ?)", rows)
        database.execute(
            "select number % 7, count(*), group_concat(longer(word)) from words group by 1 order by 2"
        ).fetchall()
        database.execute("delete from words")


def encrypt():
    while True:
        ssl.create_default_context()
        digest = hashlib.sha256(os.urandom(1000)).hexdigest()
        hashlib.pbkdf2_hmac("sha256", digest.encode(), b"salt", 10)


def parse():
    document = b"<list>" + b"<item key='1'>text<empty/></item>" * 200 + b"</list>"
    while True:
        parser = xml.parsers.expat.ParserCreate()
        parser.StartElementHandler = lambda name, attributes: json.dumps(attributes)
        parser.Parse(document, True)
        zlib.decompress(zlib.compress(document * 10))


for work in (query, encrypt, parse):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
