/*
** Linked into SQLite's testfixture, whose library calls mycelite_suite_init() at the end of each sqlite3_initialize()
** (SQLITE_EXTRA_INIT). Environment:
**
**   SQLITE_SUITE_LIBRARY   the extension; without it the fixture is SQLite's own
**   SQLITE_SUITE_ORACLE    a program that is started with the path of each database that this process has closed
**                            for the last time, and that must end before the test goes on
**   SQLITE_SUITE_VERBOSE     show what the extension writes to SQLite's error log (for people: it breaks the lines)
*/
#include "sqlite3.h"
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

extern char **environ;

#define WRITER "mycelite_writer"

/* Files open at a time; a file beyond that is not checked. */
#define OPEN_MAX_FILES 512
/* Different method tables of the VFS. */
#define TABLES_MAX 16

/* What tells a file from another, and a change of it. */
struct Sight {
  dev_t device;
  ino_t inode;
  off_t bytes;
  struct timespec modified, changed;
};

/* A database file that is open through the writer VFS. */
struct OpenFile {
  sqlite3_file *file;
  char *path;
  int written;          /* this connection has written to it since `left` was noted */
  int committed;        /* this process has committed, and nobody else has changed the file since */
  struct Sight left;    /* the file as this process last left it */
};

/* One of the VFS's method tables, and a copy of it that goes through us. */
struct Table {
  const sqlite3_io_methods *theirs;
  sqlite3_io_methods ours;
};

static struct OpenFile open_files[OPEN_MAX_FILES];
static struct Table tables[TABLES_MAX];
static int (*their_open)(sqlite3_vfs*, const char*, sqlite3_file*, int, int*);

/* Not SQLite's own mutexes: tests count and replace those. */
static volatile int locked;
static void lock(void){ while( __sync_lock_test_and_set(&locked, 1) ){} }
static void unlock(void){ __sync_lock_release(&locked); }

/* Shows the oracle the database `path`, and waits for it. `ours`: the last change of the file was this process's. */
static void check(const char *oracle, char *path, int ours){
  char *argv[] = { (char*)oracle, ours ? "--ours" : "--maybe-theirs", path, 0 };
  pid_t pid;
  int status;
  if( posix_spawn(&pid, oracle, 0, 0, argv, environ)==0 ) waitpid(pid, &status, 0);
}

/* The file at `path` as it is; all zeros if it is not there. */
static struct Sight sight(const char *path){
  struct Sight now;
  struct stat st;
  memset(&now, 0, sizeof(now));
  if( stat(path, &st)==0 ){
    now.device = st.st_dev;
    now.inode = st.st_ino;
    now.bytes = st.st_size;
    now.modified = st.st_mtim;
    now.changed = st.st_ctim;
  }
  return now;
}

/* The entry of `file`; 0 if there were too many. The caller holds the lock. */
static struct OpenFile *entry_of(sqlite3_file *file){
  int i;
  for(i=0; i<OPEN_MAX_FILES; i++){
    if( open_files[i].file==file ) return &open_files[i];
  }
  return 0;
}

/* The methods below `file`, which has a table of ours. The caller holds the lock. */
static const sqlite3_io_methods *below(sqlite3_file *file){
  int i;
  for(i=0; i<TABLES_MAX; i++){
    if( file->pMethods==&tables[i].ours ) return tables[i].theirs;
  }
  return 0;
}

/* What is about to happen to a file. */
enum Event { WRITE, LEAVE, COMMIT };

/* Notes `event`; returns the methods below `file`. */
static const sqlite3_io_methods *note(sqlite3_file *file, enum Event event){
  const sqlite3_io_methods *theirs;
  struct OpenFile *entry;
  int i;
  lock();
  theirs = below(file);
  entry = entry_of(file);
  if( entry && (event==COMMIT || entry->written!=(event==WRITE)) ){
    struct Sight now = sight(entry->path);
    for(i=0; i<OPEN_MAX_FILES; i++){
      struct OpenFile *one = &open_files[i];
      if( one->path==0 || strcmp(one->path, entry->path) ) continue;
      if( event==COMMIT ) one->committed = 1;
      if( event==WRITE && memcmp(&one->left, &now, sizeof(now)) ) one->committed = 0;
      one->left = now;
    }
    entry->written = event==WRITE;
  }
  unlock();
  return theirs;
}

static int oracle_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset){
  return note(file, WRITE)->xWrite(file, bytes, amount, offset);
}

static int oracle_truncate(sqlite3_file *file, sqlite3_int64 size){
  return note(file, WRITE)->xTruncate(file, size);
}

