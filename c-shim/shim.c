/*
** SQLite's extension routine table, behind plain functions that Rust can call.
**
** The macros of sqlite3ext.h turn every sqlite3_x() below into a call through the table that the host handed to our
** entry point, so this file links no SQLite. Routines newer than 3.31 may only be called after a check of
** sqlite3_libversion_number(): in an older host the table ends before them.
**
** Text from Rust is always an argument of "%s", never a format.
*/
#include "sqlite3ext.h"
#include <stddef.h>

/* What SQLITE_EXTENSION_INIT1 would define, but private to this file: the name must not meet another extension's. */
static const sqlite3_api_routines *sqlite3_api = 0;

/* The version of the SQLite that owns a table, before it is believed. The member has been in place since 3.3.13. */
int mycelite_shim_table_version(const void *table) {
  return ((const sqlite3_api_routines *)table)->libversion_number();
}

/* For the message of a refusal, when there is no table to go by: this member has been in place since 3.3.13, too. */
char *mycelite_shim_table_mprintf(const void *table, const char *text) {
  return ((const sqlite3_api_routines *)table)->mprintf("%s", text);
}

void mycelite_shim_init(const void *table) { sqlite3_api = (const sqlite3_api_routines *)table; }

int mycelite_shim_libversion_number(void) { return sqlite3_libversion_number(); }
int mycelite_shim_threadsafe(void) { return sqlite3_threadsafe(); }

void mycelite_shim_log(int code, const char *text) { sqlite3_log(code, "%s", text); }
char *mycelite_shim_mprintf(const char *text) { return sqlite3_mprintf("%s", text); }
void mycelite_shim_free(void *memory) { sqlite3_free(memory); }

sqlite3_vfs *mycelite_shim_vfs_find(const char *name) { return sqlite3_vfs_find(name); }
int mycelite_shim_vfs_register(sqlite3_vfs *vfs, int make_default) { return sqlite3_vfs_register(vfs, make_default); }

int mycelite_shim_auto_extension(void (*entry)(void)) { return sqlite3_auto_extension(entry); }

const char *mycelite_shim_filename_database(const char *name) { return sqlite3_filename_database(name); }
const char *mycelite_shim_uri_parameter(const char *name, const char *key) { return sqlite3_uri_parameter(name, key); }
const char *mycelite_shim_uri_key(const char *name, int n) { return sqlite3_uri_key(name, n); }
const char *mycelite_shim_db_filename(sqlite3 *db, const char *schema) { return sqlite3_db_filename(db, schema); }

/* Only inside xConnect. The constant is of 3.31. */
int mycelite_shim_vtab_direct_only(sqlite3 *db) { return sqlite3_vtab_config(db, SQLITE_VTAB_DIRECTONLY); }

int mycelite_shim_open(const char *path, sqlite3 **db, int flags, const char *vfs) {
  return sqlite3_open_v2(path, db, flags, vfs);
}
int mycelite_shim_close(sqlite3 *db) { return sqlite3_close_v2(db); }
int mycelite_shim_busy_timeout(sqlite3 *db, int ms) { return sqlite3_busy_timeout(db, ms); }
int mycelite_shim_extended_result_codes(sqlite3 *db, int on) { return sqlite3_extended_result_codes(db, on); }
int mycelite_shim_extended_errcode(sqlite3 *db) { return sqlite3_extended_errcode(db); }
const char *mycelite_shim_errmsg(sqlite3 *db) { return sqlite3_errmsg(db); }
int mycelite_shim_exec(sqlite3 *db, const char *sql) { return sqlite3_exec(db, sql, 0, 0, 0); }

int mycelite_shim_prepare(sqlite3 *db, const char *sql, sqlite3_stmt **statement) {
  return sqlite3_prepare_v2(db, sql, -1, statement, 0);
}
int mycelite_shim_step(sqlite3_stmt *statement) { return sqlite3_step(statement); }
int mycelite_shim_finalize(sqlite3_stmt *statement) { return sqlite3_finalize(statement); }
int mycelite_shim_column_count(sqlite3_stmt *statement) { return sqlite3_column_count(statement); }
int mycelite_shim_column_type(sqlite3_stmt *statement, int column) { return sqlite3_column_type(statement, column); }
sqlite3_int64 mycelite_shim_column_int64(sqlite3_stmt *statement, int column) {
  return sqlite3_column_int64(statement, column);
}
/* Pointer first, length second: that is the order in which SQLite keeps both valid. */
const unsigned char *mycelite_shim_column_text(sqlite3_stmt *statement, int column, int *length) {
  const unsigned char *text = sqlite3_column_text(statement, column);
  *length = sqlite3_column_bytes(statement, column);
  return text;
}
