// Mycelite with Node's own SQLite: write a database, watch its replica, read it while it follows, compare the two.
//
//   node examples/node/replicate.mjs [DIRECTORY]      where cargo put libmycelite.so and mycelite [target/release]
//   node examples/node/replicate.mjs PROGRAM LIBRARY  or each by its path
//
// Needs Node 22.13 or later (node:sqlite).
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as sleep } from "node:timers/promises";

const WAIT_MS = 20_000;

/** The program and the library. */
function locate([where = "target/release", file]) {
  const isDirectory = existsSync(where) && statSync(where).isDirectory();
  const program = isDirectory ? join(where, "mycelite") : where;
  const library = file ?? join(where, "libmycelite.so");
  for (const path of [program, library]) {
    if (!existsSync(path)) throw new Error(`no ${path}: run cargo build --release first`);
  }
  return [resolve(program), resolve(library)];
}

/** A replica server on a free port; its first line says where it listens. */
async function startServer(program, home) {
  const options = ["serve", "--data", join(home, "replicas"), "--listen", "127.0.0.1:0"];
  const server = spawn(program, options, { stdio: ["ignore", "pipe", "ignore"] });
  for await (const line of createInterface({ input: server.stdout })) {
    return [server, line.replace(/^listening on /, "")];
  }
  throw new Error("mycelite serve did not say where it listens");
}

/** Once per process: afterwards every connection can use the writer VFS. */
function loadExtension(library) {
  const door = new DatabaseSync(":memory:", { allowExtension: true });
  door.loadExtension(library);
  door.close();
}

/** The application: nothing here is special but the URI. */
function write(home, url) {
  const db = new DatabaseSync(`file:${join(home, "tasks.db")}?vfs=mycelite_writer&replica=${url}`);
  db.exec("PRAGMA journal_mode = WAL; CREATE TABLE task(id INTEGER PRIMARY KEY, title TEXT, done INTEGER)");
  const insert = db.prepare("INSERT INTO task(title, done) VALUES (?, ?)");
  for (let number = 0; number < 100; number++) insert.run(`task ${number}`, number % 2);
  const status = JSON.parse(db.prepare("SELECT mycelite_status() AS status").get().status);
  console.log(`written: transaction ${status.pos.txid}, log of ${status.log_bytes} bytes, state ${status.state}`);
  return db;
}

/** Waits until the replica shows every task; it is read by plain SQLite, past the extension. */
async function watch(replica, want) {
  let seen = 0;
  for (const end = Date.now() + WAIT_MS; seen < want; await sleep(10)) {
    if (Date.now() > end) throw new Error(`the replica shows ${seen} of ${want} tasks`);
    if (!existsSync(replica) || statSync(replica).size === 0) continue;
    const reader = new DatabaseSync(`file:${replica}?vfs=unix`);
    const made = reader.prepare("SELECT count(*) AS n FROM sqlite_schema WHERE name = 'task'").get().n;
    if (made > 0) seen = reader.prepare("SELECT count(*) AS n FROM task").get().n;
    reader.close();
  }
  console.log(`replica: all ${seen} tasks are there`);
}

const home = mkdtempSync(join(tmpdir(), "mycelite-node-"));
let server;
try {
  const [program, library] = locate(process.argv.slice(2));
  const run = (...options) => execFileSync(program, options, { stdio: "inherit" });
  let address;
  [server, address] = await startServer(program, home);
  loadExtension(library);
  const [url, file, replica] = [`${address}/tasks`, join(home, "tasks.db"), join(home, "replicas", "tasks.db")];
  const db = write(home, url);
  await watch(replica, 100);
  for (const row of db.prepare("SELECT url, state, acked_txid FROM mycelite_replicas").all()) {
    console.log(`${row.url}: ${row.state}, holds transaction ${row.acked_txid}`);
  }
  // Closing folds the WAL into the file, and the server does the same once it is idle.
  db.close();
  run("verify", file, "--deep");
  run("push", file, "--to", url);
  const ended = new Promise((resolve) => server.once("exit", resolve));
  server.kill("SIGTERM");
  await ended;
  if (!readFileSync(file).equals(readFileSync(replica))) throw new Error("the replica differs");
  console.log(`identical: tasks.db and replicas/tasks.db, ${statSync(replica).size} bytes`);
} catch (error) {
  console.error(`replicate.mjs: ${error.message}`);
  process.exitCode = 1;
} finally {
  server?.kill();
  rmSync(home, { recursive: true, force: true });
}
