#!/bin/sh
# Mycelite with the sqlite3 shell: write a database, watch its replica, compare the two.
#
#   examples/shell/replicate.sh [DIRECTORY]      where cargo put libmycelite.so and mycelite [target/release]
#   examples/shell/replicate.sh PROGRAM LIBRARY  or each by its path
#
# Needs the sqlite3 shell 3.31 or later. Everything happens in a temporary directory.
set -eu

program=${1:-target/release}
library=${2:-$program/libmycelite.so}
[ -d "$program" ] && program=$program/mycelite
for file in "$program" "$library"; do
    [ -f "$file" ] || { echo "replicate.sh: no $file: run cargo build --release first" >&2; exit 2; }
done
program=$(realpath "$program")
library=$(realpath "$library")

home=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null || true; rm -rf "$home"' EXIT INT TERM
cd "$home"

# 1. A replica server, on a port that the system chooses. It says where it listens.
"$program" serve --data replicas --listen 127.0.0.1:0 > server.out 2> server.err &
server=$!
tries=0
until grep -q '^listening on ' server.out; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || { cat server.err >&2; exit 1; }
    sleep 0.05
done
url=$(sed -n 's/^listening on //p' server.out)/shop

# 2. An application: plain SQL. `.load` makes the writer the default VFS; the URI names the replica.
sqlite3 -bail :memory: <<SQL
.load $library
.open 'file:shop.db?vfs=mycelite_writer&replica=$url'
CREATE TABLE fruit(name TEXT PRIMARY KEY, price INTEGER);
INSERT INTO fruit VALUES ('apple', 30), ('pear', 45);
BEGIN;
UPDATE fruit SET price = price + 5;
INSERT INTO fruit VALUES ('plum', 12);
COMMIT;
.print 'the database, from inside:'
SELECT 'transaction ' || mycelite_txid() || ', checksum ' || mycelite_checksum();
SELECT mycelite_status();
.print 'its replicas:'
.mode line
SELECT * FROM mycelite_replicas;
SQL

# 3. The process is gone. Whatever it had no time to send, push sends.
"$program" push "shop.db" --to "$url"

# 4. The history, and the proof.
"$program" log shop.db
"$program" verify shop.db --deep

# 5. The replica is an ordinary SQLite file. The server brings it up to date right after it has acknowledged the records.
tries=0
until cmp -s shop.db replicas/shop.db; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || { echo "replicate.sh: the replica differs" >&2; exit 1; }
    sleep 0.05
done
sqlite3 replicas/shop.db 'SELECT * FROM fruit'
echo "identical: shop.db and replicas/shop.db"