static int oracle_unlock(sqlite3_file *file, int level){
  return note(file, LEAVE)->xUnlock(file, level);
}

static int oracle_control(sqlite3_file *file, int operation, void *argument){
  const sqlite3_io_methods *theirs;
  lock();
  theirs = below(file);
  unlock();
  if( operation==SQLITE_FCNTL_COMMIT_PHASETWO ) note(file, COMMIT);
  return theirs->xFileControl(file, operation, argument);
}

static int oracle_close(sqlite3_file *file){
  const sqlite3_io_methods *theirs = note(file, LEAVE);
  struct OpenFile *entry, closed;
  int i, rc, others = 0;
  memset(&closed, 0, sizeof(closed));
  lock();
  entry = entry_of(file);
  if( entry ){
    closed = *entry;
    memset(entry, 0, sizeof(*entry));
  }
  for(i=0; closed.path && i<OPEN_MAX_FILES; i++){
    if( open_files[i].path && strcmp(open_files[i].path, closed.path)==0 ) others = 1;
  }
  unlock();
  file->pMethods = theirs;
  rc = theirs->xClose(file);
  if( closed.path && !others ){
    struct Sight now = sight(closed.path);
    int ours = closed.committed && memcmp(&now, &closed.left, sizeof(now))==0;
    check(getenv("SQLITE_SUITE_ORACLE"), closed.path, ours);
  }
  free(closed.path);
  return rc;
}

/* The copy of `theirs` that goes through us; `theirs` itself when there are too many tables. */
static const sqlite3_io_methods *table_over(const sqlite3_io_methods *theirs){
  int i;
  for(i=0; i<TABLES_MAX; i++){
    if( tables[i].theirs==0 ){
      tables[i].theirs = theirs;
      tables[i].ours = *theirs;
      tables[i].ours.xClose = oracle_close;
      tables[i].ours.xWrite = oracle_write;
      tables[i].ours.xTruncate = oracle_truncate;
      tables[i].ours.xUnlock = oracle_unlock;
      tables[i].ours.xFileControl = oracle_control;
    }
    if( tables[i].theirs==theirs ) return &tables[i].ours;
  }
  return theirs;
}

static int oracle_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *granted){
  int i, rc = their_open(vfs, name, file, flags, granted);
  if( rc!=SQLITE_OK || name==0 || (flags & SQLITE_OPEN_MAIN_DB)==0 ) return rc;
  lock();
  for(i=0; i<OPEN_MAX_FILES && open_files[i].file; i++){}
  if( i<OPEN_MAX_FILES ){
    const sqlite3_io_methods *methods = table_over(file->pMethods);
    if( methods!=file->pMethods ){
      open_files[i].file = file;
      open_files[i].path = strdup(name);
      file->pMethods = methods;
    }
  }
  unlock();
  return rc;
}

/* Loads the extension as an application would. */
static int load(const char *library){
  sqlite3 *db = 0;
  char *message = 0;
  int rc = sqlite3_open(":memory:", &db);
  if( rc==SQLITE_OK ) rc = sqlite3_enable_load_extension(db, 1);
  if( rc==SQLITE_OK ) rc = sqlite3_load_extension(db, library, 0, &message);
  if( rc!=SQLITE_OK ) fprintf(stderr, "cannot load %s: %s\n", library, message ? message : sqlite3_errmsg(db));
  sqlite3_free(message);
  sqlite3_close(db);
  return rc;
}

static void show(void *unused, int code, const char *line){
  (void)unused;
  if( strncmp(line, "mycelite:", 9)==0 ) fprintf(stderr, "(%d) %s\n", code, line);
}

__attribute__((constructor)) static void listen(void){
  if( getenv("SQLITE_SUITE_VERBOSE") ) sqlite3_config(SQLITE_CONFIG_LOG, show, 0);
}

int mycelite_suite_init(const char *unused){
  /* 0: nothing done; 1: loading, during which this function is called again; 2: loaded. */
  static int state = 0;
  const char *library = getenv("SQLITE_SUITE_LIBRARY");
  sqlite3_vfs *writer;
  (void)unused;
  if( library==0 || state==1 ) return SQLITE_OK;
  if( state==0 ){
    state = 1;
    if( load(library)!=SQLITE_OK ) exit(1);
    state = 2;
  }
  writer = sqlite3_vfs_find(WRITER);
  if( writer==0 ) return SQLITE_ERROR;
  if( their_open==0 && getenv("SQLITE_SUITE_ORACLE") ){
    their_open = writer->xOpen;
    writer->xOpen = oracle_open;
  }
  /* sqlite3_shutdown() makes the operating system's VFS the default again. */
  return sqlite3_vfs_register(writer, 1);
}
