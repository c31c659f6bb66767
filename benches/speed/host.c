/*
** Linked with SQLite's speedtest1: loads the extension that SPEED_EXTENSION names before the program begins.
*/
#include "sqlite3.h"
#include <stdio.h>
#include <stdlib.h>

__attribute__((constructor)) static void load_extension(void){
  const char *library = getenv("SPEED_EXTENSION");
  char *error = 0;
  sqlite3 *db = 0;
  if( library==0 ) return;
  if( sqlite3_open(":memory:", &db) || sqlite3_enable_load_extension(db, 1)
   || sqlite3_load_extension(db, library, "sqlite3_mycelite_init", &error) ){
    fprintf(stderr, "%s: %s\n", library, error ? error : sqlite3_errmsg(db));
    exit(1);
  }
  sqlite3_close(db);
}
