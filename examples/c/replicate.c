/* Mycelite from C: write a database, let its replica follow, compare the two.
**
**   cc -o replicate examples/c/replicate.c -lsqlite3
**   ./replicate [DIRECTORY]      where cargo put libmycelite.so and mycelite [target/release]
**   ./replicate PROGRAM LIBRARY  or each by its path
**
** Needs SQLite 3.31 or later with its header (Debian: libsqlite3-dev). Everything happens in a temporary directory.
*/
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char home[] = "/tmp/mycelite-c-XXXXXX";
static pid_t server;

/* Ends the server, and removes what was made. */
static void clean_up(void) {
  if (server > 0) {
    kill(server, SIGTERM);
    waitpid(server, NULL, 0);
  }
  char command[sizeof home + 16];
  snprintf(command, sizeof command, "rm -rf '%s'", home);
  if (system(command) != 0) fprintf(stderr, "replicate: %s is left\n", home);
}

static void fail(const char *what, const char *why) {
  fprintf(stderr, "replicate: %s: %s\n", what, why);
  exit(1);
}

/* The whole path of DIRECTORY/NAME, or of a file that is named itself. */
static char *locate(const char *path, const char *name) {
  struct stat found;
  char *joined = stat(path, &found) == 0 && S_ISDIR(found.st_mode)
      ? sqlite3_mprintf("%s/%s", path, name) : sqlite3_mprintf("%s", path);
  char *whole = realpath(joined, NULL);
  if (whole == NULL) fail(joined, "not there: run cargo build --release first");
  sqlite3_free(joined);
  return whole;
}

/* Starts a replica server on a port that the system chooses; its first line says where it listens. */
static void start_server(const char *program, char *address, int bytes) {
  int out[2];
  if (pipe(out) != 0 || (server = fork()) < 0) fail("mycelite serve", "cannot be started");
  if (server == 0) {
    dup2(out[1], STDOUT_FILENO);
    close(out[0]);
    if (freopen("/dev/null", "w", stderr) == NULL) _exit(127);
    execl(program, program, "serve", "--data", "replicas", "--listen", "127.0.0.1:0", (char *)NULL);
    _exit(127);
  }
  close(out[1]);
  FILE *lines = fdopen(out[0], "r");
  const char *greeting = "listening on ";
  if (fgets(address, bytes, lines) == NULL || strncmp(address, greeting, strlen(greeting)) != 0) {
    fail("mycelite serve", "did not say where it listens");
  }
  memmove(address, address + strlen(greeting), strlen(address) - strlen(greeting) + 1);
  address[strcspn(address, "\n")] = 0;
}

/* Registers the extension's VFSes, once per process. */
static void load_extension(const char *library) {
  sqlite3 *door;
  char *error = NULL;
  if (sqlite3_open(":memory:", &door) != SQLITE_OK) fail("sqlite3_open", sqlite3_errmsg(door));
  sqlite3_db_config(door, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)NULL);
  if (sqlite3_load_extension(door, library, NULL, &error) != SQLITE_OK) fail(library, error);
  sqlite3_close(door);
}

/* Prints each row's first column after `label`. */
static int show(void *label, int columns, char **values, char **names) {
  (void)columns, (void)names;
  printf("%s%s\n", (const char *)label, values[0] ? values[0] : "NULL");
  return 0;
}

static void sql(sqlite3 *db, const char *statements, char *label) {
  char *error = NULL;
  if (sqlite3_exec(db, statements, show, label, &error) != SQLITE_OK) fail(statements, error);
}

/* Runs the program with these arguments, which must succeed. */
static void run(const char *program, const char *arguments) {
  char *command = sqlite3_mprintf("'%s' %s", program, arguments);
  fflush(stdout);
  if (system(command) != 0) fail(command, "failed");
  sqlite3_free(command);
}

static void must_become_equal(const char *one, const char *other) {
  char *command = sqlite3_mprintf("cmp -s %s %s", one, other);
  for (int tries = 0; system(command) != 0; tries++) {
    if (tries == 400) fail(other, "differs");
    usleep(50 * 1000);
  }
  sqlite3_free(command);
}

int main(int count, char **arguments) {
  const char *where = count > 1 ? arguments[1] : "target/release";
  char *program = locate(where, "mycelite");
  char *library = locate(count > 2 ? arguments[2] : where, "libmycelite.so");
  if (mkdtemp(home) == NULL || chdir(home) != 0) fail(home, "cannot be made");
  atexit(clean_up);
  char address[256];
  start_server(program, address, sizeof address);
  load_extension(library);

  /* The application: nothing here is special but the URI. */
  sqlite3 *db;
  char *uri = sqlite3_mprintf("file:stock.db?vfs=mycelite_writer&replica=%s/stock", address);
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI;
  if (sqlite3_open_v2(uri, &db, flags, NULL) != SQLITE_OK) fail(uri, sqlite3_errmsg(db));
  sql(db, "CREATE TABLE part(name TEXT PRIMARY KEY, count INTEGER)", "");
  sql(db, "BEGIN; INSERT INTO part VALUES ('bolt', 400), ('nut', 380); COMMIT", "");
  sql(db, "UPDATE part SET count = count - 12", "");
  sql(db, "SELECT 'transaction ' || mycelite_txid() || ', checksum ' || mycelite_checksum()", "");
  sql(db, "SELECT mycelite_status()", "");
  if (sqlite3_close(db) != SQLITE_OK) fail("sqlite3_close", sqlite3_errmsg(db));

  /* Whatever was not sent before the close is sent now; then the history, the proof, and the replica. */
  char *push = sqlite3_mprintf("push stock.db --to %s/stock", address);
  run(program, push);
  run(program, "log stock.db");
  run(program, "verify stock.db --deep");
  must_become_equal("stock.db", "replicas/stock.db");
  /* The replica is a plain file, read past the extension. */
  if (sqlite3_open_v2("replicas/stock.db", &db, SQLITE_OPEN_READONLY, "unix") != SQLITE_OK) {
    fail("replicas/stock.db", sqlite3_errmsg(db));
  }
  sql(db, "SELECT name || ' ' || count FROM part ORDER BY name", "replica: ");
  sqlite3_close(db);
  sqlite3_free(push);
  sqlite3_free(uri);
  free(program);
  free(library);
  puts("identical: stock.db and replicas/stock.db");
  return 0;
}
